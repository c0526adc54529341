//! The way into the engine (step 5 in the life of a request): start it, submit to it, watch it, stop it.
//!
//! Submitting never waits. What may wait in the queue is bounded twice, by requests and by prompt tokens; beyond
//! either the caller is refused at once, with the time after which room is likely.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use super::arbiter::Arbiter;
use super::clock::{Clock, Monotonic};
use super::executor::{Capacity, Executor};
use super::request::{Refused, Request};
use super::sequence::Group;
pub use super::stream::Tokens;
use super::stream::{Bell, channel};
use super::thread::Thread;
use super::timings::Timings;

/// How an engine serves. What the device can hold is the executor's [`Capacity`].
#[derive(Clone)]
pub struct Config {
    /// Names the thread and the log lines.
    pub name: String,
    /// Sequences that run at the same time at most; the device's rows and rows of logits bound it too.
    pub sequences: u32,
    /// Requests that may wait.
    pub queue_requests: u32,
    /// Prompt tokens that may wait. A request that finds the queue empty is taken whatever its length.
    pub queue_tokens: u64,
    /// Prompt rows of a step at most while some sequence decodes, so that a long prompt does not ruin the others'
    /// time between tokens. `None`: a quarter of the token budget.
    pub chunk: Option<u32>,
    /// Events that wait for a request's reader before its sequences pause.
    pub buffer: u32,
    /// How long a request may stay paused before it fails.
    pub slow_reader: Duration,
    /// Whether requests with equal salts share the blocks of equal prefixes.
    pub prefix_cache: bool,
    /// Shared by the engines of one device.
    pub arbiter: Option<Arc<Arbiter>>,
    pub clock: Arc<dyn Clock>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "engine".into(),
            sequences: 256,
            queue_requests: 256,
            queue_tokens: 262_144,
            chunk: None,
            buffer: 128,
            slow_reader: Duration::from_secs(30),
            prefix_cache: true,
            arbiter: None,
            clock: Arc::new(Monotonic::default()),
        }
    }
}

/// Starts engines.
pub struct Engine;

impl Engine {
    /// Gives the executor a thread of its own. It ends after [`Handle::stop`], or when every handle is dropped and
    /// every request has ended.
    pub fn start(executor: Box<dyn Executor>, config: Config) -> io::Result<Handle> {
        let name = config.name.clone();
        let (handle, engine) = Self::assemble(executor, config);
        let thread = thread::Builder::new().name(name).spawn(move || engine.run())?;
        handle.shared.bell.hang(thread.thread().clone());
        handle.shared.bell.wake();
        Ok(handle)
    }

    /// An engine that steps on the caller's thread, when it is told to: for tests and benchmarks.
    pub fn inline(executor: Box<dyn Executor>, config: Config) -> (Handle, Inline) {
        let (handle, engine) = Self::assemble(executor, config);
        (handle, Inline(engine))
    }

    fn assemble(executor: Box<dyn Executor>, config: Config) -> (Handle, Thread) {
        let shared = Arc::new(Shared {
            capacity: executor.capacity(),
            queue_requests: config.queue_requests,
            queue_tokens: config.queue_tokens,
            buffer: config.buffer,
            clock: config.clock.clone(),
            bell: Arc::default(),
            queue: Arc::default(),
            gauges: Gauges::default(),
            timings: Timings::default(),
            stopping: AtomicBool::new(false),
            ending: Ending::default(),
        });
        let (commands, inbox) = mpsc::channel();
        let engine = Thread::new(executor, config, shared.clone(), inbox);
        let leaving = Leaving(shared.bell.clone());
        (Handle { shared, commands, _leaving: leaving }, engine)
    }
}

/// See [`Engine::inline`].
pub struct Inline(Thread);

impl Inline {
    /// Takes in what was submitted and runs one step. Returns whether there was one.
    pub fn turn(&mut self) -> bool {
        self.0.turn()
    }

    /// Panics unless every block is held by the sequences that list it and by nothing else.
    #[cfg(test)]
    pub(super) fn audit(&self) {
        self.0.audit();
    }
}

