//! Tokens that a provider signed, but not for this gateway or not for this instance; and what a provider that answers
//! half, or late, changes for the others.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hearth::duo::identity::{Bypass, Identity, Rules};
use hearth::engine::clock::Manual;
use serde_json::{Value, json};

use super::client::Reply;
use super::gitlab::{Behaviour, GitLab, INSTANCE, Token, USER, pairs};
use super::site::Site;

const FORBIDDEN: &str = "Forbidden by auth provider";
const OTHER: &str = "0b9e7a52-0000-4000-8000-000000000000";
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Asks for a path that nobody serves: 404 for a good token, 401 otherwise.
fn knock(site: &Site, headers: &[(String, String)]) -> Reply {
    site.post_with("/nowhere", &pairs(headers), &json!({}))
}

fn good(site: &Site, headers: &[(String, String)]) -> bool {
    let reply = knock(site, headers);
    assert!(matches!(reply.status, 401 | 404), "{}: {}", reply.status, reply.body);
    if reply.status == 401 {
        assert_eq!(reply.json(), json!({"error": FORBIDDEN}));
    }
    reply.status == 404
}

fn clock() -> Manual {
    let clock = Manual::default();
    clock.advance(SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
    clock
}

fn with_portal(portal: &GitLab) -> Rules {
    Rules { portal: Some(portal.url().parse().unwrap()), ..Rules::default() }
}

/// The usual headers with another instance's id.
fn of_instance(headers: Vec<(String, String)>, instance: &str) -> Vec<(String, String)> {
    let name = |(name, value): (String, String)| match name.as_str() {
        "x-gitlab-instance-id" => (name, instance.to_owned()),
        _ => (name, value),
    };
    headers.into_iter().map(name).collect()
}

/// Tokens that GitLab signs with published keys, with this gateway as the audience, and not for itself.
fn of_others(gitlab: &GitLab) -> Vec<(&'static str, Token)> {
    let job = "project_path:group/project:ref_type:branch:ref:main";
    let token = || gitlab.token();
    let bare = || token().without("gitlab_realm").without("scopes");
    vec![
        ("a CI job's", bare().claim("sub", json!(job)).claim("project_path", json!("group/project"))),
        ("a CI job's of an instance-like project", bare()),
        ("a user's", bare().claim("sub", json!("42")).claim("auth_time", json!(1))),
        ("without scopes", token().without("scopes")),
        ("with scopes that are none", token().claim("scopes", Value::Null)),
        ("without a realm", token().without("gitlab_realm")),
        ("with an empty realm", token().claim("gitlab_realm", json!(""))),
        ("of a job with a realm and scopes", token().claim("sub", json!(job))),
        ("of a user with a realm and scopes", token().claim("sub", json!("42"))),
        ("of a long subject", token().claim("sub", json!(format!("{INSTANCE}0")))),
    ]
}

#[test]
fn what_gitlab_signs_for_jobs_and_users_opens_nothing() {
    let gitlab = GitLab::start();
    for (enforced, bypass) in [(true, Bypass::Off), (false, Bypass::Off), (false, Bypass::Signature)] {
        let site = Site::of(&gitlab, Rules { enforced, bypass, ..Rules::default() });
        assert!(good(&site, &gitlab.rails()));
        for (what, token) in of_others(&gitlab) {
            let subject = token.claims["sub"].as_str().unwrap().to_owned();
            let headers = of_instance(gitlab.with(&token.sign(), "19.3.0"), &subject);
            assert!(!good(&site, &headers), "{what}, scopes enforced: {enforced}, {bypass:?}");
        }
    }
}

#[test]
fn a_gitlab_known_by_another_name_keeps_it_while_its_discovery_document_is_away() {
    let gitlab = GitLab::start();
    gitlab.known_as("https://gitlab.example.com");
    let site = Site::of(&gitlab, Rules { refresh: Duration::from_millis(20), ..Rules::default() });
    assert!(good(&site, &gitlab.rails()));
    gitlab.behave(Behaviour::WithoutDiscovery);
    let seen = gitlab.asked("/-/cloud_connector/keys");
    while gitlab.asked("/-/cloud_connector/keys") < seen + 3 {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(good(&site, &gitlab.rails()));
}

#[test]
fn a_name_that_was_not_to_be_learnt_at_the_start_is_learnt_from_the_next_token() {
    let (gitlab, clock) = (GitLab::start(), clock());
    gitlab.known_as("https://gitlab.example.com");
    gitlab.behave(Behaviour::WithoutDiscovery);
    let site = Site::of(&gitlab, Rules { clock: Arc::new(clock.clone()), ..Rules::default() });
    assert!(!good(&site, &gitlab.rails()), "nobody said that this is its name");
    let by_url = gitlab.token().claim("iss", json!(gitlab.url()));
    assert!(good(&site, &gitlab.with(&by_url.sign(), "19.3.0")));
    gitlab.behave(Behaviour::Up);
    let before = gitlab.asked(DISCOVERY);
    assert!(!good(&site, &gitlab.rails()), "within a minute after the last fetch");
    assert_eq!(gitlab.asked(DISCOVERY), before);
    clock.advance(Duration::from_secs(60));
    assert!(good(&site, &gitlab.rails()));
    assert_eq!(gitlab.asked(DISCOVERY), before + 1);
}

#[test]
fn a_token_of_the_portal_is_good_for_the_instance_that_gitlab_is() {
    let (gitlab, portal) = (GitLab::start(), GitLab::another());
    let site = Site::of(&gitlab, with_portal(&portal));
    assert!(!good(&site, &portal.rails()), "nobody said yet which instance this is");
    assert!(good(&site, &gitlab.rails()));
    assert!(good(&site, &portal.rails()));
    let other = portal.token().claim("sub", json!(OTHER)).sign();
    let other = of_instance(portal.with(&other, "19.3.0"), OTHER);
    assert!(!good(&site, &other), "another customer's instance");
    // A GitLab that was set up anew, or restored from another one.
    let renewed = gitlab.token().claim("sub", json!(OTHER)).sign();
    assert!(good(&site, &of_instance(gitlab.with(&renewed, "19.3.0"), OTHER)));
    assert!(good(&site, &other) && !good(&site, &portal.rails()));
}

#[test]
fn the_instance_of_the_portals_tokens_can_be_configured() {
    let (gitlab, portal) = (GitLab::start(), GitLab::another());
    let rules = Rules { instance: Some(INSTANCE.to_ascii_uppercase()), ..with_portal(&portal) };
    let site = Site::of(&gitlab, rules);
    assert!(good(&site, &portal.rails()), "before any token of GitLab's own");
    let other = portal.token().claim("sub", json!(OTHER)).sign();
    assert!(!good(&site, &of_instance(portal.with(&other, "19.3.0"), OTHER)));
}

#[test]
fn a_portal_that_hangs_delays_no_token_of_gitlabs() {
    let (gitlab, portal) = (GitLab::start(), GitLab::another());
    portal.behave(Behaviour::Slow);
    let site = Site::of(&gitlab, with_portal(&portal));
    portal.until_fetched(1);
    assert!(good(&site, &gitlab.rails()));
    assert_eq!(portal.abandoned(), 0, "the portal was waited for");
    // And when it was given up on, there was something to count.
    while portal.abandoned() == 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_portal_that_answers_is_no_reason_to_leave_gitlab_alone() {
    let (gitlab, portal) = (GitLab::start(), GitLab::another());
    gitlab.behave(Behaviour::Down);
    let site = Site::of(&gitlab, with_portal(&portal));
    assert!(!good(&site, &gitlab.rails()));
    gitlab.behave(Behaviour::Up);
    // By itself, within seconds: the clock of the wait for another token's fetch stands a minute away.
    while site.get("/monitoring/ready").status != 200 {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(good(&site, &gitlab.rails()));
}

#[test]
fn while_the_check_is_off_no_tokens_are_made_and_no_page_may_ask() {
    for bypass in [Bypass::All, Bypass::Header, Bypass::Signature] {
        let gitlab = GitLab::start();
        let site = Site::of(&gitlab, Rules { bypass, ..Rules::default() });
        let mut headers = gitlab.rails();
        headers.push(("Bypass-Auth".to_owned(), "true".to_owned()));
        headers.push(("Origin".to_owned(), "https://page.example.com".to_owned()));
        let reply = site.open_with("POST", "/v1/code/user_access_token", &pairs(&headers), "").reply();
        // It got as far as the making: who asks was taken from the header.
        assert_eq!(
            (reply.status, reply.json()),
            (500, json!({"detail": "Failed to generate JWT"})),
            "{USER}"
        );
        assert_eq!(reply.header("access-control-allow-origin"), None);
        headers.push(("Access-Control-Request-Method".to_owned(), "POST".to_owned()));
        let preflight = site.open_with("OPTIONS", "/v2/completions", &pairs(&headers), "").reply();
        assert_eq!(preflight.header("access-control-allow-origin"), None);
        assert_ne!(preflight.status, 200);
    }
    // Whoever proves nothing and names nobody is told what is missing.
    let site = Site::with(Identity::new(Rules { bypass: Bypass::All, ..Rules::default() }, None).unwrap());
    assert_eq!(site.open_with("POST", "/v1/code/user_access_token", &[], "").reply().status, 422);
}
