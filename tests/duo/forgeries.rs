//! Forged tokens, a row each: what the answer says, which is the contract's text and tells an attacker nothing, and
//! what the log says, which tells the administrator what was wrong.

use std::sync::Arc;
use std::time::Duration;

use hearth::duo::identity::Rules;
use hearth::engine::clock::Manual;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use super::gitlab::{self, GitLab, Token, USER, pairs, usual};
use super::log;
use super::site::{OWN, Site};

const FORBIDDEN: &str = "Forbidden by auth provider";
const NONE: &str = "No authorization header presented";
const SCHEME: &str = "Invalid authorization header";
const KIND: &str = "Invalid authentication token type - only OIDC is supported";
const REALM: &str = "Header mismatch 'X-Gitlab-Realm'";
const INSTANCE_ID: &str = "Header mismatch 'X-Gitlab-Instance-Id'";
const USER_ID: &str = "Header mismatch 'X-Gitlab-Global-User-Id'";
const OTHER: &str = "0b9e7a52-0000-4000-8000-000000000000";

const UNREADABLE: &str = "the token's header cannot be read";
const SIGNATURE: &str = "the signature is not that of the key which the token names";
const NAMELESS: &str = "the token names no key, and its signature is that of none of the 1 that are known";
const ISSUER: &str = "the key is GitLab's, but the token names issuer";

type Headers = Vec<(String, String)>;

/// What, the request's headers, the answer's `error`, and what the log's reason begins with.
type Row = (&'static str, Headers, &'static str, String);

/// Asks for a path that nobody serves, so that a token that is good answers 404; under an id, to be found in the log.
fn knock(site: &Site, headers: &Headers, id: &str) -> (u16, Value) {
    let mut headers = pairs(headers);
    headers.push(("X-Request-ID", id));
    let reply = site.post_with("/nowhere", &headers, &json!({}));
    assert_eq!(reply.header("content-type"), Some("application/json"), "{}", reply.body);
    (reply.status, reply.json())
}

/// Refuses every row, and lets a good token in after each: a gateway that refuses everybody passes no row.
fn hold(site: &Site, good: &Headers, rows: Vec<Row>) {
    for (i, (what, headers, error, reason)) in rows.iter().enumerate() {
        let id = format!("forgery-{i}-{}", site.address.port());
        assert_eq!(knock(site, headers, &id), (401, json!({"error": error})), "{what}");
        let told = log::reason(&id);
        assert!(told.starts_with(reason.as_str()), "{what}: the log says {told:?}, not {reason:?}");
        let token = headers.iter().find(|(name, _)| name == "authorization").map_or("", |(_, value)| value);
        let parts = token.split('.').filter(|part| part.len() > 20);
        assert!(parts.into_iter().all(|part| !told.contains(part)), "{what}: the log holds the token");
        assert_eq!(knock(site, good, "good"), (404, json!({"detail": "Not Found"})), "after {what}");
    }
}

/// Headers with one of them changed; an empty value takes it away.
fn changed(mut headers: Headers, name: &str, value: &str) -> Headers {
    headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
    if !value.is_empty() {
        headers.push((name.to_owned(), value.to_owned()));
    }
    headers
}

fn site() -> Site {
    log::listen();
    Site::start()
}

