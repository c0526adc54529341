//! What the people who run this server can ask it and tell it, beside the life of any request: its state, a reload, a
//! drain, prompts in the log for a while, its keys.
//!
//! The same table of routes ([`routes`]) stands behind two doors: a unix socket, which the file system guards and the
//! command line uses, and the console's listener, which asks for a session or a key. What is told through either goes
//! into the audit log with who told it.

pub mod endpoints;
mod error;
pub mod history;
pub mod routes;
pub mod socket;
pub mod status;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::access::{Holder, Refusal};
use crate::audit::{Audit, AuditError, Event, Who};
use crate::config::{ConfigError, Settings};
use crate::console::sessions::Sessions;
use crate::log::prompts::{self, PROMPTS};
use crate::reload::Reload;
use crate::server::Shared;
pub use error::AdminError;
use history::History;

/// Where this server listens, for those who look at it.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    pub api: String,
    pub metrics: Option<String>,
    pub console: Option<String>,
}

/// How the last reload went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reloaded {
    /// RFC 3339.
    pub time: String,
    pub by: String,
    /// What was put in force.
    pub parts: Vec<String>,
    /// Why nothing was.
    pub error: Option<String>,
}

/// What the doors lead to.
pub struct Admin {
    pub shared: Shared,
    /// As they were at the start.
    pub settings: Settings,
    pub addresses: Addresses,
    pub sessions: Sessions,
    pub history: Arc<History>,
    pub audit: Audit,
    /// What computes, in words.
    pub device: String,
    reload: Reload,
    reloaded: Mutex<Option<Reloaded>>,
    /// What the doctor found last, and when.
    examined: Mutex<Option<(String, Vec<Value>)>>,
    began: Instant,
}

impl Admin {
    pub fn new(shared: Shared, settings: Settings, reload: Reload, addresses: Addresses) -> Arc<Self> {
        let history = History::begin(shared.models.clone());
        Arc::new(Self {
            device: status::device(&settings),
            audit: Audit::of(&settings),
            shared,
            settings,
            addresses,
            sessions: Sessions::default(),
            history,
            reload,
            reloaded: Mutex::default(),
            examined: Mutex::default(),
            began: Instant::now(),
        })
    }

    /// Reads the settings again and puts them in force, or leaves everything as it is.
    pub fn reload(&self, who: &Who) -> Result<Vec<&'static str>, ConfigError> {
        let done = self.reload.run_by(who);
        match &done {
            Ok(parts) => tracing::info!(by = %who, "reloaded: {}", parts.join(", ")),
            Err(e) => {
                tracing::error!(by = %who, "not reloaded, nothing has changed: {e} ({}); {}", e.origin, e.fix);
            }
        }
        self.shared.metrics.reloaded(done.is_ok());
        let reloaded = Reloaded {
            time: jiff::Timestamp::now().to_string(),
            by: who.to_string(),
            parts: done.iter().flatten().map(|&part| part.to_owned()).collect(),
            error: done.as_ref().err().map(|e| format!("{e} ({}); {}", e.origin, e.fix)),
        };
        *self.reloaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(reloaded);
        done
    }

    pub fn last_reload(&self) -> Option<Reloaded> {
        self.reloaded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Not ready from now on, so that nothing more is sent here. How many requests are in flight.
    pub fn drain(&self, who: &Who) -> usize {
        self.shared.health.drain();
        let in_flight = self.shared.health.in_flight();
        // It cannot be taken back, and a full disk must not hold up a stop.
        self.audit.note(who, &Event::DrainBegun);
        tracing::info!(by = %who, in_flight, "draining");
        in_flight
    }

    /// Prompts in the log for that long. What cannot be recorded is not done.
    pub fn log_prompts(&self, who: &Who, time: Duration) -> Result<(), AuditError> {
        let time = time.min(prompts::LONGEST);
        let until = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(time.as_secs() as i64);
        let until = until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        self.audit.record(who, &Event::PromptLogging { on: true, until: until.clone() })?;
        PROMPTS.on(time);
        tracing::warn!(by = %who, until, "prompts and answers go into the log");
        Ok(())
    }

    /// No more prompts in the log, whatever becomes of the record.
    pub fn stop_logging_prompts(&self, who: &Who) {
        PROMPTS.off();
        tracing::info!(by = %who, "prompts and answers no longer go into the log");
        self.audit.note(who, &Event::PromptLogging { on: false, until: String::new() });
    }

    /// Whose key it is, if it may come in at the console.
    pub fn admin_key(&self, key: &str, peer: Option<IpAddr>) -> Result<Arc<Holder>, Refusal> {
        Ok(self.shared.access.admit_at_console(key, peer)?.holder)
    }

    /// Keeps what the doctor found, for the console's page.
    pub fn examine(&self, findings: Vec<Value>) {
        let time = format!("{} UTC", jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S"));
        *self.examined.lock().unwrap_or_else(PoisonError::into_inner) = Some((time, findings));
    }

    pub fn examined(&self) -> Option<(String, Vec<Value>)> {
        self.examined.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn uptime(&self) -> Duration {
        self.began.elapsed()
    }
}
