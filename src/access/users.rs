//! GitLab's users: how much each may ask for, whichever way it comes. Who the user is comes from a token that was checked, or
//! from GitLab itself in a request that carries its token; never from a header alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::rates::{Amounts, Full, Permit, Rates};
use crate::engine::clock::Clock;

/// Users that are remembered at most, apart from those with a request on its way.
const MOST: usize = 100_000;

pub(super) struct Users {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    amounts: Amounts,
    rates: HashMap<Box<str>, Arc<Rates>>,
}

impl Users {
    pub fn new(amounts: Amounts, clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::new(State { amounts, rates: HashMap::new() }) }
    }

    /// New limits for all.
    pub fn limit(&self, amounts: Amounts) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.amounts = amounts;
        state.rates.values_mut().for_each(|rates| *rates = rates.with(amounts));
    }

    pub fn admit(&self, user: &str) -> Result<Option<Permit>, Full> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let amounts = state.amounts;
        if amounts == Amounts::default() {
            return Ok(None);
        }
        if !state.rates.contains_key(user) {
            if state.rates.len() >= MOST {
                state.rates.retain(|_, rates| rates.running() > 0);
            }
            state.rates.insert(user.into(), Arc::new(Rates::new(amounts, self.clock.clone())));
        }
        state.rates[user].admit().map(Some)
    }

    /// Forgets users who asked for nothing for a while.
    pub fn tidy(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.rates.retain(|_, rates| rates.running() > 0 || !rates.rested());
        state.rates.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::clock::Manual;

    #[test]
    fn each_user_has_limits_of_its_own_and_is_forgotten_when_it_rests() {
        let clock = Manual::default();
        clock.advance(Duration::from_secs(1000));
        let users = Users::new(Amounts { requests: 2, tokens: 0, concurrent: 1 }, Arc::new(clock.clone()));
        let running = users.admit("eve").unwrap();
        assert_eq!(users.admit("eve").err(), Some(Full::Concurrent { limit: 1 }));
        assert!(users.admit("ada").is_ok());
        drop(running);
        assert!(users.admit("eve").is_ok());
        assert!(matches!(users.admit("eve").err(), Some(Full::Requests { limit: 2, .. })));
        users.tidy();
        assert!(users.admit("eve").is_err(), "what was used up is not forgotten");
        clock.advance(Duration::from_secs(120));
        users.tidy();
        assert!(users.state.lock().unwrap().rates.is_empty());
        users.limit(Amounts::default());
        assert!((0..100).all(|_| users.admit("eve").is_ok()));
    }
}