#[test]
fn no_other_signature_than_gitlabs_by_rs256_counts() {
    let site = site();
    let gitlab = site.gitlab();
    let token = || gitlab.token();
    let nameless = || token().header("kid", Value::Null);
    let algorithm = |name: &str| format!("the token is signed with {name}; RS256 is what GitLab uses");
    let unknown =
        |kid: &str| format!("its key {kid:?} is none of the 1 that are known; the token says that it");
    let signed = token().sign();
    let parts: Vec<&str> = signed.split('.').collect();
    let (header, claims, signature) = (parts[0], parts[1], parts[2]);
    let everything = token().claim("scopes", json!(["everything"])).sign();
    let other = everything.split('.').nth(1).unwrap();
    let place = json!(format!("{}/lured", gitlab.url()));
    let rows: Vec<(&str, String, String)> = vec![
        ("no algorithm", token().unsigned("none"), UNREADABLE.into()),
        ("no algorithm, in capitals", token().unsigned("NONE"), UNREADABLE.into()),
        ("no algorithm, in between", token().unsigned("nOnE"), UNREADABLE.into()),
        ("no algorithm, signed all the same", token().sign_by("none", Algorithm::RS256), UNREADABLE.into()),
        ("a good header without a signature", token().unsigned("RS256"), SIGNATURE.into()),
        ("the public key as a secret", token().confused(), algorithm("HS256")),
        (
            "a secret's algorithm, the right signature",
            token().sign_by("HS256", Algorithm::RS256),
            algorithm("HS256"),
        ),
        ("a longer hash of the same key", token().sign_by("RS384", Algorithm::RS384), algorithm("RS384")),
        ("the longest hash of the same key", token().sign_by("RS512", Algorithm::RS512), algorithm("RS512")),
        ("another padding of the same key", token().sign_by("PS256", Algorithm::PS256), algorithm("PS256")),
        ("an elliptic curve named", token().sign_by("ES256", Algorithm::RS256), algorithm("ES256")),
        (
            "one algorithm named, a longer hash used",
            token().sign_by("RS256", Algorithm::RS512),
            SIGNATURE.into(),
        ),
        (
            "one algorithm named, another padding used",
            token().sign_by("RS256", Algorithm::PS256),
            SIGNATURE.into(),
        ),
        ("an algorithm nobody knows", token().sign_by("RS257", Algorithm::RS256), UNREADABLE.into()),
        ("a stranger's key under GitLab's name", token().sign_with(15), SIGNATURE.into()),
        ("a stranger's key without a name", nameless().sign_with(15), NAMELESS.into()),
        (
            "a stranger's key in the header",
            nameless().header("jwk", gitlab::public(15)).sign_with(15),
            NAMELESS.into(),
        ),
        (
            "a place of keys in the header",
            nameless().header("jku", place.clone()).header("x5u", place).sign_with(15),
            NAMELESS.into(),
        ),
        (
            "this gateway's key named, GitLab's used",
            token().header("kid", json!("gitlab-ai-gateway_signing_key")).sign(),
            "the token is not signed with this gateway's keys, which its `kid` names".into(),
        ),
        (
            "this gateway's previous key named, GitLab's used",
            token().header("kid", json!("gitlab-ai-gateway_validation_key")).sign(),
            "the token is not signed with this gateway's keys, which its `kid` names".into(),
        ),
        ("a key that is not published", token().header("kid", json!("nobody")).sign(), unknown("nobody")),
        (
            "a published key that is for encryption",
            token().header("kid", json!("enc")).sign(),
            unknown("enc"),
        ),
        ("a published key of another kind", token().header("kid", json!("ec")).sign(), unknown("ec")),
        (
            "a path for a key",
            token().header("kid", json!("../../etc/passwd")).sign(),
            unknown("../../etc/passwd"),
        ),
        ("a key with a line break", token().header("kid", json!("a\nb")).sign(), unknown("a\nb")),
        ("no name at all for a key", token().header("kid", json!("")).sign(), unknown("")),
        (
            "a long name of a key",
            token().header("kid", json!("k".repeat(10_000))).sign(),
            "the token's `kid` is longer than 128 bytes".into(),
        ),
        ("a number for a key", token().header("kid", json!(7)).sign(), UNREADABLE.into()),
        (
            "an extension that must be known",
            token().header("crit", json!(["exp"])).sign(),
            "the token's header asks for extensions (`crit`) that are not known".into(),
        ),
        ("another payload", format!("{header}.{other}.{signature}"), SIGNATURE.into()),
        ("no payload", format!("{header}..{signature}"), SIGNATURE.into()),
        ("a cut signature", format!("{header}.{claims}.{}", &signature[..100]), SIGNATURE.into()),
        ("no signature and no dot", format!("{header}.{claims}"), UNREADABLE.into()),
        ("a part too many", format!("{signed}.e30"), UNREADABLE.into()),
        ("a header that is no JSON", format!("AAAA.{claims}.{signature}"), UNREADABLE.into()),
        ("another instance's token", GitLab::another().token().sign(), "its key \"".into()),
        ("nothing", String::new(), UNREADABLE.into()),
        ("dots", "..".into(), UNREADABLE.into()),
    ];
    let row = |(what, token, reason): (&'static str, String, String)| {
        (what, gitlab.with(&token, "19.3.0"), FORBIDDEN, reason)
    };
    hold(&site, &gitlab.rails(), rows.into_iter().map(row).collect());
    assert_eq!(gitlab.asked("/lured"), 0, "a place named in a token was asked for keys");
    assert_eq!(gitlab.fetches(), 1, "unknown keys are looked for at most once a minute");
}

