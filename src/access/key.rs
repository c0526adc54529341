//! The text of a key and what is kept of it.
//!
//! A key is `hearth_ID_SECRET`: ten hexadecimal digits that may be shown anywhere and find its entry, and 64 that are 256
//! random bits. Kept is the HMAC-SHA-256 of the whole text under a secret of this installation: random bits need no slow
//! hash, and whoever can write the file of keys alone, as with a backup, cannot make a key that is good.

use std::fmt;
use std::path::Path;

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};

use crate::config::state::Kept;
use crate::config::{ConfigError, Origin};

const PREFIX: &str = "hearth_";
const ID: usize = 10;
const SECRET: usize = 64;

/// A key that was made now. Nothing keeps it; it is shown once.
pub struct NewKey {
    pub id: String,
    text: String,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewKey({})", self.id)
    }
}

impl NewKey {
    pub fn random() -> Self {
        let id = random::<{ ID / 2 }>();
        let text = format!("{PREFIX}{id}_{}", random::<{ SECRET / 2 }>());
        Self { id, text }
    }

    /// To show it, once.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

fn random<const BYTES: usize>() -> String {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).expect("bug: the system gives no random numbers");
    hex(&bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The id in a text that looks like a key of the store.
pub fn id_of(text: &str) -> Option<&str> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    (id.len() == ID && secret.len() == SECRET).then_some(id)
}

/// What is kept of a key. It has no `PartialEq`: only [`Pepper::is`] compares, in constant time.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mac(String);

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Mac {
    fn bytes(&self) -> Option<Vec<u8>> {
        if self.0.len() != 64 || !self.0.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        (0..32).map(|at| u8::from_str_radix(&self.0[2 * at..2 * at + 2], 16).ok()).collect()
    }

    /// Whether it has the form of one.
    pub fn sane(&self) -> bool {
        self.bytes().is_some()
    }
}

const FILE: Kept =
    Kept { name: "keys.hmac", what: "the secret that keys are hashed with", instead: "HEARTH_KEY" };

/// The secret of this installation that keys are hashed with, in a file of its own beside the keys.
#[derive(Clone)]
pub struct Pepper(hmac::Key);

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Pepper {
    /// The one of the state directory, if there is one.
    pub fn get(directory: &Path) -> Result<Option<Self>, ConfigError> {
        FILE.get(directory)?.map(|text| Self::of_text(directory, &text)).transpose()
    }

    /// The one of the state directory, made on the first call.
    pub fn get_or_make(directory: &Path) -> Result<Self, ConfigError> {
        let (text, _) = FILE.get_or_make(directory, || random::<32>() + "\n")?;
        Self::of_text(directory, &text)
    }

    fn of_text(directory: &Path, text: &str) -> Result<Self, ConfigError> {
        let secret = Mac(text.trim().to_owned()).bytes().ok_or_else(|| {
            let fix = "restore it from a backup together with keys.json; without it no key of keys.json is good: move \
                       both away and create new keys";
            ConfigError::new(&Origin::File(FILE.path(directory)), "it is not 64 hexadecimal digits", fix)
        })?;
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &secret)))
    }

    /// What is kept of a text.
    pub fn mac(&self, text: &str) -> Mac {
        Mac(hex(hmac::sign(&self.0, text.as_bytes()).as_ref()))
    }

    /// Whether this is what was kept of the text. The time does not depend on how much of it is right.
    pub fn is(&self, text: &str, kept: &Mac) -> bool {
        kept.bytes().is_some_and(|kept| hmac::verify(&self.0, text.as_bytes(), &kept).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_whole_text_and_under_its_own_secret() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Pepper::get(directory.path()).unwrap().is_none());
        let pepper = Pepper::get_or_make(directory.path()).unwrap();
        let key = NewKey::random();
        let kept = pepper.mac(key.expose());
        assert_eq!(id_of(key.expose()), Some(key.id.as_str()));
        assert!(Pepper::get(directory.path()).unwrap().unwrap().is(key.expose(), &kept));
        for at in 0..key.expose().len() {
            let mut other = key.expose().to_owned().into_bytes();
            other[at] ^= 1;
            assert!(!pepper.is(str::from_utf8(&other).unwrap(), &kept), "byte {at}");
        }
        let other = tempfile::tempdir().unwrap();
        assert!(!Pepper::get_or_make(other.path()).unwrap().is(key.expose(), &kept));
    }

    #[test]
    fn neither_key_nor_hash_shows_in_debug() {
        let key = NewKey::random();
        let directory = tempfile::tempdir().unwrap();
        let pepper = Pepper::get_or_make(directory.path()).unwrap();
        let text = format!("{key:?} {:?} {pepper:?}", pepper.mac(key.expose()));
        assert_eq!(text, format!("NewKey({}) *** ***", key.id));
    }

    #[test]
    fn what_does_not_look_like_a_key_of_the_store() {
        for text in ["", "hearth_", "hearth_0123456789_", &format!("hearth_{}", "0".repeat(64)), "sk-0123"] {
            assert_eq!(id_of(text), None, "{text}");
        }
    }

    #[test]
    fn a_damaged_secret_is_told_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        Pepper::get_or_make(directory.path()).unwrap();
        let path = FILE.path(directory.path());
        std::fs::write(&path, "0123\n").unwrap();
        let error = Pepper::get(directory.path()).unwrap_err();
        assert!(
            error.what.contains("64 hexadecimal digits") && error.fix.contains("restore it"),
            "{error:?}"
        );
    }
}
