//! How many connections there are (step 1 in the life of a request), in all and of one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::addresses::household;

/// The places of a listener, or of several that share them.
pub struct Places {
    all: Arc<Semaphore>,
    most: usize,
    per_address: usize,
    taken: Mutex<HashMap<Ipv6Addr, usize>>,
}

impl Places {
    pub fn new(all: usize, per_address: usize) -> Arc<Self> {
        let places =
            Self { all: Arc::new(Semaphore::new(all)), most: all, per_address, taken: Mutex::default() };
        Arc::new(places)
    }

    /// Waits until a connection has a place; before that none is taken from the kernel, where they wait in line.
    pub async fn free(&self) -> OwnedSemaphorePermit {
        self.all.clone().acquire_owned().await.expect("bug: the semaphore is never closed")
    }

    /// Few places are left: a connection that is not in use is better closed than kept.
    pub fn scarce(&self) -> bool {
        self.all.available_permits() < self.most / 8
    }

    /// Takes the place. `None`: this address has as many as it may.
    pub fn take(
        self: &Arc<Self>,
        permit: OwnedSemaphorePermit,
        address: IpAddr,
        limited: bool,
    ) -> Option<Place> {
        let household = household(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(household).or_default();
        if limited && *count >= self.per_address {
            return None;
        }
        *count += 1;
        Some(Place { places: self.clone(), household, _permit: permit })
    }
}

/// A connection's place, until it is dropped.
pub struct Place {
    places: Arc<Places>,
    household: Ipv6Addr,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.household) {
            *count -= 1;
            // The map holds who is here, never who was.
            if *count == 0 {
                taken.remove(&self.household);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_address_has_its_limit_and_the_others_do_not_feel_it() {
        let places = Places::new(16, 2);
        let (here, there) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let first = places.take(places.free().await, here, true);
        let second = places.take(places.free().await, here, true);
        assert!(first.is_some() && second.is_some());
        assert!(places.take(places.free().await, here, true).is_none());
        assert!(places.take(places.free().await, there, true).is_some());
        assert!(places.take(places.free().await, here, false).is_some(), "a trusted proxy has no such limit");
        drop(first);
        assert!(
            places.take(places.free().await, here, true).is_some(),
            "a place that was left is free again"
        );
    }

    #[tokio::test]
    async fn addresses_that_have_left_take_no_memory() {
        let places = Places::new(4, 1);
        for last in 0..200u8 {
            let address = IpAddr::from([10, 0, 0, last]);
            assert!(places.take(places.free().await, address, true).is_some());
        }
        assert!(places.taken.lock().unwrap().is_empty());
        assert!(!places.scarce(), "all places are free again");
    }

    #[tokio::test]
    async fn places_are_scarce_when_an_eighth_is_left() {
        let places = Places::new(16, 16);
        let mut held = Vec::new();
        while !places.scarce() {
            held.push(places.free().await);
        }
        assert_eq!(held.len(), 15);
    }
}
