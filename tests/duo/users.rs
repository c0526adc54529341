//! Limits of GitLab's users: counted for each user whichever way it comes, and for nobody who proved nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hearth::access::{Amounts, Quotas};
use hearth::engine::clock::Manual;
use serde_json::json;

use super::client::Reply;
use super::gitlab::{GitLab, pairs};
use super::site::Site;

const USER: &str = "x-gitlab-global-user-id";

struct Rig {
    gitlab: GitLab,
    site: Site,
    clock: Manual,
    _directory: tempfile::TempDir,
}

fn rig(requests: u32) -> Rig {
    let (gitlab, clock) = (GitLab::start(), Manual::default());
    clock.advance(SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
    let directory = tempfile::tempdir().unwrap();
    let users = Amounts { requests, ..Amounts::default() };
    let quotas = Quotas { users, ..Quotas::default() };
    let site = Site::limited(&gitlab, directory.path(), quotas, clock.clone());
    Rig { gitlab, site, clock, _directory: directory }
}

impl Rig {
    /// GitLab's headers for a user.
    fn rails(&self, user: &str) -> Vec<(String, String)> {
        let mut headers = self.gitlab.rails();
        headers.retain(|(name, _)| name != USER);
        if !user.is_empty() {
            headers.push((USER.to_owned(), user.to_owned()));
        }
        headers
    }

    /// A request that is let in and then told that it lacks its fields.
    fn ask(&self, headers: &[(String, String)]) -> Reply {
        self.site.post_with("/v2/code/completions", &pairs(headers), &json!({}))
    }

    fn let_in(&self, headers: &[(String, String)]) -> usize {
        (0..10).take_while(|_| self.ask(headers).status == 422).count()
    }
}

#[test]
fn each_user_has_its_own_minute() {
    let rig = rig(3);
    assert_eq!((rig.let_in(&rig.rails("ada")), rig.let_in(&rig.rails("eve"))), (3, 3));
    let refused = rig.ask(&rig.rails("ada"));
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("20")));
    assert_eq!(refused.json(), json!({"detail": "Too many requests. Please try again later."}));
    rig.clock.advance(Duration::from_secs(20));
    assert_eq!(rig.let_in(&rig.rails("ada")), 1);
    // Requests that GitLab makes for no user have the server's limits only.
    assert_eq!(rig.let_in(&rig.rails("")), 10);
}

#[test]
fn a_user_is_the_same_one_from_an_editor() {
    let rig = rig(4);
    let headers = rig.rails("ada");
    let token = rig.site.post_with("/v1/code/user_access_token", &pairs(&headers), &json!({}));
    assert_eq!(token.status, 200, "{}", token.body);
    let mut editor = rig.gitlab.with(token.json()["token"].as_str().unwrap(), "19.3.0");
    editor.retain(|(name, _)| name != USER);
    editor.push((USER.to_owned(), "ada".to_owned()));
    assert_eq!(rig.let_in(&editor), 3);
    assert_eq!(rig.ask(&headers).status, 429);
    // Another name than the token's opens nothing, and uses nothing of the other's up.
    editor.retain(|(name, _)| name != USER);
    editor.push((USER.to_owned(), "eve".to_owned()));
    assert_eq!(rig.ask(&editor).status, 401);
    assert_eq!(rig.let_in(&rig.rails("eve")), 4);
}

#[test]
fn a_name_without_a_token_uses_nobodys_requests_up() {
    let rig = rig(2);
    for _ in 0..10 {
        let headers = [(USER, "ada"), ("x-gitlab-authentication-type", "oidc")];
        assert_eq!(rig.site.post_with("/v2/code/completions", &headers, &json!({})).status, 401);
    }
    assert_eq!(rig.let_in(&rig.rails("ada")), 2);
}
