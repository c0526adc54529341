//! One load: requests are sent at their times, or one after another, and what comes of them is counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::arrivals::{Arrivals, Times};
use super::client::Client;
use super::limits::Limits;
use super::profile::{Asked, Kind, Workload};
use super::result::Run;
use super::tally::{Loss, Outcome, Seen, Tally};

/// What is sent, and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    pub arrivals: Arrivals,
    /// At the beginning, in which what is sent is not counted.
    pub warmup: Duration,
    /// Counted requests, after which no more are sent.
    pub requests: Option<u64>,
    /// Time after the warm-up, after which no more are sent.
    pub duration: Option<Duration>,
    pub limits: Limits,
    /// Ends as soon as the limits cannot be held any more.
    pub stop_early: bool,
    pub quick: bool,
    /// The number of the first request: runs one after another do not repeat each other's prompts.
    pub first: u64,
}

/// Where a run is, once a second.
#[derive(Clone, Debug)]
pub struct Progress {
    pub elapsed: Duration,
    pub warm: bool,
    pub answered: u64,
    pub lost: u64,
    pub in_flight: usize,
}

/// Why a run ended before it was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    Interrupted,
    /// Nobody answers any more; the last error.
    Gone(String),
    /// The limits cannot be held any more.
    Late,
    /// What was sent does not come back.
    Stuck,
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Interrupted => f.write_str("interrupted"),
            Self::Gone(error) => write!(f, "the server stopped answering: {error}"),
            Self::Late => f.write_str("more than one request in twenty was too late, or one failed"),
            Self::Stuck => write!(f, "answers did not end within {} s of the last request", DRAIN.as_secs()),
        }
    }
}

/// Failed connections in a row, and for how long, until a server counts as gone.
const GONE: (u32, Duration) = (10, Duration::from_secs(3));
/// After a failure one at a time waits before it asks again: a dead server is not asked ten thousand times a second.
const PAUSE: Duration = Duration::from_millis(200);
/// Answers in flight have this long when no more is sent.
const DRAIN: Duration = Duration::from_secs(600);
/// Requests in flight at most, where the limit of open files allows it.
const MOST: u64 = 8192;
/// Files that are something else than requests.
const OTHER_FILES: u64 = 64;

/// How many requests can be in flight: each is an open file. Takes what the system gives without being root.
pub fn most_in_flight() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 512 };
    let wanted = (MOST + OTHER_FILES).min(hard);
    let got = match soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() {
        true => wanted,
        false => soft,
    };
    got.saturating_sub(OTHER_FILES).clamp(1, MOST)
}

/// A request that is ready to be sent.
struct Ready {
    asked: Asked,
    path: &'static str,
    body: Bytes,
    due: Duration,
}

/// The sending side of a run: what comes next.
struct Queue<'a> {
    workload: &'a Workload,
    model: &'a str,
    times: Option<Times>,
    index: u64,
}

impl Queue<'_> {
    /// Written before its time, so that writing takes nothing of it. `due` is for those without times of their own.
    fn next(&mut self, due: Duration) -> Ready {
        let asked = self.workload.request(self.index);
        self.index += 1;
        let (path, body) = self.workload.write(asked, self.model);
        let due = self.times.as_mut().and_then(Iterator::next).unwrap_or(due);
        Ready { asked, path, body: body.to_string().into(), due }
    }
}

