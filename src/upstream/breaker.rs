//! A server that is away is not asked by every request: after some attempts in a row that came to nothing requests are
//! refused at once, and now and then one of them tries again.
//!
//! Of a server that is silent nobody knows whether it is away or slow. Then only those are refused who would not wait
//! longer than others did in vain: a slow model that never completes code in time still chats.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Attempts in a row that come to nothing before requests are refused.
const FAILURES: u32 = 5;
/// From one trial to the next.
const PAUSE: Duration = Duration::from_secs(5);
/// Whoever leaves earlier has not waited: that says nothing about the server.
const EARLY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// How long somebody waited in vain at most; without end when no connection could be made.
    waited: Duration,
    /// When the next request may try.
    again: Option<Instant>,
    /// When an answer began last.
    heard: Option<Instant>,
}

impl Breaker {
    /// Whether a request may try that waits for so long; if not, in how long the next one may.
    pub fn allows(&self, now: Instant, patience: Duration) -> Result<(), Duration> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.failures < FAILURES || patience > state.waited {
            return Ok(());
        }
        match state.again {
            Some(again) if again > now => Err(again - now),
            _ => {
                // This one tries; the others wait for what it finds.
                state.again = Some(now + PAUSE);
                Ok(())
            }
        }
    }

    /// An answer has begun.
    pub fn answered(&self, now: Instant) {
        let heard = State { heard: Some(now), ..State::default() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = heard;
    }

    /// There is nothing to connect to.
    pub fn failed(&self, now: Instant) {
        self.count(now, Duration::MAX);
    }

    /// An attempt was given up on before its answer began.
    pub fn given_up(&self, begin: Instant, now: Instant) {
        let waited = now.saturating_duration_since(begin);
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner).heard;
        if waited >= EARLY && heard.is_none_or(|heard| heard < begin) {
            self.count(now, waited);
        }
    }

    fn count(&self, now: Instant, waited: Duration) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.failures += 1;
        state.waited = state.waited.max(waited);
        state.again = Some(now + PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    #[test]
    fn after_failures_in_a_row_one_request_at_a_time_tries_again() {
        let breaker = Breaker::default();
        let allows = |now| breaker.allows(now, Duration::from_secs(600));
        let now = Instant::now();
        for _ in 0..FAILURES {
            assert_eq!(allows(now), Ok(()));
            breaker.failed(now);
        }
        assert_eq!(allows(now), Err(PAUSE));
        let later = now + PAUSE;
        assert_eq!(allows(later), Ok(()), "one tries");
        assert_eq!(allows(later), Err(PAUSE), "the next does not");
        breaker.failed(later);
        assert_eq!(allows(later), Err(PAUSE));
        assert_eq!(allows(later + PAUSE), Ok(()));
        breaker.answered(later + PAUSE);
        assert_eq!((allows(later + PAUSE), allows(later + PAUSE)), (Ok(()), Ok(())));
    }

    #[test]
    fn who_would_wait_longer_than_others_did_in_vain_may_try() {
        let breaker = Breaker::default();
        let begin = Instant::now();
        let now = begin + PATIENCE;
        for _ in 0..FAILURES {
            assert_eq!(breaker.allows(now, PATIENCE), Ok(()));
            breaker.given_up(begin, now);
        }
        assert_eq!(breaker.allows(now, PATIENCE), Err(PAUSE));
        assert_eq!(breaker.allows(now, PATIENCE * 2), Ok(()));
        breaker.given_up(begin, begin + PATIENCE * 2);
        assert!(breaker.allows(now, PATIENCE * 2).is_err(), "that was in vain as well");
        breaker.answered(now + PAUSE);
        assert_eq!(breaker.allows(now + PAUSE, PATIENCE), Ok(()));
    }

    #[test]
    fn who_leaves_early_or_while_others_are_answered_says_nothing_about_the_server() {
        let breaker = Breaker::default();
        let begin = Instant::now();
        for _ in 0..FAILURES {
            breaker.given_up(begin, begin + EARLY / 2);
        }
        breaker.answered(begin + EARLY);
        for _ in 0..FAILURES {
            breaker.given_up(begin, begin + PATIENCE);
        }
        assert_eq!(breaker.allows(begin + PATIENCE, EARLY), Ok(()));
    }
}
