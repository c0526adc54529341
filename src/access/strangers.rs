//! Addresses that send keys which are not good, and how long each must wait.
//!
//! A key of the store is 256 random bits: nobody guesses it, and it is looked at wherever it comes from. The first key may be
//! one that somebody chose. Whoever was wrong too often must wait before another guess at it is even compared.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::Clock as _;
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use super::rates::{Ticks, seconds};
use crate::engine::clock::Clock;
use crate::server::addresses::household;

/// Addresses that wait at most; beyond that all of them may guess once more.
const MOST: usize = 65_536;

type Buckets = RateLimiter<Ipv6Addr, HashMapStateStore<Ipv6Addr>, Ticks, NoOpMiddleware<Duration>>;

/// Failures of addresses.
pub(super) struct Strangers {
    ticks: Ticks,
    state: Mutex<Option<Watched>>,
}

struct Watched {
    a_minute: NonZeroU32,
    buckets: Buckets,
    /// Until when an address waits.
    waiting: HashMap<Ipv6Addr, Duration>,
}

impl Strangers {
    /// `a_minute` failures each; 0: any number.
    pub fn new(a_minute: u32, clock: Arc<dyn Clock>) -> Self {
        let strangers = Self { ticks: Ticks(clock), state: Mutex::default() };
        strangers.limit(a_minute);
        strangers
    }

    /// A new limit forgets what was counted under the old one.
    pub fn limit(&self, a_minute: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.as_ref().map_or(0, |watched| watched.a_minute.get()) != a_minute {
            *state = NonZeroU32::new(a_minute).map(|a_minute| Watched {
                a_minute,
                buckets: RateLimiter::hashmap_with_clock(Quota::per_minute(a_minute), self.ticks.clone()),
                waiting: HashMap::new(),
            });
        }
    }

    /// Seconds that an address must wait before it may guess again.
    pub fn must_wait(&self, peer: Option<IpAddr>) -> Option<u32> {
        let (peer, now) = (place(peer?), self.ticks.now());
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let until = *state.as_ref()?.waiting.get(&peer)?;
        let left = until.checked_sub(now).filter(|left| !left.is_zero())?;
        Some((left.as_secs_f64().ceil() as u32).max(1))
    }

    /// Counts a failure. Seconds that the address must wait, if it was one too many.
    pub fn failed(&self, peer: Option<IpAddr>) -> Option<u32> {
        let (peer, now) = (place(peer?), self.ticks.now());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let watched = state.as_mut()?;
        match watched.buckets.check_key(&peer) {
            Ok(()) => None,
            Err(until) => {
                let wait = seconds(&until, now);
                if watched.waiting.len() >= MOST {
                    watched.waiting.clear();
                }
                watched.waiting.insert(peer, now + Duration::from_secs(wait.into()));
                Some(wait)
            }
        }
    }

    /// Forgets addresses whose failures are long ago.
    pub fn tidy(&self) {
        let now = self.ticks.now();
        if let Some(watched) = self.state.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            watched.buckets.retain_recent();
            watched.buckets.shrink_to_fit();
            watched.waiting.retain(|_, until| *until > now);
        }
    }
}

/// What counts as one. Whoever is on this host has all of its loopback addresses.
fn place(peer: IpAddr) -> Ipv6Addr {
    match peer.to_canonical().is_loopback() {
        true => Ipv6Addr::LOCALHOST,
        false => household(peer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::clock::Manual;

    fn strangers(a_minute: u32) -> (Strangers, Manual) {
        let clock = Manual::default();
        clock.advance(Duration::from_secs(1000));
        (Strangers::new(a_minute, Arc::new(clock.clone())), clock)
    }

    fn from(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn twenty_failures_a_minute_and_then_an_address_waits() {
        let (strangers, clock) = strangers(20);
        for _ in 0..20 {
            assert_eq!(strangers.failed(from("192.0.2.1")), None);
            assert_eq!(strangers.must_wait(from("192.0.2.1")), None);
        }
        assert_eq!(strangers.failed(from("192.0.2.1")), Some(3));
        assert_eq!(strangers.must_wait(from("::ffff:192.0.2.1")), Some(3));
        assert_eq!(strangers.must_wait(from("192.0.2.2")), None, "its neighbour does not");
        clock.advance(Duration::from_secs(3));
        assert_eq!(strangers.must_wait(from("192.0.2.1")), None);
        assert_eq!(strangers.failed(from("192.0.2.1")), None);
        assert_eq!(strangers.failed(from("192.0.2.1")), Some(3), "one guess in three seconds");
    }

    #[test]
    fn a_host_has_all_addresses_of_its_network() {
        let (strangers, _clock) = strangers(2);
        for i in 0..2 {
            assert_eq!(strangers.failed(from(&format!("2001:db8::{i}"))), None);
        }
        assert!(strangers.failed(from("2001:db8::ffff:1:2:3")).is_some());
        assert!(strangers.failed(from("2001:db8:0:1::1")).is_none());
        for here in ["127.0.0.1", "127.7.7.7"] {
            assert_eq!(strangers.failed(from(here)), None);
        }
        assert!(strangers.failed(from("127.255.255.254")).is_some());
    }

    #[test]
    fn without_a_limit_nobody_waits_and_a_new_limit_begins_anew() {
        let (strangers, _clock) = strangers(0);
        for _ in 0..100 {
            assert_eq!(strangers.failed(from("192.0.2.1")), None);
        }
        strangers.limit(1);
        assert_eq!(strangers.failed(from("192.0.2.1")), None);
        assert!(strangers.failed(from("192.0.2.1")).is_some());
        strangers.limit(1);
        assert!(strangers.must_wait(from("192.0.2.1")).is_some(), "the same limit goes on");
    }

    #[test]
    fn addresses_are_forgotten_after_a_while() {
        let (strangers, clock) = strangers(1);
        for i in 0..200 {
            strangers.failed(from(&format!("192.0.2.{i}")));
            strangers.failed(from(&format!("192.0.2.{i}")));
        }
        clock.advance(Duration::from_secs(121));
        strangers.tidy();
        let state = strangers.state.lock().unwrap();
        let watched = state.as_ref().unwrap();
        assert_eq!((watched.buckets.len(), watched.waiting.len()), (0, 0));
    }
}
