//! Keys over time: the gateway's own after rotations, GitLab's while it hangs or hides behind another application.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hearth::duo::identity::own::{self, OwnKeys};
use hearth::duo::identity::{Identity, Rules};
use hearth::engine::clock::Manual;
use serde_json::json;

use super::client::{Line, request};
use super::gitlab::{Behaviour, GitLab, pairs};
use super::site::Site;

const TOKEN: &str = "/v1/code/user_access_token";

fn status(site: &Site, headers: &[(String, String)]) -> u16 {
    site.post_with("/nowhere", &pairs(headers), &json!({})).status
}

/// A gateway with the keys of a state directory.
fn with_keys(gitlab: &GitLab, clock: &Manual, directory: &Path) -> Site {
    let own = OwnKeys::open(directory, None, None).unwrap();
    let gitlab = Some(gitlab.url().parse().unwrap());
    let rules = Rules { gitlab, clock: Arc::new(clock.clone()), ..Rules::default() };
    Site::with(Identity::new(rules, Some(own)).unwrap())
}

fn clock() -> Manual {
    let clock = Manual::default();
    clock.advance(SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
    clock
}

/// The headers of an editor with a token made now.
fn editor(site: &Site, gitlab: &GitLab) -> Vec<(String, String)> {
    let made = site.open_with("POST", TOKEN, &pairs(&gitlab.rails()), "").reply().json();
    gitlab.with(made["token"].as_str().unwrap(), "19.3.0")
}

#[test]
fn a_previous_key_ends_with_its_last_token() {
    let directory = tempfile::tempdir().unwrap();
    let (gitlab, clock) = (GitLab::start(), clock());
    let before = editor(&with_keys(&gitlab, &clock, directory.path()), &gitlab);
    own::rotate(directory.path(), || Ok(())).unwrap();
    let site = with_keys(&gitlab, &clock, directory.path());
    assert_eq!(status(&site, &before), 404);
    // Whoever has the old key can sign tokens that end later: the key itself has an end.
    let old = std::fs::read_to_string(directory.path().join("jwt_validation.pem")).unwrap();
    let key = jsonwebtoken::EncodingKey::from_rsa_pem(old.as_bytes()).unwrap();
    let token = before.iter().find(|(name, _)| name == "authorization").unwrap().1[7..].to_owned();
    let mut claims = jsonwebtoken::dangerous::insecure_decode::<serde_json::Value>(&token).unwrap().claims;
    claims["exp"] = json!(claims["exp"].as_u64().unwrap() + 1_000_000);
    let header = jsonwebtoken::decode_header(&token).unwrap();
    let forged = gitlab.with(&jsonwebtoken::encode(&header, &claims, &key).unwrap(), "19.3.0");
    assert_eq!(status(&site, &forged), 404, "within the hour nobody can tell");
    clock.advance(Duration::from_secs(3600 + 120));
    assert_eq!(status(&site, &forged), 401);
    let again = with_keys(&gitlab, &clock, directory.path());
    assert_eq!(status(&again, &forged), 401);
}

#[test]
fn a_revoked_key_is_good_for_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (gitlab, clock) = (GitLab::start(), clock());
    let first = editor(&with_keys(&gitlab, &clock, directory.path()), &gitlab);
    own::rotate(directory.path(), || Ok(())).unwrap();
    let second = editor(&with_keys(&gitlab, &clock, directory.path()), &gitlab);
    own::revoke(directory.path(), || Ok(())).unwrap();
    let site = with_keys(&gitlab, &clock, directory.path());
    assert_eq!((status(&site, &first), status(&site, &second)), (401, 401));
    assert_eq!(status(&site, &editor(&site, &gitlab)), 404);
    assert!(!directory.path().join("jwt_validation.pem").exists());
}

#[test]
fn a_gitlab_that_hangs_is_asked_again() {
    let gitlab = GitLab::start();
    gitlab.behave(Behaviour::Slow);
    let site = Site::of(&gitlab, Rules::default());
    assert_eq!(status(&site, &gitlab.rails()), 401);
    gitlab.until_fetched(2);
    assert!(gitlab.abandoned() >= 1, "the first answer was given up on");
}

#[test]
fn keys_of_what_lives_at_the_root_of_the_host_are_not_fetched() {
    let root = GitLab::start();
    let rules = Rules { gitlab: Some(format!("{}/gitlab", root.url()).parse().unwrap()), ..Rules::default() };
    let site = Site::ruled(rules);
    assert_eq!(status(&site, &root.rails()), 401);
    assert_eq!(root.asked("/oauth/discovery/keys"), 0);
}

#[test]
fn the_age_of_gitlabs_keys_is_a_figure() {
    let figures = |site: &Site| Line::open(site.metrics, &request("GET", "/metrics", &[], "")).reply().body;
    assert!(!figures(&Site::closed()).contains("hearth_gitlab_keys_age_seconds"));
    let (gitlab, clock) = (GitLab::start(), clock());
    let site = Site::of(&gitlab, Rules { clock: Arc::new(clock.clone()), ..Rules::default() });
    assert_eq!(status(&site, &gitlab.rails()), 404);
    clock.advance(Duration::from_secs(90));
    let text = figures(&site);
    assert!(text.contains("\nhearth_gitlab_keys_age_seconds 90.0\n"), "{text}");
}