/// What the handles ask of the thread.
pub(crate) enum Command {
    Submit(Box<Group>),
    Stop(Duration),
}

/// A running engine. Clones are the same engine.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    /// Dropped after the sender: the thread wakes up to see that nobody can ask it for anything any more.
    _leaving: Leaving,
}

#[derive(Clone)]
struct Leaving(Arc<Bell>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl Handle {
    pub fn capacity(&self) -> Capacity {
        self.shared.capacity
    }

    /// Prompt and output together at most: the model's context, or less where the cache is smaller.
    pub fn longest(&self) -> u32 {
        self.shared.capacity.longest()
    }

    /// Queues a request. Never waits.
    pub fn submit(&self, request: Request) -> Result<Tokens, Refused> {
        self.offer(request).map_err(|(refused, _)| refused)
    }

    /// The same; what is refused comes back, to be offered elsewhere.
    pub(crate) fn offer(&self, request: Request) -> Result<Tokens, (Refused, Box<Request>)> {
        let shared = &*self.shared;
        if shared.stopping.load(Ordering::Acquire) || shared.ending.ended() {
            return Err((Refused::Stopping, Box::new(request)));
        }
        let admitted = shared.limit(&request).and_then(|limit| Ok((limit, shared.admit(&request)?)));
        let (limit, permit) = match admitted {
            Ok(admitted) => admitted,
            Err(refused) => return Err((refused, Box::new(request))),
        };
        let choices = request.choices.max(1);
        // Room for every choice to send a token and its end in two steps in flight, and for the prompt's event.
        let room = (shared.buffer as usize).max(4 * choices as usize + 4);
        let (events, tokens) = channel(room, choices, shared.bell.clone());
        let group = Group::new(request, limit, events, permit, shared.clock.now());
        // A thread that has just ended drops what is sent to it, and the stream ends as failed.
        let _ = self.commands.send(Command::Submit(Box::new(group)));
        shared.bell.wake();
        Ok(tokens)
    }

    /// The state of the engine after its last step, without disturbing it.
    pub fn status(&self) -> Status {
        let shared = &*self.shared;
        let gauges = &shared.gauges;
        Status {
            alive: !shared.ending.ended(),
            stopping: shared.stopping.load(Ordering::Relaxed),
            running: gauges.running.load(Ordering::Relaxed),
            waiting: shared.queue.requests.load(Ordering::Relaxed),
            queued_tokens: shared.queue.tokens.load(Ordering::Relaxed),
            blocks_used: gauges.blocks_used.load(Ordering::Relaxed),
            blocks_total: shared.capacity.blocks,
            prefix_queries: gauges.prefix_queries.load(Ordering::Relaxed),
            prefix_hits: gauges.prefix_hits.load(Ordering::Relaxed),
            tokens_in: gauges.tokens_in.load(Ordering::Relaxed),
            tokens_out: gauges.tokens_out.load(Ordering::Relaxed),
            steps: gauges.steps.load(Ordering::Relaxed),
            failed_steps: gauges.failed_steps.load(Ordering::Relaxed),
            preemptions: gauges.preemptions.load(Ordering::Relaxed),
            rows: gauges.rows.load(Ordering::Relaxed),
            wasted_rows: gauges.wasted_rows.load(Ordering::Relaxed),
            step: gauges.beat.since(shared.clock.now()),
        }
    }

    /// How long things took so far.
    pub fn timings(&self) -> &Timings {
        &self.shared.timings
    }

    /// Takes no more requests, finishes those it has within `drain`, fails the rest, and ends the thread. Await the
    /// result, [`wait`](Stopped::wait) for it, or drop it.
    pub fn stop(&self, drain: Duration) -> Stopped {
        self.shared.stopping.store(true, Ordering::Release);
        let _ = self.commands.send(Command::Stop(drain));
        self.shared.bell.wake();
        Stopped { shared: self.shared.clone() }
    }
}

/// What an engine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The thread is there.
    pub alive: bool,
    pub stopping: bool,
    /// Requests that have begun and not ended.
    pub running: u32,
    /// Requests that have not begun.
    pub waiting: u32,
    /// Prompt tokens of the requests that have not begun.
    pub queued_tokens: u64,
    /// Blocks that belong to a sequence. The others are free, whether or not they still hold a prefix.
    pub blocks_used: u32,
    pub blocks_total: u32,
    /// Prompt tokens looked up in the prefix cache, and found, ever.
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    /// Prompt tokens of requests that began, and tokens sent, ever.
    pub tokens_in: u64,
    pub tokens_out: u64,
    pub steps: u64,
    pub failed_steps: u64,
    /// Sequences that gave their blocks back to older ones and began again.
    pub preemptions: u64,
    /// Rows computed.
    pub rows: u64,
    /// Rows of them that were in flight when their reader left.
    pub wasted_rows: u64,
    /// How long the loop has been in the turn that it is in; `None` while it waits for something to do.
    pub step: Option<Duration>,
}

