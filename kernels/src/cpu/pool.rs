//! The threads that compute.
//!
//! A job is a number of tasks; every thread first takes those of its own share (the same share in every job of that
//! size, so that memory stays near the core that touched it first) and then those that others have not begun. Tasks
//! write disjoint memory and no result depends on who ran what.
//!
//! A thread that has nothing to do spins for a moment, then parks. The caller computes as well and waits only for
//! threads that took part: one that the operating system did not wake in time finds the job closed, so a machine that
//! others use too costs speed, never a stall. Starting a job costs about a microsecond while threads spin.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::Error;

/// How long an idle thread spins before it parks: longer than the gaps between the operations of a step, short enough
/// that an idle server is idle.
const SPIN: Duration = Duration::from_micros(30);

/// In [`Job::gate`]: threads may still take part. The bits below count those that do, those above number the job.
const OPEN: u64 = 1 << 16;
const NEXT: u64 = 1 << 17;
const ACTIVE: u64 = OPEN - 1;

type Task<'a> = &'a (dyn Fn(usize) + Sync);

pub(crate) struct Pool {
    job: Arc<Job>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs.
    turn: Mutex<()>,
    /// Core of the caller, when threads are pinned.
    first_core: Option<usize>,
}

struct Job {
    gate: AtomicU64,
    stop: AtomicBool,
    /// Written by the caller while nobody takes part, read by those who do.
    what: UnsafeCell<Option<What>>,
    shares: Box<[Share]>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `what` is written only between jobs, when the gate is closed and nobody is active; all else is atomic.
unsafe impl Sync for Job {}
// SAFETY: `What` holds a pointer to a `Sync` closure that outlives the job.
unsafe impl Send for Job {}

struct What {
    task: Task<'static>,
    caller: Thread,
}

/// The tasks of one thread that nobody has begun: `next..end`. On a cache line of its own.
#[repr(align(128))]
struct Share {
    next: AtomicUsize,
    end: AtomicUsize,
}

impl Pool {
    /// Threads pinned to `cores`; see [`crate::Context::cpu`] for what `None` means.
    pub fn on(cores: Option<Vec<usize>>) -> Result<Self, Error> {
        let cores = match cores {
            Some(cores) if cores.is_empty() => return Err(Error::NoCores),
            Some(cores) => cores,
            None => {
                let allowed = allowed_cores();
                let usable = std::thread::available_parallelism().map_or(1, usize::from);
                if allowed.len() > usable || allowed.is_empty() {
                    // A quota smaller than the machine: all processes under one would pin to the same first cores.
                    return Self::unpinned(usable);
                }
                allowed
            }
        };
        // Refuse a wrong core here, on the caller's thread, rather than in a thread's log.
        let before = affinity();
        for core in &cores {
            pin(*core)?;
        }
        restore_affinity(before);
        Self::start(cores.len(), Some(cores))
    }

    pub fn unpinned(threads: usize) -> Result<Self, Error> {
        if threads == 0 {
            return Err(Error::NoCores);
        }
        Self::start(threads, None)
    }

