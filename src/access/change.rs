//! Changes of the keys: made, revoked, made anew. Command line and console both come through here.
//!
//! Each change is on the disk beside the old file, then in the audit log, then in place: a disk that is full or read-only, or
//! an audit log that cannot be written, leaves everything as it was. A running server sees the new file within a second.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::first::FIRST;
use super::grant::{Class, Record, State};
use super::key::{NewKey, Pepper};
use super::store::{FILE, Lock, Store};
use crate::audit::{Audit, AuditError, Event, Who};
use crate::config::ConfigError;
use crate::config::state::Replacement;
use crate::server::addresses::Networks;

/// What a new key is to open.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub name: String,
    pub owner: String,
    /// None: `openai` alone.
    pub classes: Vec<Class>,
    pub models: Vec<String>,
    pub addresses: Vec<String>,
    pub expires: Option<Timestamp>,
    /// `None`: what the settings say for all keys; 0: any number. So are the other two.
    pub requests: Option<u32>,
    pub tokens: Option<u32>,
    pub concurrent: Option<u32>,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("{0}")]
    Store(#[from] ConfigError),
    #[error("{0}")]
    Audit(#[from] AuditError),
    #[error("{path} cannot be written: {error}", path = path.display())]
    Disk { path: PathBuf, error: io::Error },
    #[error("`{field}` is {value:?}: {expected}")]
    Field { field: &'static str, value: String, expected: String },
    #[error("there is no key {which:?}")]
    Unknown { which: String },
    #[error("there are several keys with the name {which:?}: {}", ids.join(", "))]
    Ambiguous { which: String, ids: Vec<String> },
    #[error("there is a key with the name {name:?}: {id}")]
    Taken { name: String, id: String },
    #[error("the key {id} is {state}")]
    Gone { id: String, state: State },
    #[error("there are {} keys, and no more fit", Store::most())]
    Full,
    #[error("the first key cannot be revoked: the server makes it again when it is missing")]
    First,
}

impl ChangeError {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::Store(error) => error.fix.clone(),
            Self::Audit(error) => error.fix().to_owned(),
            Self::Disk { .. } => {
                "make room or make the state directory writable; nothing was changed".to_owned()
            }
            Self::Field { .. } => "correct it; nothing was changed".to_owned(),
            Self::Unknown { .. } => "`hearth keys list --all` has all ids and names".to_owned(),
            Self::Ambiguous { .. } => "name one by its id".to_owned(),
            Self::Taken { .. } => "choose another name, or `hearth keys rotate` that one".to_owned(),
            Self::Gone { .. } => "create a new one".to_owned(),
            Self::Full => {
                "remove entries of revoked keys from keys.json while the server is stopped".to_owned()
            }
            Self::First => format!("`hearth keys rotate {FIRST}` makes a new one in its place"),
        }
    }
}

/// The keys of a state directory, for those who may change them.
#[derive(Clone, Debug)]
pub struct Keys {
    directory: PathBuf,
    audit: Audit,
}

