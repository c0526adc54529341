//! How much a caller may ask for: requests and tokens a minute, requests at the same time.
//!
//! The arithmetic is governor's: a bucket that holds a minute's worth and fills evenly. How many tokens a request takes is
//! known only while it runs. They are owed and paid as the bucket fills; while something is owed nothing new is let in. So the
//! mean keeps to the limit, and the excess is what was under way.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::Clock as _;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{NotUntil, Quota, RateLimiter};

use crate::engine::clock::Clock;

/// The clock that rates are measured with.
#[derive(Clone)]
pub(super) struct Ticks(pub Arc<dyn Clock>);

impl governor::clock::Clock for Ticks {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.now()
    }
}

/// Limits; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// A minute.
    pub requests: u32,
    /// A minute.
    pub tokens: u32,
    /// At the same time.
    pub concurrent: u32,
}

type Bucket = RateLimiter<NotKeyed, InMemoryState, Ticks, NoOpMiddleware<Duration>>;

/// Seconds until something is possible, as `Retry-After` has them.
pub(super) fn seconds(until: &NotUntil<Duration>, now: Duration) -> u32 {
    let wait = until.wait_time_from(now);
    (wait.as_secs() as u32 + u32::from(wait.subsec_nanos() > 0)).max(1)
}

/// Why a request must wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Requests { limit: u32, retry_after: u32 },
    Tokens { limit: u32, retry_after: u32 },
    Concurrent { limit: u32 },
}

/// The rates of one caller.
pub struct Rates {
    amounts: Amounts,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    /// Tokens that were taken and not paid for.
    owed: AtomicU64,
    /// So that two payments do not take the same debt.
    paying: Mutex<()>,
    running: Arc<AtomicU32>,
    /// When a request was let in last.
    last: Mutex<Duration>,
    ticks: Ticks,
}

impl std::fmt::Debug for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.amounts.fmt(f)
    }
}

impl Rates {
    pub fn new(amounts: Amounts, clock: Arc<dyn Clock>) -> Self {
        Self::going_on(amounts, clock, Arc::default())
    }

    /// Counting what runs together with other rates: those of the same caller before a reload.
    fn going_on(amounts: Amounts, clock: Arc<dyn Clock>, running: Arc<AtomicU32>) -> Self {
        let ticks = Ticks(clock);
        let bucket = |a_minute: u32| {
            let quota = Quota::per_minute(NonZeroU32::new(a_minute)?);
            Some(RateLimiter::direct_with_clock(quota, ticks.clone()))
        };
        Self {
            requests: bucket(amounts.requests),
            tokens: bucket(amounts.tokens),
            amounts,
            owed: AtomicU64::new(0),
            paying: Mutex::default(),
            running,
            last: Mutex::new(ticks.now()),
            ticks,
        }
    }

    /// Those of the same caller with other limits: what was used up stays so where its limit stays.
    pub fn with(self: &Arc<Self>, amounts: Amounts) -> Arc<Self> {
        match amounts == self.amounts {
            true => self.clone(),
            false => Arc::new(Self::going_on(amounts, self.ticks.0.clone(), self.running.clone())),
        }
    }

    /// Lets one request in, or says why not.
    pub fn admit(self: &Arc<Self>) -> Result<Permit, Full> {
        let limit = self.amounts.concurrent;
        let room = |n: u32| (limit == 0 || n < limit).then_some(n + 1);
        if self.running.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_err() {
            return Err(Full::Concurrent { limit });
        }
        // From here on the place is given back when the permit is dropped.
        let permit = Permit { rates: self.clone() };
        if let Err(retry_after) = self.pay() {
            return Err(Full::Tokens { limit: self.amounts.tokens, retry_after });
        }
        if let Some(Err(until)) = self.requests.as_ref().map(Bucket::check) {
            let retry_after = seconds(&until, self.ticks.now());
            return Err(Full::Requests { limit: self.amounts.requests, retry_after });
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = self.ticks.now();
        Ok(permit)
    }

    /// Whether so long nothing was let in that a new one would be the same.
    pub fn rested(&self) -> bool {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        self.owed.load(Ordering::Acquire) == 0
            && self.ticks.now().saturating_sub(last) >= Duration::from_secs(60)
    }

    /// Pays what is owed as far as the bucket has it; an error says when the next part can be paid.
    fn pay(&self) -> Result<(), u32> {
        let Some(bucket) = &self.tokens else { return Ok(()) };
        let _turn = self.paying.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let owed = self.owed.load(Ordering::Acquire);
            // A bucket never holds more than a minute's worth.
            let part = owed.min(u64::from(self.amounts.tokens)) as u32;
            let Some(part) = NonZeroU32::new(part) else { return Ok(()) };
            match bucket.check_n(part).expect("bug: a part is at most what the bucket holds") {
                Ok(()) => _ = self.owed.fetch_sub(u64::from(part.get()), Ordering::AcqRel),
                Err(until) => return Err(seconds(&until, self.ticks.now())),
            }
        }
    }