    fn start(threads: usize, cores: Option<Vec<usize>>) -> Result<Self, Error> {
        let share = || Share { next: AtomicUsize::new(0), end: AtomicUsize::new(0) };
        let job = Arc::new(Job {
            gate: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            what: UnsafeCell::new(None),
            shares: (0..threads).map(|_| share()).collect(),
            panic: Mutex::new(None),
        });
        let mut pool = Self {
            job: Arc::clone(&job),
            workers: Vec::with_capacity(threads - 1),
            turn: Mutex::new(()),
            first_core: cores.as_ref().map(|cores| cores[0]),
        };
        for index in 1..threads {
            let job = Arc::clone(&job);
            let core = cores.as_ref().map(|cores| cores[index]);
            let worker = std::thread::Builder::new()
                .name(format!("compute-{index}"))
                .spawn(move || {
                    if let Some(core) = core {
                        // It was possible when the pool was made; unpinned is slower, not wrong.
                        let _ = pin(core);
                    }
                    work(&job, index);
                })
                .map_err(Error::Thread)?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    pub fn pin_caller(&self) -> Result<(), Error> {
        self.first_core.map_or(Ok(()), pin)
    }

    /// Runs `task(i)` for every `i` below `tasks` and returns when all are done. Denormals are flushed on every thread
    /// that computes. A panic in a task is an error here; the other tasks may or may not have run. Tasks must not run
    /// jobs of their own.
    pub fn run(&self, tasks: usize, task: Task<'_>) -> Result<(), Error> {
        let _flush = FlushDenormals::on();
        if self.workers.is_empty() || tasks <= 1 {
            return catch_unwind(AssertUnwindSafe(|| (0..tasks).for_each(task)))
                .map_err(|panic| Error::Panicked(message(&*panic)));
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let job = &*self.job;
        let threads = self.threads();
        for (i, share) in job.shares.iter().enumerate() {
            share.next.store(tasks * i / threads, Ordering::Relaxed);
            share.end.store(tasks * (i + 1) / threads, Ordering::Relaxed);
        }
        // SAFETY: the lifetime is stretched, but this function does not return before the gate is closed and nobody
        // is active, and nobody reads `what` then.
        let task = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        // SAFETY: the gate is closed and nobody is active: nobody else reads or writes `what`.
        unsafe { *job.what.get() = Some(What { task, caller: std::thread::current() }) };
        let number = (job.gate.load(Ordering::Relaxed) / NEXT).wrapping_add(1);
        job.gate.store(number.wrapping_mul(NEXT) | OPEN, Ordering::Release);
        // As many as there is work for beyond the caller's own share.
        for worker in &self.workers[..self.workers.len().min(tasks - 1)] {
            worker.thread().unpark();
        }
        take_tasks(job, 0, task);
        job.gate.fetch_and(!OPEN, Ordering::AcqRel);
        wait(|| job.gate.load(Ordering::Acquire) & ACTIVE == 0);
        let panic = job.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(turn);
        match panic {
            None => Ok(()),
            Some(panic) => Err(Error::Panicked(message(&*panic))),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.job.stop.store(true, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            if let Err(panic) = worker.join()
                && !std::thread::panicking()
            {
                resume_unwind(panic);
            }
        }
    }
}

/// What a worker does all its life.
fn work(job: &Job, index: usize) {
    let _flush = FlushDenormals::on();
    let mut seen = 0;
    loop {
        let mut gate = 0;
        wait(|| {
            gate = job.gate.load(Ordering::Acquire);
            (gate & OPEN != 0 && gate / NEXT != seen) || job.stop.load(Ordering::Acquire)
        });
        if job.stop.load(Ordering::Acquire) {
            return;
        }
        if job.gate.compare_exchange(gate, gate + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            continue; // Another thread came or went, or the job is over: look again.
        }
        seen = gate / NEXT;
        // SAFETY: this thread is counted as active, so the caller neither returns nor writes `what`.
        let what = unsafe { &*job.what.get() };
        let What { task, caller } = what.as_ref().expect("bug: a job without a task");
        let caller = caller.clone();
        take_tasks(job, index, *task);
        let before = job.gate.fetch_sub(1, Ordering::AcqRel);
        if before & (OPEN | ACTIVE) == 1 {
            caller.unpark();
        }
    }
}

/// Runs the tasks of share `own`, then what is left of the others.
fn take_tasks(job: &Job, own: usize, task: Task<'_>) {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let shares = job.shares.len();
        for turn in 0..shares {
            let share = &job.shares[(own + turn) % shares];
            let end = share.end.load(Ordering::Relaxed);
            while share.next.load(Ordering::Relaxed) < end {
                let next = share.next.fetch_add(1, Ordering::Relaxed);
                if next >= end {
                    break;
                }
                task(next);
            }
        }
    }));
    if let Err(panic) = outcome {
        *job.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
    }
}

/// Spins until `done`, then parks between looks.
fn wait(mut done: impl FnMut() -> bool) {
    let mut since = None;
    loop {
        for _ in 0..64 {
            if done() {
                return;
            }
            std::hint::spin_loop();
        }
        if since.get_or_insert_with(Instant::now).elapsed() > SPIN {
            break;
        }
    }
    while !done() {
        std::thread::park();
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

/// Denormal numbers read as zero and results flushed to zero on this thread, as AMX does always; put back on drop.
pub(crate) struct FlushDenormals {
    #[cfg(target_arch = "x86_64")]
    before: u32,
}

impl FlushDenormals {
    #[cfg(target_arch = "x86_64")]
    pub fn on() -> Self {
        let mut before = 0u32;
        // SAFETY: stores the control register to a local variable.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut before, options(nostack)) };
        set_mxcsr(before | 0x8040);
        Self { before }
    }

    /// Other processors compute with denormals: bits may then differ from x86 in results below 1e-38.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn on() -> Self {
        Self {}
    }
}

impl Drop for FlushDenormals {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        set_mxcsr(self.before);
    }
}

#[cfg(target_arch = "x86_64")]
fn set_mxcsr(value: u32) {
    // SAFETY: the value is what the register held, or that with the two bits for denormals: exceptions stay masked
    // and rounding stays to nearest, as compiled code assumes.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &value, options(nostack, readonly)) };
}

/// The cores that this thread may run on, ascending.
fn allowed_cores() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    {
        let set = affinity();
        // SAFETY: `CPU_ISSET` reads inside the set for indices below its size in bits.
        (0..8 * size_of_val(&set)).filter(|core| unsafe { libc::CPU_ISSET(*core, &set) }).collect()
    }
    #[cfg(not(target_os = "linux"))]
    Vec::new()
}

#[cfg(target_os = "linux")]
fn affinity() -> libc::cpu_set_t {
    // SAFETY: an empty set is all zeroes, and the call writes at most the size given. Should it fail, the set stays
    // empty and the caller falls back to threads without pins.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of_val(&set), &mut set);
        set
    }
}

