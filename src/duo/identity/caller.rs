//! Who calls, once the token is checked.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::duo::error::DuoError;

/// Who signed the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// GitLab, for its own requests.
    GitLab,
    /// This gateway, for an editor: it opens completion and nothing else.
    Gateway,
    /// Nobody: the check is switched off.
    Bypass,
}

/// The caller of a request of this dialect; an extension of every request that came through the guard.
#[derive(Clone, Debug)]
pub struct Caller {
    pub issuer: Issuer,
    pub scopes: Arc<BTreeSet<String>>,
    /// Whether scopes decide. Otherwise a valid token of GitLab opens everything.
    pub enforced: bool,
}

/// The one scope that counts in a token of the gateway's own.
const DIRECT: &str = "complete_code";

impl Caller {
    /// The caller while the check is switched off.
    pub fn debug() -> Self {
        Self { issuer: Issuer::Bypass, scopes: Arc::default(), enforced: false }
    }

    /// Whether the token grants a scope.
    pub fn can(&self, scope: &str) -> bool {
        match self.issuer {
            Issuer::Bypass => true,
            Issuer::Gateway => scope == DIRECT && self.scopes.contains(scope),
            Issuer::GitLab => !self.enforced || self.scopes.contains(scope),
        }
    }

    /// Refuses a caller that has none of the scopes.
    pub fn require(
        &self,
        any: &[&str],
        refusal: impl Into<std::borrow::Cow<'static, str>>,
    ) -> Result<(), DuoError> {
        match any.iter().any(|scope| self.can(scope)) {
            true => Ok(()),
            false => Err(DuoError::forbidden(refusal)),
        }
    }

    /// Whether this is an editor that calls without GitLab in between.
    pub fn direct(&self) -> bool {
        self.issuer == Issuer::Gateway
    }
}
