//! Ranks of a model as threads, and where they meet to sum. A rank that fails ends the others too: at a plain barrier they
//! would wait for it for ever.

use std::any::Any;
use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What the ranks know of each other.
#[derive(Default)]
struct Round {
    /// The numbers of each rank that came, and how many came.
    given: Vec<Vec<f32>>,
    came: usize,
    /// How many read the sum; the next round begins when all have.
    read: usize,
    /// Ranks that come no more, the first of them first.
    gone: Vec<usize>,
}

struct Meeting {
    round: Mutex<Round>,
    changed: Condvar,
}

impl Meeting {
    fn round(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One rank's place at the meeting. When it is dropped, the rank comes no more.
pub struct Member {
    rank: usize,
    of: usize,
    meeting: Arc<Meeting>,
}

impl Member {
    /// Replaces numbers by their sums over all ranks, one rank after another, so that all of them get the same bits.
    /// Panics when a rank that is needed comes no more.
    pub fn sum(&self, numbers: &mut [f32]) {
        let mut round = self.meeting.round();
        round.given[self.rank] = numbers.to_vec();
        round.came += 1;
        self.meeting.changed.notify_all();
        round = self.wait(round, |round| round.came == self.of);
        numbers.fill(0.0);
        for part in &round.given {
            assert_eq!(part.len(), numbers.len(), "ranks sum as many numbers");
            numbers.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        round.read += 1;
        if round.read == self.of {
            (round.came, round.read) = (0, 0);
            self.meeting.changed.notify_all();
        } else {
            // Nobody gives the next numbers before all have read these.
            drop(self.wait(round, |round| round.came < self.of));
        }
    }

    fn wait<'a>(
        &'a self,
        mut round: MutexGuard<'a, Round>,
        is_over: impl Fn(&Round) -> bool,
    ) -> MutexGuard<'a, Round> {
        while !is_over(&round) {
            if let Some(rank) = round.gone.first() {
                panic!("rank {rank} came no more");
            }
            round = self.meeting.changed.wait(round).unwrap_or_else(PoisonError::into_inner);
        }
        round
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.meeting.round().gone.push(self.rank);
        self.meeting.changed.notify_all();
    }
}

/// Lets ranks do something at the same time and returns what each of them got. If one panics, so does this, with the words of
/// the one that did so first.
pub fn together<T: Send>(of: usize, work: impl Fn(usize, Member) -> T + Sync) -> Vec<T> {
    let round = Round { given: vec![Vec::new(); of], ..Round::default() };
    let meeting = Arc::new(Meeting { round: Mutex::new(round), changed: Condvar::new() });
    let results: Vec<Result<T, Box<dyn Any + Send>>> = std::thread::scope(|scope| {
        let (work, meeting) = (&work, &meeting);
        let rank = |rank| {
            let member = Member { rank, of, meeting: meeting.clone() };
            scope.spawn(move || work(rank, member))
        };
        let threads: Vec<_> = (0..of).map(rank).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for (rank, result) in results.into_iter().enumerate() {
        match result {
            Ok(value) => done.push(value),
            Err(why) => failed.push((rank, why)),
        }
    }
    let gone = &meeting.round().gone;
    match failed.into_iter().min_by_key(|(rank, _)| gone.iter().position(|gone| gone == rank)) {
        Some((_, why)) => resume_unwind(why),
        None => done,
    }
}