impl Status {
    /// Both together, as if they were one engine. It is there as long as one of them is.
    pub fn and(self, other: Self) -> Self {
        Self {
            alive: self.alive || other.alive,
            stopping: self.stopping && other.stopping,
            running: self.running + other.running,
            waiting: self.waiting + other.waiting,
            queued_tokens: self.queued_tokens + other.queued_tokens,
            blocks_used: self.blocks_used + other.blocks_used,
            blocks_total: self.blocks_total + other.blocks_total,
            prefix_queries: self.prefix_queries + other.prefix_queries,
            prefix_hits: self.prefix_hits + other.prefix_hits,
            tokens_in: self.tokens_in + other.tokens_in,
            tokens_out: self.tokens_out + other.tokens_out,
            steps: self.steps + other.steps,
            failed_steps: self.failed_steps + other.failed_steps,
            preemptions: self.preemptions + other.preemptions,
            rows: self.rows + other.rows,
            wasted_rows: self.wasted_rows + other.wasted_rows,
            step: self.step.max(other.step),
        }
    }
}

/// Resolves when the engine's thread has ended.
pub struct Stopped {
    shared: Arc<Shared>,
}

impl Stopped {
    /// Blocks this thread until the engine's has ended. Not for async code.
    pub fn wait(self) {
        let ending = &self.shared.ending;
        let mut state = ending.lock();
        while !state.ended {
            state = ending.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Future for Stopped {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.shared.ending.lock();
        if state.ended {
            return Poll::Ready(());
        }
        state.wakers.push(context.waker().clone());
        Poll::Pending
    }
}

/// What handles and the thread both know.
pub(crate) struct Shared {
    pub capacity: Capacity,
    queue_requests: u32,
    queue_tokens: u64,
    buffer: u32,
    pub clock: Arc<dyn Clock>,
    pub bell: Arc<Bell>,
    pub queue: Arc<Queue>,
    pub gauges: Gauges,
    pub timings: Timings,
    stopping: AtomicBool,
    ending: Ending,
}

impl Shared {
    /// Checks what can be checked without the engine. Returns the length at which each choice ends.
    fn limit(&self, request: &Request) -> Result<u32, Refused> {
        let capacity = &self.capacity;
        let vocab = capacity.vocab;
        if request.prompt.is_empty() {
            return Err(Refused::Empty);
        }
        let biased = request.sampling.logit_bias.iter().map(|(token, _)| token);
        if let Some(&token) = request.prompt.iter().chain(biased).find(|t| **t >= vocab) {
            return Err(Refused::UnknownToken { token, vocab });
        }
        let prompt = u32::try_from(request.prompt.len()).unwrap_or(u32::MAX);
        let open = request.max_tokens == u32::MAX;
        let max_tokens = if open { 1 } else { request.max_tokens };
        let length = u64::from(prompt) + u64::from(max_tokens);
        if length > u64::from(capacity.context) {
            return Err(Refused::TooLong { prompt, max_tokens, context: capacity.context });
        }
        let cache = capacity.longest();
        if length > u64::from(cache) {
            return Err(Refused::TooBig { prompt, max_tokens, cache });
        }
        Ok(if open { cache } else { length as u32 })
    }

    /// Takes a place in the queue, or says when to come back. What waits longer just to begin than its caller does is
    /// refused at once: the caller would be gone.
    fn admit(&self, request: &Request) -> Result<Permit, Refused> {
        let tokens = request.prompt.len() as u64;
        let deadline = request.deadline.into_iter().chain(request.begin).min();
        let queue = &self.queue;
        let requests = queue.requests.fetch_add(1, Ordering::AcqRel);
        let before = queue.tokens.fetch_add(tokens, Ordering::AcqRel);
        let permit = Permit { queue: queue.clone(), tokens };
        let rate = f64::from_bits(self.gauges.rate.load(Ordering::Relaxed));
        let wait = if rate > 0.0 { before as f64 / rate } else { 0.0 };
        if let Some(deadline) = deadline.filter(|deadline| wait > deadline.as_secs_f64()) {
            return Err(Refused::Late { wait: wait.ceil() as u32, deadline: deadline.as_secs() as u32 });
        }
        let full = requests >= self.queue_requests || before + tokens > self.queue_tokens;
        if full && requests > 0 {
            let seconds = if rate > 0.0 { wait.ceil() } else { 1.0 };
            let retry_after = seconds.clamp(1.0, 120.0) as u32;
            return Err(Refused::Full { queued: requests, queued_tokens: before, retry_after });
        }
        Ok(permit)
    }

    /// The thread has ended.
    pub fn ended(&self) {
        self.stopping.store(true, Ordering::Release);
        let mut state = self.ending.lock();
        state.ended = true;
        self.ending.flag.store(true, Ordering::Release);
        state.wakers.drain(..).for_each(Waker::wake);
        self.ending.changed.notify_all();
    }
}

/// What waits to begin.
#[derive(Default)]
pub(crate) struct Queue {
    requests: AtomicU32,
    tokens: AtomicU64,
}

impl Queue {
    pub fn is_empty(&self) -> bool {
        self.requests.load(Ordering::Relaxed) == 0
    }
}

/// A request's place in the queue, given back when it begins or vanishes.
pub(crate) struct Permit {
    queue: Arc<Queue>,
    tokens: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.queue.tokens.fetch_sub(self.tokens, Ordering::AcqRel);
        self.queue.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Written by the thread after each step, read by anyone.
#[derive(Default)]
pub(crate) struct Gauges {
    pub running: AtomicU32,
    pub blocks_used: AtomicU32,
    pub prefix_queries: AtomicU64,
    pub prefix_hits: AtomicU64,
    pub tokens_in: AtomicU64,
    pub tokens_out: AtomicU64,
    pub steps: AtomicU64,
    pub failed_steps: AtomicU64,
    pub preemptions: AtomicU64,
    pub rows: AtomicU64,
    pub wasted_rows: AtomicU64,
    /// Prompt tokens that leave the queue in a second while there is one: the bits of an `f64`, 0 until measured.
    pub rate: AtomicU64,
    pub beat: Beat,
}

/// When the loop began what it is doing, so that others can tell a hung step from one that takes its time.
#[derive(Default)]
pub(crate) struct Beat(AtomicU64);

impl Beat {
    /// The loop has got here.
    pub fn mark(&self, now: Duration) {
        self.0.store(now.as_millis() as u64 + 1, Ordering::Relaxed);
    }

    /// The loop waits, for requests or for its turn on the device.
    pub fn rest(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn since(&self, now: Duration) -> Option<Duration> {
        let marked = self.0.load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.saturating_sub(Duration::from_millis(marked)))
    }
}

#[derive(Default)]
struct Ending {
    flag: AtomicBool,
    state: Mutex<EndState>,
    changed: Condvar,
}

#[derive(Default)]
struct EndState {
    ended: bool,
    wakers: Vec<Waker>,
}

impl Ending {
    fn ended(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, EndState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
