//! The keys of all providers, kept fresh by one task. That task is the only one that fetches, so that a flood of
//! tokens causes no flood of fetches.
//!
//! The last good set of a provider stays until a better one is there: a provider that is down, answers nothing or
//! answers nonsense takes nobody's token away.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::set::Set;
use super::source::{Provider, Published, Source, SourceError};
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
    /// Why the last fetch failed, or found less than it should have.
    problem: Option<String>,
    /// When the set was fetched.
    at: Duration,
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

    /// How old GitLab's keys are, if there are any.
    pub fn age(&self) -> Option<Duration> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let gitlab = self.sources.iter().position(|source| source.provider == Provider::GitLab)?;
        known[gitlab].set.as_ref()?;
        Some(self.clock.now().saturating_sub(known[gitlab].at))
    }

    /// Waits for the keys if they were never fetched, or has them fetched once more if that was not within the last
    /// minute. For a token whose key or issuer is not known; `enough` says when it is, as the providers' answers come
    /// one by one.
    pub async fn again(&self, enough: impl Fn() -> bool) {
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
        let ended = fetches.wait_for(|now| now.ended > seen.ended || enough());
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
                false if self.missing().is_some() => pause,
                false => self.refresh.min(MINUTE),
            };
            pause = (pause * 2).min(LONGEST_PAUSE);
            let _ = tokio::time::timeout(next, self.wanted.notified()).await;
        }
    }

    /// Fetches from every provider at once; whether all of them answered. Each one's keys count as soon as they are
    /// there: a portal that hangs delays nobody whose token is GitLab's.
    async fn fetch(&self) -> bool {
        {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            *last = self.clock.now();
            self.fetches.send_modify(|fetches| fetches.due = true);
        }
        let each = self.sources.iter().enumerate().map(async |(i, source)| {
            let complete = self.install(i, source.fetch().await);
            // Whoever waits may look whether this was what it waits for.
            self.fetches.send_modify(|_| {});
            complete
        });
        let complete = futures::future::join_all(each).await.into_iter().all(|complete| complete);
        self.fetches.send_modify(|fetches| *fetches = Fetches { due: false, ended: fetches.ended + 1 });
        complete
    }

    /// Takes what a provider answered; whether that was all it has to say.
    fn install(&self, i: usize, answer: Result<Published, SourceError>) -> bool {
        let source = &self.sources[i];
        let (name, url) = (source.provider.name(), source.base().to_string());
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let known = &mut known[i];
        let (mut set, problem) = match answer {
            Ok(Published { set, problem }) => (set, problem),
            Err(error) => {
                let kept = if known.set.is_some() { "the last good ones stay" } else { "there are none" };
                tracing::warn!(url, problem = %error, "keys of {name} cannot be fetched; {kept}");
                known.problem = Some(error.to_string());
                return false;
            }
        };
        // Under which name it is known it says in its discovery document only: without that, what it said last counts.
        if let (Some(before), Some(_)) = (&known.set, &problem) {
            set.inherit(before);
        }
        let (count, issuers) = (set.keys.len(), &set.issuers);
        match &problem {
            Some(problem) => {
                tracing::warn!(url, count, ?issuers, %problem, "keys of {name} fetched, but not its own name for itself");
            }
            None if known.set.is_none() || known.problem.is_some() => {
                tracing::info!(url, count, ?issuers, "keys of {name} fetched");
            }
            None => tracing::debug!(url, count, "keys of {name} fetched"),
        }
        let problem = problem.map(|problem| problem.to_string());
        let complete = problem.is_none();
        *known = Known { set: Some(Arc::new(set)), problem, at: self.clock.now() };
        complete
    }
}
