//! Whose request it is: tokens of GitLab, of this gateway, and forged ones; keys that rotate, and a GitLab that is down.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hearth::duo::identity::own::{self, OwnKeys};
use hearth::duo::identity::{Bypass, Identity, Rules};
use hearth::engine::clock::Manual;
use hearth::server::guard::Access;
use hearth::server::routes::table;
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value, json};

use super::client::Reply;
use super::gitlab::{self, Behaviour, GitLab, INSTANCE, Token, USER, pairs, usual};
use super::log;
use super::site::{OWN, Site};

const FORBIDDEN: &str = "Forbidden by auth provider";
const TOKEN: &str = "/v1/code/user_access_token";

/// Asks for a path that nobody serves: 404 for a good token, 401 otherwise.
fn knock(site: &Site, headers: &[(String, String)]) -> Reply {
    site.post_with("/nowhere", &pairs(headers), &json!({}))
}

fn good(site: &Site, headers: &[(String, String)]) -> bool {
    let reply = knock(site, headers);
    match reply.status {
        404 => assert_eq!(reply.json(), json!({"detail": "Not Found"})),
        401 => assert!(reply.json()["error"].is_string(), "{}", reply.body),
        other => panic!("{other}: {}", reply.body),
    }
    reply.status == 404
}

fn refused(site: &Site, headers: &[(String, String)]) -> String {
    let reply = knock(site, headers);
    assert_eq!(reply.status, 401, "{}", reply.body);
    reply.json()["error"].as_str().unwrap().to_owned()
}

