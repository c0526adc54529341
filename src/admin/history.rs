//! The last quarter of an hour, second by second: what the console draws and what rates are taken from.
//!
//! A second costs a few hundred loads and some kilobytes; the engines are not disturbed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::engine::handle::Status;
use crate::engine::timings::Reading;
use crate::served::Models;

/// Seconds that are kept.
pub const SECONDS: usize = 900;
/// Seconds over which latencies are taken.
const WINDOW: usize = 60;
/// Seconds over which rates are taken: short enough to follow, long enough not to flicker.
const RATE: usize = 5;

/// One model at one moment.
#[derive(Clone)]
pub struct Look {
    pub status: Status,
    pub first: Reading,
    pub between: Reading,
    pub wait: Reading,
    /// Requests that came to their end, ever.
    pub ended: u64,
}

#[derive(Clone)]
struct Tick {
    at: Instant,
    models: Vec<Look>,
}

/// What one second of the charts shows, all models of this process together.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sample {
    pub tokens: f64,
    pub prompt: f64,
    pub running: u32,
    pub waiting: u32,
    /// Share of the blocks of keys and values that are in use.
    pub kv: f64,
    /// Milliseconds until the first token, of 95 in 100 requests of the last minute.
    pub first: Option<f64>,
}

/// Rates and latencies of a model, or of all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    pub tokens: f64,
    pub prompt: f64,
    pub requests: f64,
    /// Milliseconds: the median and 95 in 100.
    pub first: [Option<f64>; 2],
    pub between: [Option<f64>; 2],
    pub wait: [Option<f64>; 2],
    /// Share of prompt tokens that came from the prefix cache in the last minute.
    pub cached: Option<f64>,
}

#[derive(Default)]
struct Kept {
    ticks: VecDeque<Tick>,
    samples: VecDeque<Sample>,
}

pub struct History {
    models: Models,
    kept: Mutex<Kept>,
}

impl History {
    /// Looks once a second, for as long as anybody holds it.
    pub fn begin(models: Models) -> Arc<Self> {
        let history = Arc::new(Self { models, kept: Mutex::default() });
        history.tick();
        tokio::spawn(ticking(Arc::downgrade(&history)));
        history
    }

    fn look(&self) -> Tick {
        let look = |model: &Arc<crate::served::Served>| {
            let times = model.engine.times();
            Look {
                status: model.engine.status(),
                ended: times.whole.count(),
                first: times.first_token,
                between: times.between_tokens,
                wait: times.queue_wait,
            }
        };
        Tick { at: Instant::now(), models: self.models.iter().map(look).collect() }
    }

    fn tick(&self) {
        let now = self.look();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let rates = rates(&kept.ticks, &now, None);
        let sum = |of: fn(&Status) -> u32| now.models.iter().map(|look| of(&look.status)).sum::<u32>();
        let sample = Sample {
            tokens: rates.tokens,
            prompt: rates.prompt,
            running: sum(|s| s.running),
            waiting: sum(|s| s.waiting),
            kv: share(sum(|s| s.blocks_used).into(), sum(|s| s.blocks_total).into()),
            first: rates.first[1],
        };
        kept.samples.push_back(sample);
        if kept.samples.len() > SECONDS {
            kept.samples.pop_front();
        }
        kept.ticks.push_back(now);
        if kept.ticks.len() > WINDOW + 1 {
            kept.ticks.pop_front();
        }
    }

    /// Every model as it is now with its rates, and the rates of all.
    pub fn now(&self) -> (Vec<(Look, Rates)>, Rates) {
        let now = self.look();
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let all = rates(&kept.ticks, &now, None);
        let each: Vec<Rates> = (0..now.models.len()).map(|at| rates(&kept.ticks, &now, Some(at))).collect();
        (now.models.into_iter().zip(each).collect(), all)
    }

    /// The charts' seconds, the oldest first.
    pub fn samples(&self) -> Vec<Sample> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).samples.iter().copied().collect()
    }
}

async fn ticking(history: Weak<History>) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    seconds.tick().await;
    loop {
        seconds.tick().await;
        match history.upgrade() {
            Some(history) => history.tick(),
            None => return,
        }
    }
}

pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Rates between a moment and those before it, of one model or of all.
fn rates(ticks: &VecDeque<Tick>, now: &Tick, model: Option<usize>) -> Rates {
    let chosen = |tick: &Tick| -> Vec<Look> {
        tick.models
            .iter()
            .enumerate()
            .filter(|(at, _)| model.is_none_or(|m| m == *at))
            .map(|(_, l)| l.clone())
            .collect()
    };
    let Some(oldest) = ticks.front() else { return Rates::default() };
    let recent = &ticks[ticks.len().saturating_sub(RATE)];
    let seconds = now.at.duration_since(recent.at).as_secs_f64().max(0.001);
    let (latest, recent, oldest) = (chosen(now), chosen(recent), chosen(oldest));
    let per_second = |of: fn(&Look) -> u64| {
        let sum = |looks: &[Look]| looks.iter().map(of).sum::<u64>();
        sum(&latest).saturating_sub(sum(&recent)) as f64 / seconds
    };
    let latency = |of: fn(&Look) -> &Reading| {
        let mut sum: Option<Reading> = None;
        for (now, then) in latest.iter().zip(&oldest) {
            let new = of(now).since(of(then));
            match &mut sum {
                Some(sum) => sum.add(&new),
                None => sum = Some(new),
            }
        }
        [0.5, 0.95].map(|share| Some(sum.as_ref()?.quantile(share)? * 1e3))
    };
    let gained = |of: fn(&Look) -> u64| {
        let sum = |looks: &[Look]| looks.iter().map(of).sum::<u64>();
        sum(&latest).saturating_sub(sum(&oldest))
    };
    let asked = gained(|l| l.status.prefix_queries);
    Rates {
        tokens: per_second(|l| l.status.tokens_out),
        prompt: per_second(|l| l.status.tokens_in),
        requests: per_second(|l| l.ended),
        first: latency(|l| &l.first),
        between: latency(|l| &l.between),
        wait: latency(|l| &l.wait),
        cached: (asked > 0).then(|| share(gained(|l| l.status.prefix_hits), asked)),
    }
}
