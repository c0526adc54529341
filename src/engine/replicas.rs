//! One model on several devices, a replica of it on each: which of them takes a request (step 5 in the life of a request).
//!
//! The one that is likely to have computed the prompt first: it has the fewest tokens to compute, those of other requests
//! and those of this prompt that it does not hold already. So a conversation comes back to where its beginning lies,
//! until that replica is further behind than computing the beginning anew would take.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::executor::Capacity;
use super::handle::{Handle, Status, Stopped, Tokens};
use super::prefix::{Half, Name, Namer};
use super::request::{Refused, Request};
use super::timings::Times;

/// Tokens of a prompt that are remembered under one name. Smaller pages remember more exactly and cost a digest each.
const PAGE: usize = 64;

/// Replicas at most: a bit each.
const MOST: usize = 64;

/// Tokens that an answer is taken to have, where more are allowed: most end long before their limit.
const LIKELY: u64 = 256;

/// All replicas of a model. Clones are the same replicas.
#[derive(Clone)]
pub struct Replicas(Arc<Inner>);

struct Inner {
    each: Vec<Replica>,
    known: Mutex<Known>,
    /// Whose turn it is among equals, so that all caches are used.
    turn: AtomicUsize,
}

struct Replica {
    engine: Handle,
    /// Tokens of requests that were routed here and have not ended.
    outstanding: Arc<AtomicU64>,
}

/// A request's share of its replica's outstanding tokens, until it is dropped.
pub(crate) struct Outstanding {
    of: Arc<AtomicU64>,
    tokens: u64,
}

impl Outstanding {
    fn new(of: &Arc<AtomicU64>, tokens: u64) -> Self {
        of.fetch_add(tokens, Ordering::Relaxed);
        Self { of: of.clone(), tokens }
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.of.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}

impl From<Handle> for Replicas {
    fn from(engine: Handle) -> Self {
        Self::new(vec![engine])
    }
}

impl Replicas {
    /// Of one model: same checkpoint, same limits.
    pub fn new(engines: Vec<Handle>) -> Self {
        assert!((1..=MOST).contains(&engines.len()), "bug: {} replicas", engines.len());
        let mut key = [0; 16];
        getrandom::fill(&mut key).expect("bug: the system gives no random numbers");
        let tokens: usize = engines.iter().map(|e| e.capacity().tokens()).sum();
        let each =
            engines.into_iter().map(|engine| Replica { engine, outstanding: Arc::default() }).collect();
        let known = Mutex::new(Known::new(Namer::new(&key), tokens / PAGE));
        Self(Arc::new(Inner { each, known, turn: AtomicUsize::new(0) }))
    }

    pub fn capacity(&self) -> Capacity {
        self.0.each[0].engine.capacity()
    }

    /// Prompt and output together at most.
    pub fn longest(&self) -> u32 {
        self.0.each.iter().map(|r| r.engine.longest()).min().expect("bug: no replica")
    }

    /// The engines themselves, in the order of their devices.
    pub fn each(&self) -> impl ExactSizeIterator<Item = &Handle> {
        self.0.each.iter().map(|replica| &replica.engine)
    }

    /// How long things took so far, on all of them together.
    pub fn times(&self) -> Times {
        let mut each = self.each().map(|engine| engine.timings().read());
        let first = each.next().expect("bug: no replica");
        each.fold(first, |sum, times| sum.and(&times))
    }

    /// Queues a request where it is likely to begin first. A replica that refuses it for want of room, or that has
    /// ended, leaves it to the next. Never waits.
    pub fn submit(&self, request: Request) -> Result<Tokens, Refused> {
        match &*self.0.each {
            [only] => only.engine.submit(request),
            each => self.route(each, request),
        }
    }

