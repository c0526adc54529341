//! Self-diagnosis: the checks behind `hearth doctor`, in the order in which a request of GitLab's meets what they look at.
//!
//! A finding says what was looked at, what came of it and, where something is wrong, what it does to users and what to
//! do. Nothing is changed by looking, and no check needs the check of tokens to be switched off.

mod device;
mod gateway;
mod gitlab;
mod host;
mod keys;
mod models;
mod through;
mod tls;

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::Settings;

pub use device::device;
pub use gateway::gateway;
pub use gitlab::gitlab;
pub use through::through;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// Worth knowing; nothing is broken by it.
    Note,
    Warning,
    Failure,
}

impl Verdict {
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Warning => "warn",
            Verdict::Failure => "FAIL",
        }
    }
}

/// What came of one check.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub verdict: Verdict,
    pub what: String,
    /// What it does to users, where that is not plain from the fact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, what: impl Into<String>) -> Self {
        Self { check, verdict, what: what.into(), effect: None, fix: None }
    }

    fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, what)
    }

    fn fails(check: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..Self::new(check, Verdict::Failure, what) }
    }

    fn warns(check: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..Self::new(check, Verdict::Warning, what) }
    }

    fn effect(self, effect: impl Into<String>) -> Self {
        Self { effect: Some(effect.into()), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<9}{:<6}{}", self.check, self.verdict.word(), self.what)?;
        for (name, text) in [("effect", &self.effect), ("fix", &self.fix)] {
            if let Some(text) = text {
                write!(f, "\n               {name}: {text}")?;
            }
        }
        Ok(())
    }
}

/// Everything that is looked at from this machine.
pub async fn examine(settings: &Settings) -> Vec<Finding> {
    let mut findings = host::host(settings);
    findings.push(device(settings));
    let server = gateway(settings).await;
    let running = server.iter().any(|finding| finding.check == "server" && finding.verdict == Verdict::Ok);
    findings.extend(models::models(settings, running));
    findings.push(keys::keys(settings));
    findings.push(tls::tls(settings));
    findings.extend(gitlab(settings).await);
    findings.extend(server);
    findings.push(Finding::new(
        "agents",
        Verdict::Note,
        "the Duo Agent Platform (agentic chat, flows; port 50052) is not served by this version: leave its URL empty in \
         GitLab. Classic chat and code suggestions do not need it",
    ));
    findings
}

/// What to enter where, once everything is well.
pub fn steps(settings: &Settings, models: &[&str]) -> String {
    let names: Vec<String> = models.iter().map(|name| format!("custom_openai/{name}")).collect();
    let scheme = if settings.front.tls.is_some() { "https" } else { "http" };
    let port = settings.listen[0].port();
    format!(
        "In GitLab, as an administrator (Admin > GitLab Duo):\n\
         \x20 1. Local AI Gateway URL: {scheme}://THIS-HOST:{port} (no path; a name that GitLab and the developers' machines\n\
         \x20    resolve, not localhost). A private address must be on GitLab's list for outbound requests\n\
         \x20    (Admin > Settings > Network > Outbound requests).\n\
         \x20 2. Add a self-hosted model: endpoint {scheme}://THIS-HOST:{port}/v1, identifier one of\n\
         \x20    {}, API key Hearth's own key; Test connection.\n\
         \x20 3. Give the model to the features, then run the health check, or\n\
         \x20    gitlab-rake \"gitlab:duo:verify_self_hosted_setup[root]\".",
        names.join(", ")
    )
}

/// A time as people read it.
fn seconds(since: Instant) -> String {
    let time: Duration = since.elapsed();
    format!("{:.2} s", time.as_secs_f64())
}
