//! The keys of all providers, kept fresh by one task. That task is the only one that fetches, so that a flood of
//! tokens causes no flood of fetches.
//!
//! The last good set of a provider stays until a better one is there: a provider that is down, answers nothing or
//! answers nonsense takes nobody's token away.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::set::Set;
use super::source::{Provider, Source};
use crate::engine::clock::Clock;

/// Between two fetches that tokens cause, and of an attempt to repair a failed one.
const MINUTE: Duration = Duration::from_secs(60);
/// While there are no keys at all, an attempt is never further away than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A request waits so long for a fetch.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the fetching stands.
#[derive(Clone, Copy)]
struct Fetches {
    /// One is running, or about to: whoever waits gets its outcome.
    due: bool,
    ended: u64,
}

/// What is known of one provider.
#[derive(Clone, Default)]
struct Known {
    set: Option<Arc<Set>>,
    /// Why the last fetch failed.
    problem: Option<String>,
}

pub struct Keyring {
    sources: Vec<Source>,
    known: RwLock<Vec<Known>>,
    clock: Arc<dyn Clock>,
    refresh: Duration,
    fetches: watch::Sender<Fetches>,
    /// When the last fetch began.
    last: Mutex<Duration>,
    wanted: Notify,
}

impl Keyring {
    pub fn new(sources: Vec<Source>, refresh: Duration, clock: Arc<dyn Clock>) -> Self {
        Self {
            known: RwLock::new(vec![Known::default(); sources.len()]),
            sources,
            clock,
            refresh,
            fetches: watch::Sender::new(Fetches { due: true, ended: 0 }),
            last: Mutex::default(),
            wanted: Notify::new(),
        }
    }

    /// The providers' sets as far as they are known.
    pub fn sets(&self) -> Vec<(Provider, Arc<Set>)> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let sets = self.sources.iter().zip(known.iter());
        sets.filter_map(|(source, known)| Some((source.provider, known.set.clone()?))).collect()
    }

    /// What is wrong with GitLab's keys, while there are none.
    pub fn missing(&self) -> Option<String> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let gitlab = self.sources.iter().position(|source| source.provider == Provider::GitLab);
        let Some(gitlab) = gitlab else { return Some("gitlab.url is not set".to_owned()) };
        match &known[gitlab] {
            Known { set: Some(_), .. } => None,
            Known { problem: Some(problem), .. } => Some(problem.clone()),
            Known { problem: None, .. } => Some("they are being fetched".to_owned()),
        }
    }

    /// Waits for the keys if they were never fetched, or has them fetched once more if that was not within the last
    /// minute. For a token whose key is not known.
    pub async fn again(&self) {
        if self.sources.is_empty() {
            return;
        }
        let mut fetches = self.fetches.subscribe();
        let seen = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = *fetches.borrow_and_update();
            if !seen.due {
                let now = self.clock.now();
                if now.abs_diff(*last) < MINUTE {
                    return;
                }
                *last = now;
                self.fetches.send_modify(|fetches| fetches.due = true);
                self.wanted.notify_one();
            }
            seen
        };
        let ended = fetches.wait_for(|now| now.ended > seen.ended);
        let _ = tokio::time::timeout(PATIENCE, ended).await;
    }

    /// Keeps the keys fresh for as long as it is polled.
    pub async fn keep(self: Arc<Self>) {
        if self.sources.is_empty() {
            return;
        }
        let mut pause = Duration::from_secs(1);
        loop {
            let complete = self.fetch().await;
            let next = match complete {
                true => self.refresh,
                false if self.sets().is_empty() => pause,
                false => self.refresh.min(MINUTE),
            };
            pause = (pause * 2).min(LONGEST_PAUSE);
            let _ = tokio::time::timeout(next, self.wanted.notified()).await;
        }
    }

    /// Fetches from every provider at once; whether all of them answered.
    async fn fetch(&self) -> bool {
        {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            *last = self.clock.now();
            self.fetches.send_modify(|fetches| fetches.due = true);
        }
        let answers = futures::future::join_all(self.sources.iter().map(Source::fetch)).await;
        let mut complete = true;
        for (i, answer) in answers.into_iter().enumerate() {
            let source = &self.sources[i];
            let (name, url) = (source.provider.name(), source.base().to_string());
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            let known = &mut known[i];
            match answer {
                Ok(set) => {
                    let count = set.keys.len();
                    match known.set.is_none() || known.problem.is_some() {
                        true => tracing::info!(url, count, issuers = ?set.issuers, "keys of {name} fetched"),
                        false => tracing::debug!(url, count, "keys of {name} fetched"),
                    }
                    *known = Known { set: Some(Arc::new(set)), problem: None };
                }
                Err(error) => {
                    complete = false;
                    let kept = if known.set.is_some() { "the last good ones stay" } else { "there are none" };
                    tracing::warn!(url, problem = %error, "keys of {name} cannot be fetched; {kept}");
                    known.problem = Some(error.to_string());
                }
            }
        }
        self.fetches.send_modify(|fetches| *fetches = Fetches { due: false, ended: fetches.ended + 1 });
        complete
    }
}
