//! How long requests wait and how fast they move (steps 5 to 9 in the life of a request), as histograms.
//!
//! The loop writes them, anybody reads them: counters without a lock, and no memory after the start. The edges contain
//! those of vLLM, so that its names can be served from the same counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Seconds until the first token.
pub const FIRST_TOKEN: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// Seconds between two tokens of a choice.
pub const BETWEEN_TOKENS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0,
    2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// Seconds in the queue.
pub const QUEUE_WAIT: &[f64] = &[
    0.001, 0.005, 0.02, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0,
    60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];
/// Seconds from the submission to the end of the last choice.
pub const WHOLE: &[f64] = &[
    0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0, 1920.0, 7680.0,
];
/// Sequences in a step.
pub const BATCH: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// A histogram with one writer.
pub struct Histogram {
    edges: &'static [f64],
    /// One more than edges: what is beyond the last.
    counts: Box<[AtomicU64]>,
    /// The bits of an `f64`.
    sum: AtomicU64,
}

impl Histogram {
    fn new(edges: &'static [f64]) -> Self {
        Self { edges, counts: (0..=edges.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    /// Counts a value. Only the loop does, so that the sum needs no lock.
    pub(crate) fn observe(&self, value: f64) {
        let at = self.edges.partition_point(|edge| *edge < value);
        self.counts[at].fetch_add(1, Relaxed);
        let sum = f64::from_bits(self.sum.load(Relaxed)) + value;
        self.sum.store(sum.to_bits(), Relaxed);
    }

    pub fn read(&self) -> Reading {
        Reading {
            edges: self.edges,
            counts: self.counts.iter().map(|count| count.load(Relaxed)).collect(),
            sum: f64::from_bits(self.sum.load(Relaxed)),
        }
    }
}

/// What a histogram held at some moment, or what came to it between two.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    pub edges: &'static [f64],
    /// One more than edges.
    pub counts: Vec<u64>,
    pub sum: f64,
}

impl Reading {
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What came since `before`, a reading of the same histogram.
    pub fn since(&self, before: &Reading) -> Reading {
        let counts = self.counts.iter().zip(&before.counts).map(|(now, then)| now.saturating_sub(*then));
        Reading { edges: self.edges, counts: counts.collect(), sum: self.sum - before.sum }
    }

    /// Adds another histogram with the same edges.
    pub fn add(&mut self, other: &Reading) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.sum += other.sum;
    }

    /// The value below which that share of all lies, as if they were spread evenly between two edges.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let goal = self.count() as f64 * share;
        if goal == 0.0 {
            return None;
        }
        let mut below = 0.0;
        for (i, count) in self.counts.iter().enumerate() {
            let count = *count as f64;
            if below + count >= goal && count > 0.0 {
                let low = if i == 0 { 0.0 } else { self.edges[i - 1] };
                // Beyond the last edge nothing better is known than that edge.
                let high = self.edges.get(i).copied().unwrap_or(low);
                return Some(low + (high - low) * (goal - below) / count);
            }
            below += count;
        }
        self.edges.last().copied()
    }

    /// Counts between other edges, all of which must be edges of this histogram.
    pub fn with_edges(&self, edges: &[f64]) -> Vec<(f64, u64)> {
        let mut taken = 0;
        let mut rows: Vec<(f64, u64)> = Vec::with_capacity(edges.len() + 1);
        for edge in edges {
            let upto = self.edges.partition_point(|own| own <= edge);
            rows.push((*edge, self.counts[taken..upto].iter().sum()));
            taken = upto;
        }
        rows.push((f64::MAX, self.counts[taken..].iter().sum()));
        rows
    }
}

/// All that is timed of an engine.
pub struct Timings {
    pub queue_wait: Histogram,
    pub first_token: Histogram,
    pub between_tokens: Histogram,
    /// From the submission to the end, of requests that came to theirs.
    pub whole: Histogram,
    pub batch: Histogram,
}

/// All of it at some moment, of an engine or of a model's replicas together.
#[derive(Clone, Debug)]
pub struct Times {
    pub queue_wait: Reading,
    pub first_token: Reading,
    pub between_tokens: Reading,
    pub whole: Reading,
    pub batch: Reading,
}

impl Timings {
    pub fn read(&self) -> Times {
        Times {
            queue_wait: self.queue_wait.read(),
            first_token: self.first_token.read(),
            between_tokens: self.between_tokens.read(),
            whole: self.whole.read(),
            batch: self.batch.read(),
        }
    }
}

impl Times {
    /// Both together.
    pub fn and(mut self, other: &Times) -> Self {
        self.queue_wait.add(&other.queue_wait);
        self.first_token.add(&other.first_token);
        self.between_tokens.add(&other.between_tokens);
        self.whole.add(&other.whole);
        self.batch.add(&other.batch);
        self
    }
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            queue_wait: Histogram::new(QUEUE_WAIT),
            first_token: Histogram::new(FIRST_TOKEN),
            between_tokens: Histogram::new(BETWEEN_TOKENS),
            whole: Histogram::new(WHOLE),
            batch: Histogram::new(BATCH),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_where_the_values_are() {
        let histogram = Histogram::new(FIRST_TOKEN);
        assert_eq!(histogram.read().quantile(0.95), None);
        for _ in 0..95 {
            histogram.observe(0.03);
        }
        for _ in 0..5 {
            histogram.observe(3.0);
        }
        let reading = histogram.read();
        let median = reading.quantile(0.5).unwrap();
        assert!((0.02..=0.04).contains(&median), "{median}");
        let high = reading.quantile(0.99).unwrap();
        assert!((2.5..=5.0).contains(&high), "{high}");
        histogram.observe(9999.0);
        assert_eq!(histogram.read().quantile(1.0), Some(2560.0), "beyond the last edge");
        assert_eq!(histogram.read().since(&reading).count(), 1);
    }

    #[test]
    fn fewer_edges_hold_the_same_values() {
        let histogram = Histogram::new(BETWEEN_TOKENS);
        [0.0005, 0.004, 0.02, 0.03, 100.0].into_iter().for_each(|value| histogram.observe(value));
        let rows = histogram.read().with_edges(&[0.01, 0.025, 0.05]);
        assert_eq!(rows.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [2, 1, 1, 1]);
    }
}
