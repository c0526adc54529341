//! What a token says, read strictly: the JWT library accepts tokens that lack claims, so that each is asked for here,
//! against a clock that tests can move.

use serde_json::{Map, Value};

/// What a token must say.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    pub audience: &'a str,
    /// Seconds since 1970.
    pub now: f64,
    /// Seconds by which clocks may differ.
    pub leeway: f64,
}

/// The claims that count here. One that a token does not carry is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims {
    pub issuer: String,
    pub subject: String,
    pub realm: String,
    pub instance: String,
    /// `None`: the token has no such list.
    pub scopes: Option<Vec<String>>,
    /// Claims that a token made from this one repeats.
    pub repeated: Map<String, Value>,
}

/// Claims that are not looked at here, and that the token for an editor repeats.
const REPEATED: [&str; 4] =
    ["duo_seat_count", "skip_usage_cutoff", "gitlab_instance_uid", "gitlab_root_namespace_id"];

/// A refusal's reason, for the log: names claims and times, and of texts only issuer and audience.
pub type Reason = String;

impl Claims {
    /// Reads the claims of a token whose signature is good.
    pub fn read(token: &Map<String, Value>, expected: &Expected<'_>) -> Result<Self, Reason> {
        let audience = match token.get("aud") {
            Some(Value::String(one)) => one == expected.audience,
            Some(Value::Array(all)) => all.iter().any(|one| one == expected.audience),
            Some(_) => return Err("the claim `aud` is neither text nor a list".to_owned()),
            None => return Err("the claim `aud` is missing".to_owned()),
        };
        if !audience {
            let (of, wanted) = (brief(&token["aud"]), expected.audience);
            return Err(format!("the token is for {of}, not for \"{wanted}\" (gitlab.audience)"));
        }
        let Expected { now, leeway, .. } = *expected;
        let exp = time(token, "exp")?.ok_or("the claim `exp` is missing")?;
        if now >= exp + leeway {
            return Err(format!("the token expired {:.0} s ago", now - exp));
        }
        for name in ["nbf", "iat"] {
            if let Some(ahead) = time(token, name)?.map(|time| time - now).filter(|ahead| *ahead > leeway) {
                return Err(format!(
                    "the claim `{name}` is {ahead:.0} s in the future: the clocks of GitLab and of this host differ \
                     (gitlab.leeway allows {leeway} s)"
                ));
            }
        }
        let required = |name: &str| match text(token, name)? {
            empty if empty.is_empty() => Err(format!("the claim `{name}` is missing")),
            text => Ok(text),
        };
        let scopes = match token.get("scopes") {
            None | Some(Value::Null) => None,
            Some(Value::Array(list)) => {
                Some(list.iter().filter_map(|s| s.as_str().map(str::to_owned)).collect())
            }
            Some(_) => return Err("the claim `scopes` is not a list".to_owned()),
        };
        let repeated = REPEATED
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), token.get(*name)?.clone())))
            .collect();
        Ok(Self {
            issuer: required("iss")?,
            subject: required("sub")?,
            realm: text(token, "gitlab_realm")?,
            instance: text(token, "gitlab_instance_id")?,
            scopes,
            repeated,
        })
    }

    /// Refuses a token that a provider did not make for an instance's own requests. GitLab publishes the keys of all
    /// its tokens in one set, and a CI job may ask for a token with any audience (`id_tokens`): what it cannot get is
    /// a realm, scopes, and the instance for a subject.
    pub fn of_instance(&self) -> Result<(), Reason> {
        let other =
            "GitLab signs such tokens for CI jobs and for users, not for its requests to this gateway";
        if self.realm.is_empty() {
            return Err(format!("the claim `gitlab_realm` is missing: {other}"));
        }
        if self.scopes.is_none() {
            return Err(format!("the claim `scopes` is missing: {other}"));
        }
        if !is_instance(&self.subject) {
            let subject = brief(&Value::from(self.subject.as_str()));
            return Err(format!("the claim `sub` is {subject} and not an instance's id: {other}"));
        }
        Ok(())
    }
}

/// Whether a text has the form of an instance's id, a UUID.
pub fn is_instance(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

fn time(token: &Map<String, Value>, name: &str) -> Result<Option<f64>, Reason> {
    match token.get(name) {
        None => Ok(None),
        Some(value) => {
            value.as_f64().map(Some).ok_or_else(|| format!("the claim `{name}` is not a number of seconds"))
        }
    }
}

/// A claim's text; empty when it is not there.
fn text(token: &Map<String, Value>, name: &str) -> Result<String, Reason> {
    match token.get(name) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("the claim `{name}` is not text")),
    }
}

