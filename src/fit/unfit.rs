//! Why models cannot be served on this host as the settings ask.

use hearth_models::memory::DoesNotFit;

use crate::store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The settings ask for what cannot be.
    #[error("{what}")]
    Settings { what: String, place: Option<String>, fix: String },
    /// A checkpoint is missing, damaged or of a kind that is not served.
    #[error("{what}")]
    Model { what: String, place: Option<String>, fix: Option<String> },
    #[error("{what}")]
    Device { what: String, fix: Option<String> },
    #[error(transparent)]
    Memory(#[from] DoesNotFit),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Host(String),
}

impl Unfit {
    pub fn model(what: impl Into<String>) -> Self {
        Self::Model { what: what.into(), place: None, fix: None }
    }

    /// Where it was asked for.
    pub fn place(&self) -> Option<&str> {
        match self {
            Self::Settings { place, .. } | Self::Model { place, .. } => place.as_deref(),
            _ => None,
        }
    }

    /// What to do.
    pub fn fix(&self) -> Option<String> {
        match self {
            Self::Settings { fix, .. } => Some(fix.clone()),
            Self::Model { fix, .. } | Self::Device { fix, .. } => fix.clone(),
            Self::Store(error) => Some(error.fix()),
            Self::Memory(_) | Self::Host(_) => None,
        }
    }
}