impl Keys {
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), audit: Audit::at(directory) }
    }

    /// Where they are kept.
    pub fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// Every entry, oldest first.
    pub fn list(&self) -> Result<Vec<Record>, ChangeError> {
        Ok(Store::read(&self.directory)?.keys)
    }

    /// Makes a key. Its text is in the answer and nowhere else.
    pub fn create(&self, who: &Who, wanted: &Wanted) -> Result<(Record, NewKey), ChangeError> {
        let (_lock, mut store) = self.open()?;
        let now = Timestamp::now();
        let alike = store
            .keys
            .iter()
            .find(|key| key.name == wanted.name && key.state(now) == State::Live && key.successor.is_none());
        if let Some(key) = alike {
            return Err(ChangeError::Taken { name: wanted.name.clone(), id: key.id.clone() });
        }
        let (record, key) = self.add(&mut store, wanted.check(now)?)?;
        let event = Event::KeyCreated {
            id: record.id.clone(),
            name: record.name.clone(),
            owner: record.owner.clone(),
            grants: record.words(),
            expires: record.expires.clone().unwrap_or_default(),
        };
        self.write(&store, who, &event)?;
        Ok((record, key))
    }

    /// From now on the key of that id, or every key of that name, is good for nothing: whoever says a name also means the
    /// key that it replaced and that has some time left. Entries stay, so that the log's ids keep their names.
    pub fn revoke(&self, who: &Who, which: &str) -> Result<Vec<Record>, ChangeError> {
        if which == FIRST {
            return Err(ChangeError::First);
        }
        let (_lock, mut store) = self.open()?;
        let by_id = store.keys.iter().any(|key| key.id == which);
        let meant = |key: &Record| if by_id { key.id == which } else { key.name == which };
        let Some(one) = store.keys.iter().find(|key| meant(key)) else {
            return Err(ChangeError::Unknown { which: which.to_owned() });
        };
        let gone = ChangeError::Gone { id: one.id.clone(), state: State::Revoked };
        let now = written(Timestamp::now());
        let mut revoked = Vec::new();
        for key in store.keys.iter_mut().filter(|key| meant(key) && key.revoked.is_none()) {
            key.revoked = Some(now.clone());
            revoked.push(key.clone());
        }
        let ids: Vec<&str> = revoked.iter().map(|key| key.id.as_str()).collect();
        let Some(first) = revoked.first() else { return Err(gone) };
        let event = Event::KeyRevoked { id: ids.join(","), name: first.name.clone() };
        self.write(&store, who, &event)?;
        Ok(revoked)
    }

    /// Makes a key that opens the same for as long; the old one stays good until then, or ends now.
    pub fn rotate(
        &self,
        who: &Who,
        which: &str,
        until: Option<Timestamp>,
    ) -> Result<(Record, NewKey), ChangeError> {
        let (_lock, mut store) = self.open()?;
        let at = find(&store.keys, which)?;
        let now = Timestamp::now();
        let old = store.keys[at].clone();
        if old.state(now) != State::Live {
            return Err(ChangeError::Gone { id: old.id.clone(), state: old.state(now) });
        }
        let (record, key) = self.add(&mut store, Record { more: old.more.clone(), ..old.clone() })?;
        let ends = old.expires.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
        let end = until.unwrap_or(now);
        let end = written(ends.map_or(end, |ends| ends.min(end)));
        store.keys[at].expires = Some(end.clone());
        store.keys[at].successor = Some(record.id.clone());
        let until = if until.is_some() { end } else { String::new() };
        let event = Event::KeyRotated { id: old.id, name: old.name, successor: record.id.clone(), until };
        self.write(&store, who, &event)?;
        Ok((record, key))
    }

    fn open(&self) -> Result<(Lock, Store), ChangeError> {
        let lock = Lock::take(&self.directory)?;
        let mut store = Store::read(&self.directory)?;
        if store.pepper.is_none() {
            store.pepper = Some(Pepper::get_or_make(&self.directory)?);
        }
        Ok((lock, store))
    }

    /// Adds an entry like `record` with an id and a secret of its own.
    fn add(&self, store: &mut Store, record: Record) -> Result<(Record, NewKey), ChangeError> {
        if store.full() {
            return Err(ChangeError::Full);
        }
        let key = std::iter::repeat_with(NewKey::random)
            .find(|key| store.keys.iter().all(|other| other.id != key.id))
            .expect("bug: ids do not end");
        let pepper = store.pepper.as_ref().expect("bug: keys are opened with their secret");
        let record = Record {
            id: key.id.clone(),
            mac: pepper.mac(key.expose()),
            created: written(Timestamp::now()),
            revoked: None,
            successor: None,
            ..record
        };
        store.keys.push(record.clone());
        Ok((record, key))
    }

    fn write(&self, store: &Store, who: &Who, event: &Event) -> Result<(), ChangeError> {
        let failed = |error| ChangeError::Disk { path: self.path(), error };
        self.commit(store.prepare().map_err(failed)?, &self.path(), who, event)
    }

    /// The order of every change: on the disk, in the audit log, in place.
    pub(super) fn commit(
        &self,
        prepared: Replacement,
        path: &Path,
        who: &Who,
        event: &Event,
    ) -> Result<(), ChangeError> {
        self.audit.record(who, event)?;
        prepared.commit().map_err(|error| {
            self.audit.note(&Who::Server, &Event::ChangeFailed { of: event.name(), what: error.to_string() });
            ChangeError::Disk { path: path.to_owned(), error }
        })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// The key of that id; else the live one of that name; else the only one that ever had it.
fn find(keys: &[Record], which: &str) -> Result<usize, ChangeError> {
    if let Some(at) = keys.iter().position(|key| key.id == which) {
        return Ok(at);
    }
    let now = Timestamp::now();
    let named: Vec<usize> = (0..keys.len()).filter(|at| keys[*at].name == which).collect();
    let live: Vec<usize> = named
        .iter()
        .copied()
        .filter(|at| keys[*at].state(now) == State::Live && keys[*at].successor.is_none())
        .collect();
    match (&live[..], &named[..]) {
        ([at], _) | ([], [at]) => Ok(*at),
        ([], []) => Err(ChangeError::Unknown { which: which.to_owned() }),
        _ => Err(ChangeError::Ambiguous {
            which: which.to_owned(),
            ids: named.iter().map(|at| keys[*at].id.clone()).collect(),
        }),
    }
}

/// A time as files have it: to the second.
fn written(time: Timestamp) -> String {
    format!("{time:.0}")
}

impl Wanted {
    fn check(&self, now: Timestamp) -> Result<Record, ChangeError> {
        let wrong = |field, value: &str, expected: &str| {
            let value = value.chars().take(80).collect();
            Err(ChangeError::Field { field, value, expected: expected.to_owned() })
        };
        let plain = |text: &str| {
            text.chars().count() <= 64 && text.trim() == text && !text.chars().any(char::is_control)
        };
        if self.name.is_empty() || !plain(&self.name) {
            return wrong("name", &self.name, "1 to 64 characters, without blanks at its ends");
        }
        if self.name == FIRST {
            return wrong("name", &self.name, "that is what the key of the settings is called");
        }
        if !plain(&self.owner) {
            return wrong("owner", &self.owner, "64 characters at most, without blanks at its ends");
        }
        for model in &self.models {
            if model.is_empty() || model.len() > 200 || model.chars().any(char::is_control) {
                return wrong("models", model, "a model's name, as in requests");
            }
        }
        let mut addresses = Vec::new();
        for text in &self.addresses {
            match text.parse::<Networks>() {
                Ok(networks) if !networks.is_empty() => addresses.push(networks.to_string()),
                Ok(_) => return wrong("addresses", text, "it must be networks or addresses like 10.0.0.0/8"),
                Err(e) => return wrong("addresses", text, &format!("it must be {e}")),
            }
        }
        if let Some(end) = self.expires.filter(|end| *end <= now) {
            return wrong("expires", &written(end), "it is in the past");
        }
        let mut classes = self.classes.clone();
        if classes.is_empty() {
            classes.push(Class::OpenAi);
        }
        classes.sort_unstable();
        classes.dedup();
        Ok(Record {
            id: String::new(),
            name: self.name.clone(),
            owner: self.owner.clone(),
            mac: serde_json::from_value("".into()).expect("bug: a text is a text"),
            created: String::new(),
            expires: self.expires.map(written),
            revoked: None,
            successor: None,
            classes: classes.iter().map(|class| class.word().to_owned()).collect(),
            models: self.models.clone(),
            addresses,
            requests: self.requests,
            tokens: self.tokens,
            concurrent: self.concurrent,
            more: Default::default(),
        })
    }
}