#[test]
fn every_claim_is_there_and_says_the_right_thing() {
    log::listen();
    let gitlab = &GitLab::start();
    let good = gitlab.token();
    let token = || good.clone();
    let now = good.claims["iat"].as_i64().unwrap();
    let clock = Manual::default();
    clock.advance(Duration::from_secs(now as u64));
    let site = Site::of(gitlab, Rules { clock: Arc::new(clock), ..Rules::default() });
    let missing = |name: &str| format!("the claim `{name}` is missing");
    let subject = |says: &str| format!("the claim `sub` is {says:?} and not an instance's id");
    let audience = "the token is for";
    let number = |name: &str| format!("the claim `{name}` is not a number of seconds");
    let text = |name: &str| format!("the claim `{name}` is not text");
    let ahead =
        |name: &str, by: u32| format!("the claim `{name}` is {by} s in the future: the clocks of GitLab");
    let job = "project_path:group/project:ref_type:branch:ref:main";
    let rows: Vec<(&str, Token, String)> = vec![
        ("no issuer", token().without("iss"), missing("iss")),
        ("no subject", token().without("sub"), missing("sub")),
        ("no audience", token().without("aud"), missing("aud")),
        ("no end", token().without("exp"), missing("exp")),
        ("no realm, as a user's or a job's", token().without("gitlab_realm"), missing("gitlab_realm")),
        ("no scopes, as a user's or a job's", token().without("scopes"), missing("scopes")),
        ("an empty issuer", token().claim("iss", json!("")), missing("iss")),
        ("an empty subject", token().claim("sub", json!("")), missing("sub")),
        ("an empty realm", token().claim("gitlab_realm", json!("")), missing("gitlab_realm")),
        ("scopes that are nothing", token().claim("scopes", Value::Null), missing("scopes")),
        ("another issuer", token().claim("iss", json!("https://gitlab.evil.example")), ISSUER.into()),
        (
            "an issuer that begins alike",
            token().claim("iss", json!(gitlab.issuer() + ".evil.example")),
            ISSUER.into(),
        ),
        ("this gateway as the issuer", token().claim("iss", json!("gitlab-ai-gateway")), ISSUER.into()),
        ("an issuer in a list", token().claim("iss", json!([gitlab.issuer()])), text("iss")),
        ("a number as the subject", token().claim("sub", json!(7)), text("sub")),
        ("a user as the subject", token().claim("sub", json!("42")), subject("42")),
        ("a job as the subject", token().claim("sub", json!(job)), subject(job)),
        (
            "another audience",
            token().claim("aud", json!("gitlab-duo-workflow-service")),
            format!("{audience} \"gitlab-duo-workflow-service\", not for \"gitlab-ai-gateway\""),
        ),
        ("other audiences", token().claim("aud", json!(["a", "gitlab-ai-gateway2"])), audience.into()),
        ("an audience in capitals", token().claim("aud", json!("GITLAB-AI-GATEWAY")), audience.into()),
        ("no audience in the list", token().claim("aud", json!([])), format!("{audience} []")),
        (
            "an audience that is neither",
            token().claim("aud", json!({"gitlab-ai-gateway": 1})),
            "the claim `aud` is neither text nor a list".into(),
        ),
        ("expired beyond the leeway", token().shifted(-3661), "the token expired 61 s ago".into()),
        ("expired for long", token().shifted(-1_000_000), "the token expired 996400 s ago".into()),
        ("expired before there was time", token().claim("exp", json!(-1)), "the token expired".into()),
        ("not yet valid", token().claim("nbf", json!(now + 61)), ahead("nbf", 61)),
        ("made in the future", token().claim("iat", json!(now + 61)), ahead("iat", 61)),
        ("a token of tomorrow", token().shifted(86_400), ahead("nbf", 86_395)),
        ("an end as text", token().claim("exp", json!((now + 3600).to_string())), number("exp")),
        ("an end that is nothing", token().claim("exp", Value::Null), number("exp")),
        ("a beginning as text", token().claim("nbf", json!("soon")), number("nbf")),
        ("a time of making in a list", token().claim("iat", json!([now])), number("iat")),
        (
            "scopes as text",
            token().claim("scopes", json!("complete_code generate_code")),
            "the claim `scopes` is not a list".into(),
        ),
        ("a realm that is a number", token().claim("gitlab_realm", json!(1)), text("gitlab_realm")),
        (
            "an instance that is an object",
            token().claim("gitlab_instance_id", json!({})),
            text("gitlab_instance_id"),
        ),
    ];
    let row = |(what, token, reason): (&'static str, Token, String)| {
        let mut headers = gitlab.with(&token.sign(), "19.3.0");
        // What the header says is as good as it can be: the token alone is wrong.
        if let Some(subject) = token.claims.get("sub").and_then(Value::as_str) {
            headers = changed(headers, "x-gitlab-instance-id", subject);
        }
        (what, headers, FORBIDDEN, reason)
    };
    hold(&site, &gitlab.with(&good.sign(), "19.3.0"), rows.into_iter().map(row).collect());
    for name in ["nbf", "iat", "jti", "skip_usage_cutoff"] {
        let headers = gitlab.with(&token().without(name).sign(), "19.3.0");
        assert_eq!(knock(&site, &headers, "good").0, 404, "{name} may be missing");
    }
}

