//! Whose key it is that came with a request, and what of it a session remembers.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::grant::Grant;
use super::key::Mac;
use super::rates::{Meter, Permit, Rates};

/// A key that is in force.
#[derive(Debug)]
pub struct Holder {
    pub id: String,
    pub name: String,
    pub grant: Grant,
    /// Which text the key has: another one under the same id is another generation. Only the first key keeps its id.
    pub(super) generation: u64,
    pub(super) mac: Option<Mac>,
    pub(super) rates: Arc<Rates>,
    /// Seconds since 1970; 0: never.
    pub(super) used: Arc<AtomicI64>,
}

impl Holder {
    /// For the audit log.
    pub fn who(&self) -> crate::audit::Who {
        crate::audit::Who::Key { id: self.id.clone(), name: self.name.clone() }
    }

    /// For a session.
    pub fn known(&self) -> Known {
        Known { id: self.id.clone(), generation: self.generation }
    }

    pub(super) fn is_used(&self, now: i64) {
        self.used.store(now, Ordering::Relaxed);
    }
}

/// The key that somebody came in with, without its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub(super) id: String,
    pub(super) generation: u64,
}

/// A request's right to be answered: whose it is, and its place among those that run. It lives as long as the answer.
pub struct Pass {
    pub holder: Arc<Holder>,
    pub(super) permit: Permit,
}

impl Pass {
    /// What counts the tokens that this request takes.
    pub fn meter(&self) -> Meter {
        self.permit.meter()
    }
}