/// Runs a plan to its end, or until `stop` says true.
pub async fn run(
    client: &Arc<Client>,
    workload: &Workload,
    plan: &Plan,
    stop: &mut watch::Receiver<bool>,
    progress: &mut (dyn FnMut(&Progress) + Send),
) -> (Run, Option<Cut>) {
    let most = most_in_flight();
    let (times, at_once) = match plan.arrivals {
        Arrivals::Poisson(rate) => (Some(Times::new(rate, workload.seed)), most),
        Arrivals::Concurrent(n) => (None, n.clamp(1, most)),
    };
    let open = times.is_some();
    let mut queue = Queue { workload, model: &client.model, times, index: plan.first };
    let mut tally = Tally::new(plan.warmup, plan.limits);
    let mut tasks: JoinSet<Seen> = JoinSet::new();
    let start = Instant::now();
    let mut next = queue.next(Duration::ZERO);
    let (mut counted, mut most_seen, mut away) = (0u64, 0, Away::default());
    let mut paused_until = Duration::ZERO;
    let mut sent_until: Option<Duration> = None;
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let cut = loop {
        let now = start.elapsed();
        let done = plan.requests.is_some_and(|wanted| counted >= wanted)
            || plan.duration.is_some_and(|time| now >= plan.warmup + time);
        if done && sent_until.is_none() {
            sent_until = Some(now);
        }
        match sent_until {
            Some(_) if tasks.is_empty() => break None,
            Some(at) if now > at + DRAIN => break Some(Cut::Stuck),
            _ => {}
        }
        let may_send = sent_until.is_none() && (open || (tasks.len() as u64) < at_once);
        let due = if open { next.due } else { paused_until };
        tokio::select! {
            // In this order: what has ended is counted before more is sent.
            biased;
            () = told(stop) => break Some(Cut::Interrupted),
            Some(ended) = tasks.join_next() => {
                let seen = ended.expect("bug: asking panicked");
                let failed = away.hear(&seen);
                tally.count(&seen);
                if failed {
                    paused_until = start.elapsed() + PAUSE;
                }
                if let Some(error) = away.gone(start.elapsed()) {
                    break Some(Cut::Gone(error));
                }
                if plan.stop_early && hopeless(&tally, plan, workload) {
                    break Some(Cut::Late);
                }
            }
            () = sleep_until((start + due).into()), if may_send => {
                let sent = start.elapsed();
                let ready = std::mem::replace(&mut next, queue.next(sent));
                let due = if open { ready.due } else { sent };
                counted += u64::from(due >= plan.warmup);
                let kind = ready.asked.kind;
                if tasks.len() as u64 >= most {
                    let outcome = Outcome::Lost(Loss::NotSent, format!("{most} requests are in flight"));
                    tally.count(&Seen { kind, due, sent, ended: sent, outcome });
                    continue;
                }
                let client = client.clone();
                tasks.spawn(async move {
                    let outcome = client.ask(ready.path, ready.body, start).await;
                    Seen { kind, due, sent, ended: start.elapsed(), outcome }
                });
                most_seen = most_seen.max(tasks.len());
            }
            _ = ticks.tick() => {
                let (answered, lost, in_flight) = (tally.answered(), tally.lost(), tasks.len());
                progress(&Progress { elapsed: now, warm: now >= plan.warmup, answered, lost, in_flight });
            }
        }
    };
    // Dropping the tasks closes their connections, and with them ends the server's work.
    drop(tasks);
    let sent_until = sent_until.unwrap_or_else(|| start.elapsed());
    let mut run = tally.run(plan.arrivals, sent_until, plan.quick);
    run.most_in_flight = most_seen as u64;
    run.ended = cut.as_ref().map(Cut::to_string);
    run.late = cut == Some(Cut::Late);
    (run, cut)
}

/// Resolves when `stop` says true, at once if it has said so before.
async fn told(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        // Nobody can say it any more.
        std::future::pending::<()>().await;
    }
}

/// Whether a p95 must break its limit, or a request was lost: then a sweep has seen enough of this rate.
fn hopeless(tally: &Tally, plan: &Plan, workload: &Workload) -> bool {
    let planned = plan.requests.unwrap_or(u64::MAX);
    let share = |kind: Kind| {
        let of_ten = (0..10).filter(|i| workload.request(*i).kind == kind).count() as u64;
        planned.saturating_mul(of_ten) / 10
    };
    tally.lost() > 0 || workload.profile.kinds().iter().any(|kind| tally.cannot_hold(*kind, share(*kind)))
}

/// Whether anybody is there.
#[derive(Default)]
struct Away {
    in_a_row: u32,
    since: Duration,
    error: String,
}

impl Away {
    /// Whether the request failed.
    fn hear(&mut self, seen: &Seen) -> bool {
        match &seen.outcome {
            Outcome::Lost(Loss::Connection | Loss::BrokenOff | Loss::Silence, error) => {
                if self.in_a_row == 0 {
                    self.since = seen.ended;
                }
                self.in_a_row += 1;
                self.error.clone_from(error);
                true
            }
            Outcome::Answered(_) => {
                self.in_a_row = 0;
                false
            }
            // A refusal comes from somebody who is there.
            _ => {
                self.in_a_row = 0;
                true
            }
        }
    }

    fn gone(&self, now: Duration) -> Option<String> {
        let (times, time) = GONE;
        (self.in_a_row >= times && now.saturating_sub(self.since) >= time).then(|| self.error.clone())
    }
}