    /// Requests that run.
    pub fn running(&self) -> u32 {
        self.running.load(Ordering::Acquire)
    }
}

/// A place among the requests that run at the same time; given back when it is dropped.
pub struct Permit {
    rates: Arc<Rates>,
}

impl Permit {
    /// What counts the tokens of this request.
    pub fn meter(&self) -> Meter {
        Meter(Some(self.rates.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.rates.running.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Counts tokens for whoever has to pay for them; the default is nobody.
#[derive(Clone, Default)]
pub struct Meter(Option<Arc<Rates>>);

impl Meter {
    pub fn tokens(&self, n: u64) {
        // Without a limit nothing pays, and the debt would only grow.
        if let Some(rates) = self.0.as_ref().filter(|rates| rates.tokens.is_some()) {
            rates.owed.fetch_add(n, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::clock::Manual;

    fn rates(requests: u32, tokens: u32, concurrent: u32) -> (Arc<Rates>, Manual) {
        let clock = Manual::default();
        clock.advance(Duration::from_secs(1000));
        let amounts = Amounts { requests, tokens, concurrent };
        (Arc::new(Rates::new(amounts, Arc::new(clock.clone()))), clock)
    }

    fn refused(rates: &Arc<Rates>) -> Full {
        rates.admit().err().expect("it is refused")
    }

    #[test]
    fn a_minute_of_requests_at_once_and_then_evenly() {
        let (rates, clock) = rates(6, 0, 0);
        for _ in 0..6 {
            rates.admit().unwrap();
        }
        assert_eq!(refused(&rates), Full::Requests { limit: 6, retry_after: 10 });
        clock.advance(Duration::from_millis(9_500));
        assert_eq!(refused(&rates), Full::Requests { limit: 6, retry_after: 1 });
        clock.advance(Duration::from_millis(500));
        rates.admit().unwrap();
        assert_eq!(refused(&rates), Full::Requests { limit: 6, retry_after: 10 });
    }

    #[test]
    fn tokens_are_paid_for_afterwards_and_nothing_is_let_in_before() {
        let (rates, clock) = rates(0, 600, 0);
        let permit = rates.admit().unwrap();
        permit.meter().tokens(600);
        rates.admit().unwrap();
        permit.meter().tokens(1500);
        // 600 of 1500 need a whole minute, then the rest is due part by part.
        assert_eq!(refused(&rates), Full::Tokens { limit: 600, retry_after: 60 });
        clock.advance(Duration::from_secs(60));
        assert_eq!(refused(&rates), Full::Tokens { limit: 600, retry_after: 60 });
        clock.advance(Duration::from_secs(60));
        assert_eq!(refused(&rates), Full::Tokens { limit: 600, retry_after: 30 });
        clock.advance(Duration::from_secs(30));
        rates.admit().unwrap();
    }

    #[test]
    fn places_are_given_back_also_by_those_who_were_refused_for_something_else() {
        let (rates, _clock) = rates(3, 0, 2);
        let (one, _two) = (rates.admit().unwrap(), rates.admit().unwrap());
        assert_eq!(refused(&rates), Full::Concurrent { limit: 2 });
        drop(one);
        drop(rates.admit().unwrap());
        assert_eq!(rates.running(), 1);
        assert!(matches!(refused(&rates), Full::Requests { .. }));
        assert_eq!(rates.running(), 1, "a refusal holds no place");
    }

    #[test]
    fn the_mean_keeps_to_the_limit_whatever_requests_take() {
        let (rates, clock) = rates(0, 1000, 0);
        let mut taken = 0;
        for step in 0..600_u64 {
            if let Ok(permit) = rates.admit() {
                let tokens = 37 + step * 7919 % 900;
                permit.meter().tokens(tokens);
                taken += tokens;
            }
            clock.advance(Duration::from_secs(1));
        }
        // Ten minutes, the minute that the bucket held, and the last request.
        assert!((10_000..=12_000).contains(&taken), "{taken}");
    }

    #[test]
    fn limits_that_stay_keep_what_was_used_up_and_new_ones_keep_what_runs() {
        let (old, _clock) = rates(1, 0, 2);
        let _running = old.admit().unwrap();
        assert!(old.with(Amounts { requests: 1, tokens: 0, concurrent: 2 }).admit().is_err());
        let new = old.with(Amounts { requests: 5, tokens: 0, concurrent: 1 });
        assert_eq!(refused(&new), Full::Concurrent { limit: 1 });
    }
}