/// The clock of a test, at the present time.
fn clock() -> Manual {
    let clock = Manual::default();
    clock.advance(SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
    clock
}

fn ruled(clock: &Manual) -> Rules {
    Rules { clock: Arc::new(clock.clone()), ..Rules::default() }
}

/// Headers with some of them changed; an empty value takes one away.
fn changed(headers: Vec<(String, String)>, name: &str, value: &str) -> Vec<(String, String)> {
    let mut headers = headers;
    headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
    if !value.is_empty() {
        headers.push((name.to_owned(), value.to_owned()));
    }
    headers
}

fn says(token: &str) -> Map<String, Value> {
    jsonwebtoken::dangerous::insecure_decode(token).unwrap().claims
}

#[test]
fn every_version_of_gitlab_gets_in_with_its_own_headers() {
    let site = Site::start();
    let gitlab = site.gitlab();
    for version in ["17.4.0", "17.6.2", "17.11.0-ee", "18.0.0", "18.5.1", "18.9.0", "19.3.0-pre"] {
        assert!(good(&site, &gitlab.with(&gitlab.token().sign(), version)), "{version}");
    }
    let plain = gitlab.token().claim("aud", json!("gitlab-ai-gateway"));
    assert!(good(&site, &gitlab.with(&plain.sign(), "19.3.0")), "one audience stands alone");
    let lower = changed(gitlab.rails(), "authorization", &format!("bearer {}", gitlab.token().sign()));
    assert!(good(&site, &lower));
    let nameless = gitlab.token().header("kid", Value::Null);
    assert!(
        good(&site, &gitlab.with(&nameless.sign(), "19.3.0")),
        "a token that names no key is tried with each"
    );
    let late = gitlab.token().shifted(-3650);
    assert!(good(&site, &gitlab.with(&late.sign(), "19.3.0")), "expired within the leeway");
}

#[test]
fn the_refusals_are_the_contracts_and_come_in_its_order() {
    let site = Site::start();
    let rails = site.gitlab().rails();
    assert_eq!(refused(&site, &[]), "No authorization header presented");
    assert_eq!(refused(&site, &usual("19.3.0")), "No authorization header presented");
    let token = site.gitlab().token().sign();
    for value in ["Basic abc", token.as_str(), "Bearers x", "Token x"] {
        assert_eq!(
            refused(&site, &changed(rails.clone(), "authorization", value)),
            "Invalid authorization header"
        );
    }
    for value in ["", "OIDC", "jwt"] {
        let headers = changed(rails.clone(), "X-Gitlab-Authentication-Type", value);
        let text = "Invalid authentication token type - only OIDC is supported";
        assert_eq!(refused(&site, &headers), text);
    }
    for value in ["Bearer ", "Bearer x", "Bearer a.b.c", "Bearer ..", "Bearer eyJhbGciOiJSUzI1NiJ9.e30."] {
        assert_eq!(refused(&site, &changed(rails.clone(), "authorization", value)), FORBIDDEN, "{value}");
    }
    // The token comes before the route and before the body.
    let reply = site.open_with("GET", TOKEN, &[], "").reply();
    assert_eq!((reply.status, reply.json()), (401, json!({"error": "No authorization header presented"})));
}

#[test]
fn fact_6_a_token_lists_its_audiences_and_its_key_is_where_the_discovery_document_says() {
    let site = Site::start();
    let gitlab = site.gitlab();
    for (audiences, lets_in) in [
        (json!(["gitlab-ai-gateway"]), true),
        (json!(["gitlab-duo-workflow-service", "gitlab-ai-gateway"]), true),
        (json!(["gitlab-duo-workflow-service"]), false),
    ] {
        let token = gitlab.token().claim("aud", audiences.clone());
        assert_eq!(good(&site, &gitlab.with(&token.sign(), "19.3.0")), lets_in, "{audiences}");
    }
    assert!(!good(&site, &gitlab.with(&gitlab.token().sign_by("RS512", Algorithm::RS512), "19.3.0")));
    for path in ["/.well-known/openid-configuration", "/oauth/discovery/keys"] {
        assert_eq!(gitlab.asked(path), 1, "{path}");
    }
}

#[test]
fn fact_6_headers_are_compared_with_claims_that_say_something() {
    let site = Site::start();
    let gitlab = site.gitlab();
    let other = "0b9e7a52-0000-4000-8000-000000000000";
    for (name, value) in [
        ("X-Gitlab-Realm", "saas"),
        ("X-Gitlab-Realm", ""),
        ("X-Gitlab-Instance-Id", other),
        ("X-Gitlab-Instance-Id", ""),
    ] {
        let headers = changed(gitlab.rails(), name, value);
        assert_eq!(refused(&site, &headers), format!("Header mismatch '{name}'"), "{value:?}");
    }
    let claimed =
        |name: &str, value: &str| gitlab.with(&gitlab.token().claim(name, json!(value)).sign(), "19.3.0");
    assert!(good(&site, &claimed("gitlab_instance_id", INSTANCE)));
    assert_eq!(
        refused(&site, &claimed("gitlab_instance_id", other)),
        "Header mismatch 'X-Gitlab-Instance-Id'"
    );
    assert_eq!(refused(&site, &claimed("gitlab_realm", "saas")), "Header mismatch 'X-Gitlab-Realm'");
    assert_eq!(refused(&site, &claimed("sub", other)), "Header mismatch 'X-Gitlab-Instance-Id'");
    // A claim that says nothing contradicts nothing, and the seats are not compared.
    assert!(good(&site, &claimed("gitlab_instance_id", "")));
    assert!(good(&site, &gitlab.with(&gitlab.token().claim("duo_seat_count", json!("7")).sign(), "17.4.0")));
}

#[test]
fn a_flood_of_tokens_of_unknown_keys_causes_one_fetch_a_minute() {
    let (gitlab, clock) = (GitLab::start(), clock());
    let site = Site::of(&gitlab, ruled(&clock));
    assert!(good(&site, &gitlab.rails()));
    assert_eq!(gitlab.fetches(), 1, "the one at the start");
    let forged: Vec<_> = (0..20)
        .map(|i| gitlab.with(&gitlab.token().header("kid", json!(format!("k{i}"))).sign(), "19.3.0"))
        .collect();
    let flood = |of: usize| {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..of).for_each(|i| assert_eq!(refused(&site, &forged[i % 20]), FORBIDDEN)));
            }
        });
    };
    flood(100);
    assert_eq!(gitlab.fetches(), 1);
    for minute in 1..=3 {
        clock.advance(Duration::from_secs(60));
        flood(40);
        assert_eq!(gitlab.fetches(), 1 + minute);
    }
    assert!(good(&site, &gitlab.rails()));
}

