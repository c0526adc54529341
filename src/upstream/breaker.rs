//! A server that is away is not asked by every request: after some failed connections in a row requests are refused at
//! once, and now and then one of them tries again.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Connections that fail in a row before requests are refused.
const FAILURES: u32 = 5;
/// From one trial to the next.
const PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// When the next request may try.
    again: Option<Instant>,
}

impl Breaker {
    /// Whether a request may try a connection; if not, in how long the next one may.
    pub fn allows(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.failures < FAILURES {
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

    pub fn connected(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = State::default();
    }

    pub fn failed(&self, now: Instant) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.failures += 1;
        state.again = Some(now + PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_failures_in_a_row_one_request_at_a_time_tries_again() {
        let breaker = Breaker::default();
        let now = Instant::now();
        for _ in 0..FAILURES {
            assert_eq!(breaker.allows(now), Ok(()));
            breaker.failed(now);
        }
        assert_eq!(breaker.allows(now), Err(PAUSE));
        let later = now + PAUSE;
        assert_eq!(breaker.allows(later), Ok(()), "one tries");
        assert_eq!(breaker.allows(later), Err(PAUSE), "the next does not");
        breaker.failed(later);
        assert_eq!(breaker.allows(later), Err(PAUSE));
        assert_eq!(breaker.allows(later + PAUSE), Ok(()));
        breaker.connected();
        assert_eq!((breaker.allows(later), breaker.allows(later)), (Ok(()), Ok(())));
    }
}
