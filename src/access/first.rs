//! The first key: the one of the settings (`HEARTH_KEY`), or the one that the server makes for itself at its first start. It
//! opens everything and has no limits, so that there is always a way in.

use std::path::Path;

use subtle::ConstantTimeEq;

use super::change::{ChangeError, Keys};
use crate::audit::{Event, Who};
use crate::config::state::{self, Replacement, Secret};
use crate::config::{ConfigError, Settings};

/// What it is called where keys have names.
pub const FIRST: &str = "first";

/// Never printed, never compared with `==`.
#[derive(Clone)]
pub struct FirstKey {
    text: Secret,
    /// Somebody chose it, so that it might be guessed; the others are 256 random bits.
    pub chosen: bool,
}

impl std::fmt::Debug for FirstKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FirstKey")
    }
}

impl FirstKey {
    /// One that somebody chose.
    pub fn chosen(text: Secret) -> Self {
        Self { text, chosen: true }
    }

    /// The configured one, or that of the state directory, made on the first call; `true` when it was made now.
    pub fn of(settings: &Settings) -> Result<(Self, bool), ConfigError> {
        match settings.key.clone() {
            Some(text) => Ok((Self::chosen(text), false)),
            None => Self::of_state(&settings.state_dir),
        }
    }

    pub fn of_state(directory: &Path) -> Result<(Self, bool), ConfigError> {
        let (text, made) = state::key(directory)?;
        Ok((Self { text, chosen: false }, made))
    }

    /// In a time that depends on lengths only.
    pub fn is(&self, given: &str) -> bool {
        self.text.expose().as_bytes().ct_eq(given.as_bytes()).into()
    }

    /// To show it, once.
    pub fn expose(&self) -> &str {
        self.text.expose()
    }
}

impl Keys {
    /// Makes a new first key in the state directory. The old one is good for nothing from then on.
    pub fn rotate_first(&self, who: &Who) -> Result<FirstKey, ChangeError> {
        let (text, path) = (state::new_key(), state::key_path(self.directory()));
        let prepared = Replacement::prepare(&path, text.as_bytes());
        let prepared = prepared.map_err(|error| ChangeError::Disk { path: path.clone(), error })?;
        self.commit(prepared, &path, who, &Event::FirstKeyRotated)?;
        Ok(FirstKey::of_state(self.directory())?.0)
    }
}