#[test]
fn a_key_that_gitlab_changed_to_is_found_by_the_first_token_that_names_it() {
    let (gitlab, clock) = (GitLab::start(), clock());
    let site = Site::of(&gitlab, ruled(&clock));
    let before = gitlab.rails();
    assert!(good(&site, &before));
    gitlab.rotate(true);
    let after = gitlab.rails();
    assert_eq!(refused(&site, &after), FORBIDDEN, "within a minute after the last fetch");
    clock.advance(Duration::from_secs(60));
    // All of them wait for the same fetch.
    std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(|| assert!(good(&site, &after))))));
    assert_eq!(gitlab.fetches(), 2);
    assert!(good(&site, &before), "the key before is still published");
    gitlab.rotate(false);
    clock.advance(Duration::from_secs(60));
    assert!(good(&site, &gitlab.rails()));
    assert_eq!(refused(&site, &before), FORBIDDEN, "it is published no more");
}

#[test]
fn a_gitlab_that_misbehaves_takes_nobodys_token_away() {
    for behaviour in [
        Behaviour::Down,
        Behaviour::Failing,
        Behaviour::Empty,
        Behaviour::Huge,
        Behaviour::Redirecting,
        Behaviour::Garbage,
    ] {
        let gitlab = GitLab::start();
        let site = Site::of(&gitlab, Rules { refresh: Duration::from_millis(20), ..Rules::default() });
        assert!(good(&site, &gitlab.rails()));
        gitlab.behave(behaviour);
        let seen = gitlab.asked("/.well-known/openid-configuration");
        gitlab.until_fetched(seen + 4);
        assert!(good(&site, &gitlab.rails()), "{behaviour:?}");
        assert_eq!(gitlab.asked("/lured"), 0, "a redirect was followed");
    }
}

#[test]
fn a_gitlab_that_has_become_slow_delays_no_token_of_a_known_key() {
    let gitlab = GitLab::start();
    let site = Site::of(&gitlab, Rules { refresh: Duration::from_millis(20), ..Rules::default() });
    assert!(good(&site, &gitlab.rails()));
    gitlab.behave(Behaviour::Slow);
    let seen = gitlab.asked("/.well-known/openid-configuration");
    gitlab.until_fetched(seen + 2);
    let abandoned = gitlab.abandoned();
    assert!(good(&site, &gitlab.rails()));
    assert_eq!(gitlab.abandoned(), abandoned, "the token waited for a fetch to be given up on");
}