#[cfg(target_os = "linux")]
fn restore_affinity(set: libc::cpu_set_t) {
    // SAFETY: the set came from `affinity` on this thread.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
}

#[cfg(target_os = "linux")]
fn pin(core: usize) -> Result<(), Error> {
    // SAFETY: `CPU_SET` writes inside the set for indices below its size in bits, checked here; the call reads it.
    let pinned = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if core >= 8 * size_of_val(&set) {
            let source = std::io::Error::from_raw_os_error(libc::EINVAL);
            return Err(Error::Core { core, source });
        }
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    if pinned == 0 { Ok(()) } else { Err(Error::Core { core, source: std::io::Error::last_os_error() }) }
}

#[cfg(not(target_os = "linux"))]
fn affinity() {}

#[cfg(not(target_os = "linux"))]
fn restore_affinity((): ()) {}

#[cfg(not(target_os = "linux"))]
fn pin(_core: usize) -> Result<(), Error> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::unpinned(threads).unwrap();
            for tasks in [0, 1, 2, 7, 64, 1000] {
                let ran: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    ran[i].fetch_add(1, Ordering::Relaxed);
                })
                .unwrap();
                assert!(
                    ran.iter().all(|n| n.load(Ordering::Relaxed) == 1),
                    "{threads} threads, {tasks} tasks"
                );
            }
        }
    }

    #[test]
    fn many_small_jobs_in_a_row_and_after_a_pause() {
        let pool = Pool::unpinned(4).unwrap();
        let sum = AtomicUsize::new(0);
        for round in 0..2000 {
            if round % 500 == 0 {
                std::thread::sleep(Duration::from_millis(5)); // long enough that threads park
            }
            pool.run(5, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            })
            .unwrap();
        }
        assert_eq!(sum.into_inner(), 2000 * 10);
    }

    #[test]
    fn jobs_of_several_callers_take_turns() {
        let pool = Pool::unpinned(2).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let task = |i: usize| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        };
                        pool.run(9, &task).unwrap();
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 3 * 200 * 36);
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_goes_on() {
        for threads in [1, 3] {
            let pool = Pool::unpinned(threads).unwrap();
            for bad in [0, 1, 29] {
                let outcome = pool.run(30, &|i| assert!(i != bad, "task {i} is broken"));
                match outcome {
                    Err(Error::Panicked(text)) => assert!(text.contains("is broken"), "{text}"),
                    other => panic!("{other:?}"),
                }
                pool.run(30, &|_| {}).unwrap();
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn denormals_are_flushed_while_computing_and_kept_afterwards() {
        let tiny = std::hint::black_box(f32::MIN_POSITIVE / 4.0);
        let pool = Pool::unpinned(3).unwrap();
        let kept = AtomicUsize::new(0);
        pool.run(64, &|_| {
            if std::hint::black_box(tiny) * std::hint::black_box(2.0) != 0.0 {
                kept.fetch_add(1, Ordering::Relaxed);
            }
        })
        .unwrap();
        assert_eq!(kept.into_inner(), 0);
        assert!(std::hint::black_box(tiny) * std::hint::black_box(2.0) > 0.0);
    }

    #[test]
    fn a_core_that_does_not_exist_is_refused_by_number() {
        let error = Pool::on(Some(vec![100_000])).err().expect("no machine has that core");
        assert!(error.to_string().contains("100000"), "{error}");
        assert!(matches!(Pool::on(Some(vec![])), Err(Error::NoCores)));
    }
}
