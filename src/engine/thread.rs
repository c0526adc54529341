//! The loop: one thread that owns sequences, blocks and the device.
//!
//! A turn takes in what was asked, drops what nobody wants any more, plans a step and runs it. Where the executor does
//! the work inside `launch`, the step is collected before the next is planned. Where it works beside the host, the
//! next step is planned and launched first, its rows naming tokens that are still being drawn; the step before is
//! collected and committed meanwhile, and only then is the next one sampled, because masks and penalties need its
//! tokens.
//!
//! An executor that fails or panics ends the requests in flight and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread;
use std::time::Duration;

use hearth_kernels::sample::SampleRow;

use super::arbiter::Arbiter;
use super::batch::Batch;
use super::clock::Clock;
use super::executor::{Executor, StepError};
use super::handle::{Command, Config, Shared};
use super::plan::Scheduler;

/// How often the clock is looked at while nothing can be computed and something may expire.
const GLANCE: Duration = Duration::from_millis(10);

pub(crate) struct Thread {
    executor: Box<dyn Executor>,
    overlaps: bool,
    scheduler: Scheduler,
    shared: Arc<Shared>,
    inbox: Receiver<Command>,
    arbiter: Option<Arc<Arbiter>>,
    clock: Arc<dyn Clock>,
    /// Taking no more requests; those that are left fail at this time, if there is one.
    stopping: Option<Option<Duration>>,
    next: Batch,
    /// The step in flight, where steps overlap.
    flying: Batch,
    rows: Vec<SampleRow<'static>>,
}

impl Thread {
    pub fn new(
        executor: Box<dyn Executor>,
        config: Config,
        shared: Arc<Shared>,
        inbox: Receiver<Command>,
    ) -> Self {
        let mut key = [0; 16];
        getrandom::fill(&mut key).expect("bug: the system has no random numbers");
        Self {
            overlaps: executor.overlaps(),
            next: Batch::new(&shared.capacity),
            flying: Batch::new(&shared.capacity),
            rows: Vec::with_capacity(shared.capacity.logits as usize),
            scheduler: Scheduler::new(executor.capacity(), &config, shared.clone(), &key),
            executor,
            shared,
            inbox,
            arbiter: config.arbiter,
            clock: config.clock,
            stopping: None,
        }
    }

    /// Runs until it is stopped, or until nobody can ask for anything any more.
    pub fn run(mut self) {
        loop {
            if self.turn() {
                continue;
            }
            if self.stopping.is_some() && self.scheduler.is_empty() {
                return;
            }
            if self.scheduler.timed() || matches!(self.stopping, Some(Some(_))) {
                thread::park_timeout(GLANCE);
            } else {
                thread::park();
            }
        }
    }

    /// One turn of the loop. Returns whether there was anything to compute.
    pub fn turn(&mut self) -> bool {
        let now = self.clock.now();
        self.shared.gauges.beat.mark(now);
        self.take_in(now);
        if self.shared.bell.answered() {
            self.scheduler.sweep();
        }
        self.scheduler.expire(now);
        if let Some(Some(end)) = self.stopping
            && now >= end
        {
            self.scheduler.fail_all("the engine is stopping");
        }
        let planned = self.scheduler.plan(&mut self.next, now);
        let flying = !self.flying.entries.is_empty();
        self.scheduler.publish();
        if planned || flying {
            let arbiter = self.arbiter.clone();
            self.shared.gauges.beat.rest();
            let _turn = arbiter.as_ref().map(|arbiter| arbiter.turn());
            self.shared.gauges.beat.mark(self.clock.now());
            if let Err(error) = self.step(planned, flying) {
                self.failed(&error);
            }
        }
        self.scheduler.publish();
        self.shared.gauges.beat.rest();
        planned || flying
    }

    fn take_in(&mut self, now: Duration) {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Submit(mut group)) => match self.stopping {
                    None => self.scheduler.submit(*group),
                    Some(_) => group.events.end(Some("the engine is stopping".into())),
                },
                Ok(Command::Stop(drain)) => {
                    let end = now.saturating_add(drain);
                    let sooner = self.stopping.flatten().map_or(end, |before| before.min(end));
                    self.stopping = Some(Some(sooner));
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.stopping.get_or_insert(None);
                    return;
                }
            }
        }
    }

    /// Runs the next step and commits the one it can.
    fn step(&mut self, planned: bool, flying: bool) -> Result<(), StepError> {
        let executor = &mut *self.executor;
        if planned {
            guarded(|| executor.launch(&self.next.step))?;
            self.shared.gauges.steps.fetch_add(1, Relaxed);
            self.shared.timings.batch.observe(self.next.entries.len() as f64);
        }
        if flying {
            collect(executor, &mut self.flying)?;
            self.scheduler.commit(&mut self.flying);
            self.flying.clear();
        }
        if planned {
            self.scheduler.mask(&self.next);
            let mut rows = recycle(std::mem::take(&mut self.rows));
            self.scheduler.rows(&mut self.next, &mut rows);
            let launched = guarded(|| executor.sample(&rows));
            self.rows = recycle(rows);
            launched?;
            self.scheduler.sampled(&self.next);
            if self.overlaps {
                std::mem::swap(&mut self.next, &mut self.flying);
            } else {
                collect(executor, &mut self.next)?;
                self.scheduler.commit(&mut self.next);
                self.next.clear();
            }
        }
        Ok(())
    }

    /// Ends the requests of every step in flight.
    fn failed(&mut self, error: &StepError) {
        tracing::error!(%error, requests = self.next.entries.len(), "a step failed");
        self.shared.gauges.failed_steps.fetch_add(1, Relaxed);
        let text = error.to_string();
        for batch in [&mut self.flying, &mut self.next] {
            self.scheduler.abandon(batch, &text);
            batch.clear();
        }
        let executor = &mut *self.executor;
        if let Err(error) = guarded(|| {
            executor.reset();
            Ok(())
        }) {
            tracing::error!(%error, "the executor could not be reset");
        }
    }

    #[cfg(test)]
    pub fn audit(&self) {
        self.scheduler.audit();
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.scheduler.fail_all("the engine stopped");
            self.scheduler.publish();
        }
        self.shared.ended();
    }
}

fn collect(executor: &mut dyn Executor, batch: &mut Batch) -> Result<(), StepError> {
    batch.results.clear();
    guarded(|| executor.collect(&mut batch.results))?;
    let expected = batch.entries.iter().filter(|entry| entry.results.is_some());
    let expected: u32 = expected.map(|entry| entry.scored + u32::from(entry.draws)).sum();
    if batch.results.len() != expected as usize {
        return Err(StepError(format!("{} results came back for {expected} rows", batch.results.len())));
    }
    Ok(())
}

/// An executor's panic is its step's error.
fn guarded(call: impl FnOnce() -> Result<(), StepError>) -> Result<(), StepError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panic");
        Err(StepError(text.to_owned()))
    })
}

/// An empty vector in the same memory, for rows that borrow from something else.
fn recycle<'b>(mut rows: Vec<SampleRow<'_>>) -> Vec<SampleRow<'b>> {
    rows.clear();
    rows.into_iter().map(|_| unreachable!("bug: a cleared vector has rows")).collect()
}