#[test]
fn a_gitlab_that_is_down_at_the_start_is_waited_for() {
    log::listen();
    for (behaviour, problem) in [
        (Behaviour::Down, "cannot be reached"),
        (Behaviour::Failing, "answered 500"),
        (Behaviour::Empty, "holds no RSA key"),
        (Behaviour::Garbage, "is no set of keys"),
        (Behaviour::Huge, "answered more than"),
        (Behaviour::Redirecting, "/lured; redirects are not followed"),
        (Behaviour::Slow, "did not answer in time"),
    ] {
        let gitlab = GitLab::start();
        gitlab.behave(behaviour);
        let site = Site::of(&gitlab, Rules::default());
        // Of a slow one nothing is known before the first fetch is given up on.
        if behaviour == Behaviour::Slow {
            while gitlab.abandoned() == 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let id = format!("{behaviour:?}-at-the-start");
        let headers = changed(gitlab.rails(), "X-Request-ID", &id);
        assert_eq!(refused(&site, &headers), FORBIDDEN, "{behaviour:?}");
        let reason = log::reason(&id);
        assert!(reason.starts_with("GitLab's keys are not known: "), "{behaviour:?}: {reason}");
        assert!(reason.contains(problem), "{behaviour:?}: {reason}");
        assert_eq!(site.get("/monitoring/healthz").status, 200);
        assert_eq!(site.get("/monitoring/ready").status, 503);
        gitlab.behave(Behaviour::Up);
        while !good(&site, &gitlab.rails()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(site.get("/monitoring/ready").status, 200);
        assert_eq!(gitlab.asked("/lured"), 0, "a redirect was followed");
    }
}

#[test]
fn a_gitlab_that_is_slow_is_given_up_on() {
    let gitlab = GitLab::start();
    gitlab.behave(Behaviour::Slow);
    let site = Site::of(&gitlab, Rules::default());
    // It waits for the first fetch, which ends after five seconds and not after a minute.
    assert_eq!(refused(&site, &gitlab.rails()), FORBIDDEN);
    assert_eq!(site.get("/monitoring/healthz").status, 200);
}

#[test]
fn gitlab_may_be_down_for_an_hour() {
    let (gitlab, clock) = (GitLab::start(), clock());
    let site = Site::of(&gitlab, Rules { refresh: Duration::from_millis(20), ..ruled(&clock) });
    assert!(good(&site, &gitlab.rails()));
    gitlab.behave(Behaviour::Down);
    let first = gitlab.rails();
    for _ in 0..6 {
        clock.advance(Duration::from_secs(600));
        gitlab.advance(600.0);
        gitlab.until_fetched(gitlab.asked("/.well-known/openid-configuration") + 1);
        assert!(good(&site, &gitlab.rails()), "a token of now");
    }
    assert!(good(&site, &first), "within the leeway");
    clock.advance(Duration::from_secs(61));
    assert_eq!(refused(&site, &first), FORBIDDEN, "a token of an hour ago");
}

#[test]
fn a_relative_root_an_internal_name_and_the_newer_place_of_keys_are_found() {
    let below = GitLab::under("/gitlab", 0);
    let site = Site::of(&below, Rules::default());
    assert!(good(&site, &below.rails()));
    let named = GitLab::start();
    named.known_as("https://gitlab.example.com");
    let site = Site::of(&named, Rules::default());
    let token = named.token();
    assert_eq!(token.claims["iss"], "https://gitlab.example.com");
    assert!(good(&site, &named.rails()), "the issuer is what the instance says of itself");
    let by_url = token.claim("iss", json!(named.url()));
    assert!(good(&site, &named.with(&by_url.sign(), "19.3.0")), "or the configured URL");
    let newer = GitLab::start();
    newer.behave(Behaviour::WithoutDiscovery);
    let site = Site::of(&newer, Rules::default());
    assert!(good(&site, &newer.rails()));
    assert_eq!(newer.asked("/-/cloud_connector/keys"), 1);
}

#[test]
fn what_lives_at_the_root_of_the_host_is_another_instance() {
    // The document at the root names an issuer that is not below `/gitlab`.
    let root = GitLab::start();
    let rules = Rules { gitlab: Some(format!("{}/gitlab", root.url()).parse().unwrap()), ..Rules::default() };
    let site = Site::ruled(rules);
    assert_eq!(refused(&site, &root.rails()), FORBIDDEN);
}

#[test]
fn the_customers_portal_is_asked_only_where_it_is_configured() {
    let (gitlab, portal) = (GitLab::start(), GitLab::another());
    let site = Site::of(&gitlab, Rules::default());
    assert!(good(&site, &gitlab.rails()));
    assert_eq!(refused(&site, &portal.rails()), FORBIDDEN);
    assert_eq!(portal.fetches(), 0);
    let rules = Rules { portal: Some(portal.url().parse().unwrap()), ..Rules::default() };
    let site = Site::of(&gitlab, rules.clone());
    assert!(good(&site, &gitlab.rails()) && good(&site, &portal.rails()));
    let crossed = portal.token().claim("iss", json!(gitlab.issuer()));
    assert_eq!(
        refused(&site, &portal.with(&crossed.sign(), "19.3.0")),
        FORBIDDEN,
        "its keys sign for itself only"
    );
    let (gitlab, portal) = (GitLab::start(), GitLab::another());
    portal.behave(Behaviour::Down);
    let rules = Rules { portal: Some(portal.url().parse().unwrap()), ..Rules::default() };
    let site = Site::of(&gitlab, rules);
    assert!(good(&site, &gitlab.rails()), "an unreachable portal does not matter");
}

/// A token for an editor, as GitLab has it made.
fn editor(site: &Site, token: &Token) -> (String, u64) {
    let headers = site.gitlab().with(&token.sign(), "19.3.0");
    let reply = site.open_with("POST", TOKEN, &pairs(&headers), "").reply();
    assert_eq!(reply.status, 200, "{}", reply.body);
    let made = reply.json();
    assert_eq!(made.as_object().unwrap().len(), 2);
    (made["token"].as_str().unwrap().to_owned(), made["expires_at"].as_u64().unwrap())
}

#[test]
fn a_token_for_an_editor_says_what_the_contract_says() {
    let site = Site::start();
    let token =
        site.gitlab().token().claim("gitlab_instance_uid", json!("uid")).claim("duo_seat_count", json!("5"));
    let (made, expires_at) = editor(&site, &token);
    let claims = says(&made);
    for (name, value) in [
        ("iss", json!("gitlab-ai-gateway")),
        ("aud", json!("gitlab-ai-gateway")),
        ("sub", json!(USER)),
        ("exp", json!(expires_at)),
        ("gitlab_realm", json!("self-managed")),
        ("gitlab_instance_id", json!("")),
        ("scopes", json!(["complete_code", "ai_gateway_model_provider_proxy"])),
        ("skip_usage_cutoff", json!(false)),
        ("gitlab_instance_uid", json!("uid")),
        ("duo_seat_count", json!("5")),
    ] {
        assert_eq!(claims[name], value, "{name}");
    }
    assert_eq!(claims["exp"].as_u64().unwrap(), claims["iat"].as_u64().unwrap() + 3600);
    assert_eq!(claims["jti"].as_str().unwrap().len(), 36);
    let header = jsonwebtoken::decode_header(&made).unwrap();
    assert_eq!(
        (header.alg, header.kid.as_deref()),
        (Algorithm::RS256, Some("gitlab-ai-gateway_signing_key"))
    );
    let only = says(&editor(&site, &token.scopes(&["complete_code", "duo_chat"])).0);
    assert_eq!(only["scopes"], json!(["complete_code"]), "what GitLab's token grants, and no more");
}

#[test]
fn who_may_ask_for_a_token_for_an_editor() {
    let site = Site::start();
    let gitlab = site.gitlab();
    let ask = |headers: &[(String, String)]| site.open_with("POST", TOKEN, &pairs(headers), "").reply();
    let lacking = gitlab.with(&gitlab.token().scopes(&["duo_chat", "generate_code"]).sign(), "19.3.0");
    let refusal = json!({"detail": "Unauthorized to create user access token"});
    assert_eq!((ask(&lacking).status, ask(&lacking).json()), (403, refusal.clone()));
    let proxy = gitlab.with(&gitlab.token().scopes(&["ai_gateway_model_provider_proxy"]).sign(), "19.3.0");
    assert_eq!(ask(&proxy).status, 200);
    let oldest = gitlab.with(&gitlab.token().scopes(&["code_suggestions"]).sign(), "17.4.0");
    assert_eq!(ask(&oldest).status, 200, "the oldest GitLab has one scope for all suggestions");
    let nobody = changed(gitlab.rails(), "x-gitlab-global-user-id", "");
    assert_eq!((ask(&nobody).status, ask(&nobody).json()), (422, json!({"detail": "Validation error"})));
    let (made, _) = editor(&site, &gitlab.token());
    let reply = ask(&gitlab.with(&made, "19.3.0"));
    assert_eq!((reply.status, reply.json()), (403, refusal), "a token for an editor makes no other");
    assert_eq!(site.open_with("GET", TOKEN, &pairs(&gitlab.rails()), "").reply().status, 405);
}

#[test]
fn a_token_for_an_editor_is_good_for_its_user_for_an_hour() {
    let (gitlab, clock) = (GitLab::start(), clock());
    let site = Site::of(&gitlab, ruled(&clock));
    let headers = gitlab.rails();
    let made = site.open_with("POST", TOKEN, &pairs(&headers), "").reply().json();
    let direct = gitlab.with(made["token"].as_str().unwrap(), "19.3.0");
    assert!(good(&site, &direct));
    let other = changed(direct.clone(), "X-Gitlab-Global-User-Id", "somebody else");
    assert_eq!(refused(&site, &other), "Header mismatch 'X-Gitlab-Global-User-Id'");
    let nobody = changed(direct.clone(), "X-Gitlab-Global-User-Id", "");
    assert_eq!(refused(&site, &nobody), "Header mismatch 'X-Gitlab-Global-User-Id'");
    assert!(good(&site, &changed(direct.clone(), "X-Gitlab-Instance-Id", "")), "its subject is the user");
    gitlab.behave(Behaviour::Down);
    clock.advance(Duration::from_secs(3659));
    assert!(good(&site, &direct), "and GitLab need not be there");
    clock.advance(Duration::from_secs(1));
    assert_eq!(refused(&site, &direct), FORBIDDEN);
}

#[test]
fn a_token_for_an_editor_opens_completion_and_nothing_else() {
    let site = Site::start();
    site.answers("1");
    let (made, _) = editor(&site, &site.gitlab().token());
    let direct = site.gitlab().with(&made, "19.3.0");
    let file = json!({"file_name": "a.py", "content_above_cursor": "x = ", "content_below_cursor": ""});
    let components = json!({"prompt_components": [{"type": "code_editor_completion", "payload": file}]});
    let bodies = [
        ("/v2/completions", json!({"prompt_version": 1, "current_file": file})),
        ("/v2/code/completions", json!({"prompt_version": 1, "current_file": file})),
        ("/v2/code/generations", json!({"prompt_version": 1, "current_file": file})),
        ("/v3/code/completions", components.clone()),
        ("/v4/code/suggestions", components),
        ("/v1/prompts/{*id}", json!({"inputs": {}})),
        ("/v2/prompts/{*id}", json!({"inputs": {}})),
    ];
    for route in table().into_iter().filter(|route| route.access == Access::GitLab) {
        let body = bodies.iter().find(|(path, _)| *path == route.path).map(|(_, body)| body.clone());
        let path = route.path.replace("{*id}", "model_configuration/check").replace("{name}", "agent");
        let reply = site.post_with(&path, &pairs(&direct), &body.unwrap_or_else(|| json!({})));
        match route.path {
            "/v2/completions" | "/v2/code/completions" => {
                assert_eq!(reply.status, 200, "{path}: {}", reply.body)
            }
            // Those without a body here may say first what they miss.
            path => {
                assert!(matches!(reply.status, 403 | 404 | 422), "{path}: {} {}", reply.status, reply.body)
            }
        }
        if bodies.iter().skip(2).any(|(path, _)| *path == route.path) {
            assert_eq!(reply.status, 403, "{path}: {}", reply.body);
        }
    }
}

#[test]
fn tokens_survive_one_rotation_of_the_gateways_own_key() {
    let directory = tempfile::tempdir().unwrap();
    let gitlab = GitLab::start();
    let start = || {
        let own = OwnKeys::open(directory.path(), None, None).unwrap();
        let rules = Rules { gitlab: Some(gitlab.url().parse().unwrap()), ..Rules::default() };
        Site::with(Identity::new(rules, Some(own)).unwrap())
    };
    let make = |site: &Site| {
        let made = site.open_with("POST", TOKEN, &pairs(&gitlab.rails()), "").reply().json();
        gitlab.with(made["token"].as_str().unwrap(), "19.3.0")
    };
    let first = make(&start());
    let again = start();
    assert!(good(&again, &first), "a restart changes nothing");
    own::rotate(directory.path(), || Ok(())).unwrap();
    let rotated = start();
    let second = make(&rotated);
    assert!(good(&rotated, &first) && good(&rotated, &second));
    assert_eq!(refused(&again, &second), FORBIDDEN, "a running server knows the new key after its restart");
    own::rotate(directory.path(), || Ok(())).unwrap();
    let twice = start();
    assert_eq!(refused(&twice, &first), FORBIDDEN);
    assert!(good(&twice, &second));
}

#[test]
fn scopes_decide_unless_the_administrator_trusts_every_token() {
    let gitlab = GitLab::start();
    let bare = |site: &Site| {
        let headers = gitlab.with(&gitlab.token().scopes(&[]).sign(), "19.3.0");
        site.open_with("POST", TOKEN, &pairs(&headers), "").reply().status
    };
    assert_eq!(bare(&Site::of(&gitlab, Rules::default())), 403);
    let trusting = Site::of(&gitlab, Rules { enforced: false, ..Rules::default() });
    assert_eq!(bare(&trusting), 200);
    // An editor's token opens no more than before.
    let made = trusting.open_with("POST", TOKEN, &pairs(&gitlab.rails()), "").reply().json();
    let direct = gitlab.with(made["token"].as_str().unwrap(), "19.3.0");
    assert_eq!(trusting.open_with("POST", TOKEN, &pairs(&direct), "").reply().status, 403);
}

#[test]
fn the_ways_past_the_check_let_in_whom_they_name() {
    let gitlab = GitLab::start();
    let site = |bypass| Site::of(&gitlab, Rules { bypass, ..Rules::default() });
    let stranger = gitlab.with(&gitlab.token().sign_with(15), "19.3.0");
    let all = site(Bypass::All);
    assert!(good(&all, &[]) && good(&all, &stranger));
    let header = site(Bypass::Header);
    let asks = |value: &str| [("Bypass-Auth".to_owned(), value.to_owned())];
    assert!(good(&header, &asks("true")) && good(&header, &gitlab.rails()));
    assert!(!good(&header, &asks("false")) && !good(&header, &[]) && !good(&header, &stranger));
    let signature = site(Bypass::Signature);
    assert!(good(&signature, &stranger) && !good(&signature, &[]));
    let expired = gitlab.token().shifted(-3700);
    assert_eq!(refused(&signature, &gitlab.with(&expired.sign_with(15), "19.3.0")), FORBIDDEN);
}

#[test]
fn without_keys_of_its_own_the_gateway_says_so() {
    let gitlab = GitLab::start();
    let rules = Rules { gitlab: Some(gitlab.url().parse().unwrap()), ..Rules::default() };
    let site = Site::with(Identity::new(rules, None).unwrap());
    let reply = site.open_with("POST", TOKEN, &pairs(&gitlab.rails()), "").reply();
    assert_eq!((reply.status, reply.json()), (500, json!({"detail": "Failed to generate JWT"})));
    let own = gitlab::pem(OWN);
    assert!(own::OwnKey::read(&own.replace('\n', "\\n")).is_ok(), "as an environment file holds it");
    assert!(own::OwnKey::read(&format!("\"{}\"", own.replace('\n', "\\n"))).is_ok());
}