#[test]
fn headers_that_are_missing_or_say_something_else_than_the_token_are_refused_in_the_contracts_order() {
    let site = site();
    let gitlab = site.gitlab();
    let rails = || gitlab.rails();
    let claimed =
        |name: &str, value: &str| gitlab.with(&gitlab.token().claim(name, json!(value)).sign(), "19.3.0");
    let says = |header: &str, claim: &str, value: &str| {
        let header = if header.is_empty() { "is missing".to_owned() } else { format!("is {header:?}") };
        format!("the header {header}, the claim `{claim}` is {value:?}: a restored or cloned GitLab")
    };
    let instance = gitlab::INSTANCE;
    let kind = "X-Gitlab-Authentication-Type is not \"oidc\"";
    let rows: Vec<Row> = vec![
        ("no headers", Vec::new(), NONE, "no token".into()),
        ("no token", usual("19.3.0"), NONE, "no token".into()),
        (
            "no token and another kind",
            changed(usual("19.3.0"), "x-gitlab-authentication-type", "x"),
            NONE,
            "no".into(),
        ),
        (
            "another scheme",
            changed(rails(), "authorization", "Basic abc"),
            SCHEME,
            "the scheme is not".into(),
        ),
        (
            "no scheme",
            changed(rails(), "authorization", &gitlab.token().sign()),
            SCHEME,
            "the scheme is".into(),
        ),
        (
            "another scheme and another kind",
            changed(changed(rails(), "authorization", "Token x"), "x-gitlab-authentication-type", "x"),
            SCHEME,
            "the scheme is not Bearer".into(),
        ),
        ("no kind", changed(rails(), "x-gitlab-authentication-type", ""), KIND, kind.into()),
        ("a kind in capitals", changed(rails(), "x-gitlab-authentication-type", "OIDC"), KIND, kind.into()),
        (
            "another kind and a forged token",
            changed(gitlab.with("x.y.z", "19.3.0"), "x-gitlab-authentication-type", "x"),
            KIND,
            kind.into(),
        ),
        (
            "another realm",
            changed(rails(), "x-gitlab-realm", "saas"),
            REALM,
            says("saas", "gitlab_realm", "self-managed"),
        ),
        ("no realm", changed(rails(), "x-gitlab-realm", ""), REALM, says("", "gitlab_realm", "self-managed")),
        (
            "a realm claimed",
            claimed("gitlab_realm", "saas"),
            REALM,
            says("self-managed", "gitlab_realm", "saas"),
        ),
        (
            "another instance",
            changed(rails(), "x-gitlab-instance-id", OTHER),
            INSTANCE_ID,
            says(OTHER, "sub", instance),
        ),
        ("no instance", changed(rails(), "x-gitlab-instance-id", ""), INSTANCE_ID, says("", "sub", instance)),
        ("a subject claimed", claimed("sub", OTHER), INSTANCE_ID, says(instance, "sub", OTHER)),
        (
            "an instance claimed",
            claimed("gitlab_instance_id", OTHER),
            INSTANCE_ID,
            says(instance, "gitlab_instance_id", OTHER),
        ),
        (
            "another realm and a forged token",
            changed(gitlab.with(&gitlab.token().sign_with(15), "19.3.0"), "x-gitlab-realm", "saas"),
            FORBIDDEN,
            SIGNATURE.into(),
        ),
    ];
    hold(&site, &gitlab.rails(), rows);
}

