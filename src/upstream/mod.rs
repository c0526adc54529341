//! Models that another machine runs (steps 4 to 9 in the life of a request happen there): an OpenAI-compatible server
//! that the settings list. Nothing in a request can name one.
//!
//! An upstream has its own key, limits of bytes, time and requests, and is left alone for a while when it cannot be
//! reached. An answer is passed on as it comes; when its reader leaves, the connection is closed.

mod answer;
mod breaker;
pub(crate) mod events;
mod fill;
mod forward;
mod line;
mod request;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use bytes::Bytes;
use tokio::sync::{Semaphore, watch};

use crate::config::{ConfigError, UpstreamEntry};
use crate::openai::answers::now;
use crate::outbound::{Limits, Outbound};
use crate::served::ask::{Answer, Ask, Failure};
use crate::served::family::Family;
use breaker::Breaker;
use fill::Fill;
use request::Request;

/// Bytes of an answer at most: the longest one in events of a token each.
const BYTES: usize = 64 << 20;

/// One server.
pub struct Upstream {
    pub name: String,
    outbound: Outbound,
    /// The key among them.
    headers: HeaderMap,
    slots: Arc<Semaphore>,
    concurrent: usize,
    idle: Duration,
    timeout: Duration,
    breaker: Breaker,
    requests: AtomicU64,
    failures: AtomicU64,
    /// Set at the end of the process.
    ended: watch::Sender<bool>,
}

/// What has happened at an upstream so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub requests: u64,
    /// Refusals, broken answers and connections that could not be made.
    pub failures: u64,
    pub running: u64,
}

impl Upstream {
    /// A connection is made with the first request, not now.
    pub fn new(entry: &UpstreamEntry) -> Result<Self, ConfigError> {
        let limits = Limits {
            connect: entry.connect_timeout,
            idle: entry.idle_timeout,
            // Each request has its own.
            total: None,
            bytes: BYTES,
        };
        let outbound = Outbound::new(entry.url.clone(), entry.ca_file.as_deref(), limits).map_err(|e| {
            let what = format!("the upstream {:?} cannot be used: {e}", entry.name);
            ConfigError::new(&entry.origin, what, "correct its `ca_file`")
        })?;
        let mut headers = HeaderMap::new();
        if let Some(key) = entry.secret()? {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose()))
                .expect("bug: a key holds printable characters");
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        Ok(Self {
            name: entry.name.clone(),
            outbound,
            headers,
            slots: Arc::new(Semaphore::new(entry.concurrent)),
            concurrent: entry.concurrent,
            idle: entry.idle_timeout,
            timeout: entry.timeout,
            breaker: Breaker::default(),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            ended: watch::Sender::new(false),
        })
    }

    /// Every answer that is still coming fails, with words for its reader.
    pub fn end(&self) {
        self.ended.send_replace(true);
    }

    pub fn status(&self) -> Status {
        let read = |count: &AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
        let running = self.concurrent.saturating_sub(self.slots.available_permits()) as u64;
        Status { requests: read(&self.requests), failures: read(&self.failures), running }
    }
}

/// A model that an upstream serves.
pub struct Model {
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// Its name over there.
    remote: String,
    /// Whose prompts it takes.
    pub family: Family,
    /// Prompt and answer together at most, in tokens.
    pub context: u32,
    /// Seconds since 1970 at which this process began to serve it.
    pub created: u64,
    fill: Fill,
    pub upstream: Arc<Upstream>,
}

impl Model {
    /// The models of an entry of the settings.
    pub fn all(entry: &UpstreamEntry) -> Result<Vec<Self>, ConfigError> {
        let upstream = Arc::new(Upstream::new(entry)?);
        let model = |(i, (name, remote)): (usize, &(String, String))| Self {
            name: name.clone(),
            aliases: if i == 0 { entry.aliases.clone() } else { Vec::new() },
            remote: remote.clone(),
            family: entry.family,
            context: entry.context,
            created: now(),
            fill: Fill::of(&entry.fill, entry.family),
            upstream: upstream.clone(),
        };
        Ok(entry.models.iter().enumerate().map(model).collect())
    }

    /// Whether gaps are more to it than a question in words.
    pub fn fills(&self) -> bool {
        self.fill != Fill::Chat
    }

    /// Sends the work; the answer comes piece by piece.
    pub async fn ask(&self, ask: Ask) -> Result<Answer, Failure> {
        let (id, time) = (ask.id.clone(), ask.patience);
        let request = Request::new(self, ask);
        let body = Bytes::from(request.body.to_string());
        let line = self.upstream.open(&id, request.path, body, time).await?;
        match line.status() {
            StatusCode::OK => answer::read(line, request),
            _ => Err(line.refusal().await),
        }
    }

    /// How many tokens a text has, at most or nearly so: its tokenizer is not here.
    pub fn count(&self, text: &str) -> u32 {
        request::estimate(text.len())
    }
}
