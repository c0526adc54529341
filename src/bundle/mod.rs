//! Bundles (before the life of a request): everything that an air-gapped site needs in one signed archive.
//!
//! ```text
//! MANIFEST             the SHA-256 of every other member, in the form of coreutils
//! MANIFEST.minisig     its signature
//! bundle.json          what is in it, for people and for the licence to be accepted
//! hearth_….deb  …      the release: package, image, chart, bill of materials, licences, documents
//! models/NAME/…        models as `hearth models export` writes them
//! ```
//!
//! The sums come first and are signed, so that a byte is believed only when it agrees with them; `tar`, `minisign` and
//! `sha256sum` open a bundle on a host that has no Hearth yet.

mod create;
mod parts;
mod read;
mod sign;

use serde::{Deserialize, Serialize};

pub use create::{Contents, create};
pub use read::{Host, Opened, install, verify};
pub use sign::{Trust, generate};

use crate::store::StoreError;

pub const SUMS: &str = "MANIFEST";
pub const SIGNATURE: &str = "MANIFEST.minisig";
pub const ABOUT: &str = "bundle.json";
pub const MODELS: &str = "models";
/// The sums of a bundle at most.
const LIMIT: u64 = 64 << 20;

/// What is in a bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    pub version: u32,
    pub created: String,
    pub hearth: String,
    pub files: Vec<String>,
    pub models: Vec<Model>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    pub name: String,
    pub bytes: u64,
    pub digest: String,
    pub licence: String,
    /// Whether it allows production; absent: read it.
    #[serde(default)]
    pub production: Option<bool>,
}

#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{place}: {reason}")]
    Content { place: String, reason: String },
    #[error("{place}: {reason}")]
    Signature { place: String, reason: String },
    #[error("the key {place}: {reason}")]
    Key { place: String, reason: String },
}

impl BundleError {
    pub fn fix(&self) -> String {
        match self {
            Self::Store(error) => error.fix(),
            Self::Content { .. } => "copy the bundle again; if that does not help, have it made again".to_owned(),
            Self::Signature { .. } => {
                "ask whoever made the bundle for their public key and give it with --key; do not install it before"
                    .to_owned()
            }
            Self::Key { .. } => "make a pair with `hearth bundle key`, or with minisign -G".to_owned(),
        }
    }
}