    fn route(&self, each: &[Replica], mut request: Request) -> Result<Tokens, Refused> {
        let prompt = request.prompt.len() as u64;
        let likely = u64::from(request.choices.max(1)) * u64::from(request.max_tokens).min(LIKELY);
        let names = self.known().names(&request);
        let held = self.known().held(&names, each.len());
        let turn = self.0.turn.fetch_add(1, Ordering::Relaxed);
        let mut order: Vec<(u64, usize, usize)> = (0..each.len())
            .map(|i| {
                let ahead = each[i].outstanding.load(Ordering::Relaxed);
                (ahead + prompt - held[i], (i + each.len() - turn % each.len()) % each.len(), i)
            })
            .collect();
        order.sort_unstable();
        let mut refusals = Vec::new();
        for (_, _, i) in order {
            let replica = &each[i];
            let share = Outstanding::new(&replica.outstanding, prompt - held[i] + likely);
            match replica.engine.offer(request) {
                Ok(tokens) => {
                    self.known().learn(&names, i);
                    return Ok(tokens.holding(share));
                }
                Err((refused, back)) => {
                    let elsewhere =
                        matches!(refused, Refused::Full { .. } | Refused::Late { .. } | Refused::Stopping);
                    if !elsewhere {
                        return Err(refused);
                    }
                    refusals.push(refused);
                    request = *back;
                }
            }
        }
        Err(kindest(refusals))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All replicas together.
    pub fn status(&self) -> Status {
        let mut each = self.each().map(Handle::status);
        let first = each.next().expect("bug: no replica");
        each.fold(first, Status::and)
    }

    /// See [`Handle::stop`].
    pub fn stop(&self, drain: Duration) -> Vec<Stopped> {
        self.each().map(|engine| engine.stop(drain)).collect()
    }
}

/// Of several refusals the one with the most hope in it: the queue that is likely to have room first.
fn kindest(refusals: Vec<Refused>) -> Refused {
    let hope = |refused: &Refused| match refused {
        Refused::Full { retry_after, .. } => (0, *retry_after),
        Refused::Late { wait, .. } => (1, *wait),
        _ => (2, 0),
    };
    refusals.into_iter().min_by_key(hope).expect("bug: nobody refused")
}

/// Which replicas were given which beginnings of prompts. It may be wrong in both directions, since it does not hear what
/// a replica forgets: that costs time and nothing else.
struct Known {
    namer: Namer,
    /// Names used lately; when they are too many they become the old ones, and the old ones are forgotten.
    young: HashMap<Name, u64, BuildHasherDefault<Half>>,
    old: HashMap<Name, u64, BuildHasherDefault<Half>>,
    room: usize,
}

impl Known {
    fn new(namer: Namer, room: usize) -> Self {
        Self { namer, young: HashMap::default(), old: HashMap::default(), room: room.max(64) }
    }

    /// The names of the prompt's beginnings, one a page.
    fn names(&self, request: &Request) -> Vec<Name> {
        let mut name = self.namer.root(request.salt, None);
        let pages = request.prompt.chunks_exact(PAGE);
        pages
            .map(|page| {
                name = self.namer.next(name, page);
                name
            })
            .collect()
    }

    /// Tokens of the prompt that each replica is thought to hold.
    fn held(&self, names: &[Name], replicas: usize) -> Vec<u64> {
        let mut held = vec![0; replicas];
        let mut all = u64::MAX;
        for (page, name) in names.iter().enumerate() {
            let of = |map: &HashMap<Name, u64, _>| map.get(name).copied().unwrap_or(0);
            all &= of(&self.young) | of(&self.old);
            if all == 0 {
                break;
            }
            for (replica, tokens) in held.iter_mut().enumerate().filter(|(i, _)| all >> i & 1 == 1) {
                debug_assert!(replica < MOST);
                *tokens = ((page + 1) * PAGE) as u64;
            }
        }
        held
    }

    fn learn(&mut self, names: &[Name], replica: usize) {
        for name in names {
            *self.young.entry(*name).or_default() |= 1 << replica;
        }
        if self.young.len() > self.room {
            self.old = std::mem::take(&mut self.young);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(room: usize) -> Known {
        Known::new(Namer::new(&[7; 16]), room)
    }

    fn prompt(tokens: impl IntoIterator<Item = u32>) -> Request {
        Request::new(tokens.into_iter().collect::<Vec<u32>>())
    }

    #[test]
    fn a_beginning_is_known_where_it_was_given_as_far_as_it_is_the_same() {
        let mut known = known(1000);
        let names = known.names(&prompt(0..200));
        assert_eq!(names.len(), 3, "whole pages only");
        known.learn(&names, 1);
        assert_eq!(known.held(&names, 3), [0, 192, 0]);
        let longer = known.names(&prompt((0..128).chain(500..700)));
        assert_eq!(known.held(&longer, 3), [0, 128, 0]);
        let other = known.names(&prompt(1..200));
        assert_eq!(known.held(&other, 3), [0, 0, 0]);
    }

    #[test]
    fn other_peoples_beginnings_are_other_beginnings() {
        let mut known = known(1000);
        let mine = Request { salt: 1, ..prompt(0..64) };
        let names = known.names(&mine);
        known.learn(&names, 0);
        let theirs = known.names(&Request { salt: 2, ..prompt(0..64) });
        assert_eq!(known.held(&theirs, 2), [0, 0]);
    }

    #[test]
    fn what_is_used_again_is_remembered_and_what_is_not_is_forgotten() {
        let mut known = known(64);
        let kept = known.names(&prompt(0..64));
        let left = known.names(&prompt(1..65));
        known.learn(&left, 0);
        for round in 0..40 {
            known.learn(&kept, 1);
            let others = known.names(&prompt((0..640).map(|t| t + 1000 * (round + 1))));
            known.learn(&others, 0);
        }
        assert_eq!(known.held(&kept, 2), [0, 64]);
        assert_eq!(known.held(&left, 2), [0, 0]);
        assert!(
            known.young.len() + known.old.len() <= 2 * 64 + 20,
            "{}",
            known.young.len() + known.old.len()
        );
    }

    #[test]
    fn of_refusals_the_earliest_hope_is_told() {
        let full = |retry_after| Refused::Full { queued: 1, queued_tokens: 1, retry_after };
        assert_eq!(kindest(vec![Refused::Stopping, full(9), full(4)]), full(4));
        assert_eq!(kindest(vec![Refused::Stopping]), Refused::Stopping);
    }
}
