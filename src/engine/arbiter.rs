//! One device, several engines: whose step is next.
//!
//! A turnstile in order of arrival. An engine that wants to step again goes to the back of the line, so two busy
//! engines alternate step by step, and an idle one costs the other nothing. Steps are not weighed by their length: the
//! token budget of each engine is what bounds how long its neighbour waits.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Shared by the engines of one device.
#[derive(Default)]
pub struct Arbiter {
    line: Mutex<Line>,
    moved: Condvar,
}

#[derive(Default)]
struct Line {
    next: u64,
    serving: u64,
}

/// The device, until it is dropped.
pub struct Turn<'a>(&'a Arbiter);

impl Arbiter {
    /// Waits for the engines that asked before.
    pub fn turn(&self) -> Turn<'_> {
        let mut line = self.lock();
        let ticket = line.next;
        line.next += 1;
        while line.serving != ticket {
            line = self.moved.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
        Turn(self)
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().serving += 1;
        self.0.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn two_engines_that_always_want_to_step_alternate() {
        let arbiter = Arc::new(Arbiter::default());
        let log = Arc::new(Mutex::new(Vec::new()));
        let held = arbiter.turn();
        let engines: Vec<_> = (0..2)
            .map(|engine| {
                let (arbiter, log) = (arbiter.clone(), log.clone());
                thread::spawn(move || {
                    for _ in 0..50 {
                        let _turn = arbiter.turn();
                        log.lock().unwrap().push(engine);
                        // The other engine is in line before this turn ends.
                        while {
                            let line = arbiter.lock();
                            line.next < line.serving + 2
                        } && log.lock().unwrap().len() < 99
                        {
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        while arbiter.lock().next < 3 {
            thread::yield_now();
        }
        drop(held);
        engines.into_iter().for_each(|e| e.join().unwrap());
        let log = log.lock().unwrap();
        assert!(log.windows(2).all(|w| w[0] != w[1]), "an engine stepped twice in a row: {log:?}");
    }

    #[test]
    fn an_engine_that_panics_in_its_turn_gives_it_back() {
        let arbiter = Arc::new(Arbiter::default());
        let other = arbiter.clone();
        let panicked = thread::spawn(move || {
            let _turn = other.turn();
            panic!("in the middle of a step");
        });
        assert!(panicked.join().is_err());
        drop(arbiter.turn());
    }
}
