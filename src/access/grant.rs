//! What a key opens, and how much of it.

use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::key::Mac;
use crate::server::addresses::Networks;

/// What kinds of routes there are for keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// `/v1/*` and what belongs to it.
    OpenAi,
    /// Changing this server and looking into it.
    Admin,
    /// Figures for Prometheus.
    Metrics,
}

impl Class {
    pub const WORDS: [(&str, Class); 3] =
        [("openai", Class::OpenAi), ("admin", Class::Admin), ("metrics", Class::Metrics)];

    pub fn word(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

impl std::str::FromStr for Class {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::WORDS.iter().find(|(word, _)| *word == text);
        found.map(|(_, class)| *class).ok_or_else(|| "it must be openai, admin or metrics".to_owned())
    }
}

/// A key as it is kept. Fields that only a later version knows are kept as they are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub name: String,
    #[serde(default)]
    pub owner: String,
    pub mac: Mac,
    /// RFC 3339, like all times here.
    pub created: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<String>,
    /// The key that took its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<String>,
    /// Words of [`Class`]; one that is not known opens nothing.
    pub classes: Vec<String>,
    /// Names of models; none: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Where it may be used from; none: anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// A minute. Absent: what the settings say for all keys; 0: any number. So are the other two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u32>,
    /// A minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u32>,
    /// At the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent: Option<u32>,
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A record, checked and ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct Grant {
    pub classes: Vec<Class>,
    /// `None`: all.
    pub models: Option<Vec<String>>,
    /// `None`: from anywhere.
    pub addresses: Option<Networks>,
    /// Seconds since 1970.
    pub expires: Option<i64>,
    pub revoked: bool,
}

impl Grant {
    /// Everything, for ever: what the first key opens.
    pub fn everything() -> Self {
        Self { classes: Class::WORDS.map(|(_, class)| class).to_vec(), ..Self::default() }
    }

    /// Whether a model is open under any of its names.
    pub fn opens<'a>(&self, mut names: impl Iterator<Item = &'a str>) -> bool {
        let Some(models) = &self.models else { return true };
        names.any(|name| models.iter().any(|model| model == name))
    }

    /// Whether it may be used from there. From where nobody knows, only if it does not matter.
    pub fn admits(&self, peer: Option<IpAddr>) -> bool {
        match (&self.addresses, peer) {
            (None, _) => true,
            (Some(networks), Some(peer)) => networks.contains(peer),
            (Some(_), None) => false,
        }
    }
}

/// Where a key stands now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Live,
    Expired,
    Revoked,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Live => "live",
            State::Expired => "expired",
            State::Revoked => "revoked",
        })
    }
}

impl Record {
    /// The text names the field that is wrong.
    pub fn grant(&self) -> Result<Grant, String> {
        if !self.mac.sane() {
            return Err("its `mac` is not 64 hexadecimal digits".to_owned());
        }
        let expires = self.expires.as_deref().map(|text| {
            let time = text.parse::<Timestamp>();
            time.map(Timestamp::as_second).map_err(|e| format!("its `expires` is no time: {e}"))
        });
        let addresses = self.addresses.join(",").parse::<Networks>();
        let addresses = addresses.map_err(|e| format!("its `addresses` must be {e}"))?;
        Ok(Grant {
            classes: self.classes.iter().filter_map(|word| word.parse().ok()).collect(),
            models: Some(self.models.clone()).filter(|models| !models.is_empty()),
            addresses: Some(addresses).filter(|networks| !networks.is_empty()),
            expires: expires.transpose()?,
            revoked: self.revoked.is_some(),
        })
    }

    pub fn state(&self, now: Timestamp) -> State {
        let over = |text: &String| text.parse::<Timestamp>().is_ok_and(|end| end <= now);
        match (&self.revoked, &self.expires) {
            (Some(_), _) => State::Revoked,
            (None, Some(end)) if over(end) => State::Expired,
            _ => State::Live,
        }
    }

    /// What it opens and how much, in words: for the audit log.
    pub fn words(&self) -> String {
        let mut words = vec![self.classes.join("+")];
        for (name, list) in [("models", &self.models), ("addresses", &self.addresses)] {
            if !list.is_empty() {
                words.push(format!("{name} {}", list.join("+")));
            }
        }
        for (name, number) in [
            ("requests/min", self.requests),
            ("tokens/min", self.tokens),
            ("at the same time", self.concurrent),
        ] {
            if let Some(number) = number {
                words.push(format!("{number} {name}"));
            }
        }
        words.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_where_nobody_knows_a_key_for_some_places_is_not_admitted() {
        let grant = |text: &str| Grant { addresses: Some(text.parse().unwrap()), ..Grant::default() };
        let from = |text: &str| Some(text.parse().unwrap());
        assert!(grant("10.0.0.0/8,2001:db8::/32").admits(from("::ffff:10.255.1.2")));
        assert!(grant("10.0.0.0/8,2001:db8::/32").admits(from("2001:db8:1::7")));
        assert!(!grant("10.0.0.0/8,2001:db8::/32").admits(from("11.0.0.1")));
        assert!(!grant("::/0").admits(None));
        assert!(Grant::default().admits(None));
    }

    #[test]
    fn a_model_is_open_under_each_of_its_names() {
        let grant = Grant { models: Some(vec!["codestral".to_owned()]), ..Grant::default() };
        assert!(grant.opens(["codestral-22b", "codestral"].into_iter()));
        assert!(!grant.opens(["codestral-22b"].into_iter()));
        assert!(Grant::everything().opens(["anything"].into_iter()));
    }

    #[test]
    fn a_class_of_a_later_version_opens_nothing_and_stays() {
        let text = r#"{"id":"0123456789","name":"n","mac":"","created":"","classes":["openai","teleport"],"later":[1]}"#;
        let mut record: Record = serde_json::from_str(text).unwrap();
        record.mac = serde_json::from_value("0".repeat(64).into()).unwrap();
        assert_eq!(record.grant().unwrap().classes, [Class::OpenAi]);
        let again = serde_json::to_value(&record).unwrap();
        assert_eq!((&again["classes"][1], &again["later"][0]), (&"teleport".into(), &1.into()));
    }
}