/// A value for the log, on one line and not long.
pub fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(200) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: f64 = 1_750_000_000.0;

    fn good() -> Map<String, Value> {
        let Value::Object(claims) = json!({
            "iss": "https://gitlab.example.com", "sub": "instance", "aud": ["gitlab-ai-gateway", "other"],
            "exp": NOW + 3600.0, "nbf": NOW - 5.0, "iat": NOW, "scopes": ["complete_code"],
            "gitlab_realm": "self-managed", "skip_usage_cutoff": true, "unknown": {"nested": []},
        }) else {
            panic!()
        };
        claims
    }

    fn read(change: impl FnOnce(&mut Map<String, Value>)) -> Result<Claims, Reason> {
        let mut claims = good();
        change(&mut claims);
        Claims::read(&claims, &Expected { audience: "gitlab-ai-gateway", now: NOW, leeway: 60.0 })
    }

    #[test]
    fn what_gitlab_says_is_read() {
        let claims = read(|_| {}).unwrap();
        assert_eq!(claims.issuer, "https://gitlab.example.com");
        assert_eq!(claims.scopes, Some(vec!["complete_code".to_owned()]));
        assert_eq!(Value::Object(claims.repeated), json!({"skip_usage_cutoff": true}));
        assert!(read(|c| c["aud"] = json!("gitlab-ai-gateway")).is_ok(), "one audience may stand alone");
        assert!(read(|c| drop(c.remove("nbf"))).is_ok());
        assert!(read(|c| drop(c.remove("scopes"))).unwrap().scopes.is_none());
    }

    #[test]
    fn the_leeway_holds_on_both_sides() {
        let at = |name: &'static str, offset: f64| read(move |c| c[name] = json!(NOW + offset));
        assert!(at("exp", -59.0).is_ok());
        assert!(at("exp", -60.0).unwrap_err().contains("expired 60 s ago"));
        assert!(at("nbf", 60.0).is_ok());
        assert!(at("nbf", 61.0).unwrap_err().contains("`nbf` is 61 s in the future"));
        assert!(at("iat", 60.0).is_ok());
        assert!(at("iat", 61.0).is_err());
    }

    #[test]
    fn each_claim_must_be_there_and_be_what_it_is() {
        for name in ["iss", "sub", "aud", "exp"] {
            let error = read(|c| drop(c.remove(name))).unwrap_err();
            assert_eq!(error, format!("the claim `{name}` is missing"));
        }
        for (name, value) in [
            ("iss", json!(["https://gitlab.example.com"])),
            ("iss", json!("")),
            ("sub", json!(7)),
            ("sub", json!(null)),
            ("aud", json!([])),
            ("aud", json!("gitlab-ai-gateway-2")),
            ("aud", json!(["gitlab-duo-workflow-service"])),
            ("aud", json!({"gitlab-ai-gateway": 1})),
            ("exp", json!("1900000000")),
            ("exp", json!(null)),
            ("exp", json!(-1)),
            ("nbf", json!("soon")),
            ("iat", json!([1])),
            ("scopes", json!("complete_code")),
            ("gitlab_realm", json!(1)),
            ("gitlab_instance_id", json!({})),
        ] {
            assert!(read(|c| drop(c.insert(name.into(), value.clone()))).is_err(), "{name} {value}");
        }
    }

    #[test]
    fn what_gitlab_signs_for_others_is_not_an_instances_token() {
        let instance = "5f2a7c1e-8a55-4d5b-9f5e-0d8c2f1b7a10";
        let of_instance = |name: &'static str, value: Value| {
            let change = move |c: &mut Map<String, Value>| {
                c["sub"] = json!(instance);
                c[name] = value;
            };
            read(change).unwrap().of_instance()
        };
        assert_eq!(of_instance("scopes", json!([])), Ok(()));
        for (name, value, reason) in [
            ("gitlab_realm", json!(null), "the claim `gitlab_realm` is missing"),
            ("gitlab_realm", json!(""), "the claim `gitlab_realm` is missing"),
            ("scopes", json!(null), "the claim `scopes` is missing"),
            ("sub", json!("project_path:group/project:ref_type:branch:ref:main"), "not an instance's id"),
            ("sub", json!("42"), "not an instance's id"),
            ("sub", json!(format!("{instance}0")), "not an instance's id"),
            ("sub", json!(instance.replace('5', ":")), "not an instance's id"),
            ("sub", json!("é".repeat(18)), "not an instance's id"),
        ] {
            let error = of_instance(name, value.clone()).unwrap_err();
            assert!(error.contains(reason), "{name} {value}: {error}");
        }
    }
}