#[test]
fn an_editors_token_is_as_hard_to_forge() {
    let site = site();
    let gitlab = site.gitlab();
    let service = "gitlab-ai-gateway";
    // Signed with the gateway's own key, as only the gateway can: what such a token must say.
    let own = |issuer: &str| {
        Token::new(OWN, issuer, gitlab.now())
            .header("kid", json!("gitlab-ai-gateway_signing_key"))
            .claim("sub", json!(USER))
            .scopes(&["complete_code"])
    };
    let with = |token: &Token| gitlab.with(&token.sign(), "19.3.0");
    assert_eq!(knock(&site, &with(&own(service)), "good").0, 404, "as the gateway makes them");
    let issuer = "a token of the gateway's own names issuer";
    let rows: Vec<Row> = vec![
        ("GitLab's name", with(&own(&gitlab.issuer())), FORBIDDEN, issuer.into()),
        ("another name", with(&own("gitlab-ai-gateway2")), FORBIDDEN, issuer.into()),
        (
            "GitLab's key",
            gitlab.with(&own(service).sign_with(0), "19.3.0"),
            FORBIDDEN,
            "the token is not signed with this gateway's keys".into(),
        ),
        (
            "another audience",
            with(&own(service).claim("aud", json!("x"))),
            FORBIDDEN,
            "the token is for \"x\"".into(),
        ),
        ("no audience", with(&own(service).without("aud")), FORBIDDEN, "the claim `aud` is missing".into()),
        ("no end", with(&own(service).without("exp")), FORBIDDEN, "the claim `exp` is missing".into()),
        ("no user", with(&own(service).without("sub")), FORBIDDEN, "the claim `sub` is missing".into()),
        ("expired", with(&own(service).shifted(-3700)), FORBIDDEN, "the token expired 10".into()),
        (
            "the public key as a secret",
            gitlab.with(&own(service).confused(), "19.3.0"),
            FORBIDDEN,
            "the token is signed with HS256".into(),
        ),
        (
            "another user",
            changed(with(&own(service)), "x-gitlab-global-user-id", "somebody else"),
            USER_ID,
            format!("the header is \"somebody else\", the claim `sub` is {USER:?}"),
        ),
        (
            "no user in the headers",
            changed(with(&own(service)), "x-gitlab-global-user-id", ""),
            USER_ID,
            "the header is missing, the claim `sub` is".into(),
        ),
        (
            "another realm",
            changed(with(&own(service)), "x-gitlab-realm", "saas"),
            REALM,
            "the header is \"saas\", the claim `gitlab_realm` is".into(),
        ),
    ];
    hold(&site, &gitlab.rails(), rows);
}
