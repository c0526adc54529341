//! Who calls, once the token is checked.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::claims::Claims;
use crate::duo::error::DuoError;

/// Who signed the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// GitLab, for its own requests; or the customers portal, where it is configured.
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
    /// What the token says; nothing while the check is switched off.
    pub claims: Arc<Claims>,
    /// The user as GitLab counts users everywhere, hashed; empty if GitLab did not say. Proven by the token of an
    /// editor, told by GitLab otherwise.
    pub user: Arc<str>,
}

/// The one scope that counts in a token of the gateway's own.
const COMPLETION: &str = "complete_code";
/// What the oldest GitLab that is supported calls the right to both kinds of suggestions.
const LEGACY: (&str, [&str; 2]) = ("code_suggestions", ["complete_code", "generate_code"]);

impl Caller {
    pub(super) fn new(issuer: Issuer, claims: Claims, enforced: bool, user: &str) -> Self {
        let mut scopes: BTreeSet<String> = claims.scopes.iter().flatten().cloned().collect();
        if scopes.contains(LEGACY.0) {
            scopes.extend(LEGACY.1.map(str::to_owned));
        }
        Self { issuer, scopes: Arc::new(scopes), enforced, claims: Arc::new(claims), user: user.into() }
    }

    /// The caller while the check is switched off: whoever it says it is.
    pub fn debug(user: &str) -> Self {
        Self::new(Issuer::Bypass, Claims::default(), false, user)
    }

    /// Whether the token grants a scope. An editor's grants none: [`Caller::require_completion`] is for it.
    pub fn can(&self, scope: &str) -> bool {
        match self.issuer {
            Issuer::Bypass => true,
            Issuer::Gateway => false,
            Issuer::GitLab => !self.enforced || self.scopes.contains(scope),
        }
    }

    /// Refuses a caller that may not complete code. The one thing that an editor's token opens.
    pub fn require_completion(&self, refusal: &'static str) -> Result<(), DuoError> {
        match self.issuer {
            Issuer::Gateway if self.scopes.contains(COMPLETION) => Ok(()),
            _ => self.require(&[COMPLETION], refusal),
        }
    }

    /// Refuses a caller that has none of the scopes, and an editor's token whatever it says.
    pub fn require(
        &self,
        any: &[&str],
        refusal: impl Into<std::borrow::Cow<'static, str>>,
    ) -> Result<(), DuoError> {
        match any.iter().any(|scope| self.can(scope)) {
            true => Ok(()),
            false => Err(DuoError::forbidden(refusal).because(self.lacking(any))),
        }
    }

    fn lacking(&self, any: &[&str]) -> String {
        let wanted = any.join(" or ");
        match self.issuer {
            Issuer::Gateway => format!("an editor's token opens completion only; this needs {wanted}"),
            _ => format!(
                "the token has {} scopes, but not {wanted} (gitlab.scopes = \"trust\" lets it pass)",
                self.scopes.len()
            ),
        }
    }

    /// Whether this is an editor that calls without GitLab in between.
    pub fn direct(&self) -> bool {
        self.issuer == Issuer::Gateway
    }
}
