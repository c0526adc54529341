//! Counting times: a histogram of high dynamic range, and which percentiles it may be asked for.
//!
//! A percentile says something when enough lies beyond it. The rule here: ten requests. So p95 needs 200 requests, p99
//! needs 1,000, and 1,000 is what a whole run must have before any percentile of it is shown.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Requests of a run, without which its percentiles are not shown.
pub const ENOUGH: u64 = 1000;
/// Requests that must lie beyond a percentile.
const BEYOND: u64 = 10;
/// Three significant digits: a percentile is off by a thousandth at most.
const DIGITS: u8 = 3;
/// The longest time that is told apart, in microseconds.
const LONGEST: u64 = 3_600_000_000;

/// Times of one kind.
#[derive(Clone, Debug)]
pub struct Latencies {
    spread: Histogram<u64>,
    /// Exact, in microseconds; the histogram rounds.
    sum: u128,
    longest: u64,
}

/// Whose percentiles are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// None: the run has too few requests.
    Nothing,
    /// Those that have ten requests beyond them.
    Sure,
    /// All, because the user asked for a quick look.
    Everything,
}

/// What is kept of times, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub count: u64,
    pub mean: f64,
    pub max: f64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p90: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p95: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p99: Option<f64>,
    /// Share and time, for plots: as far up as percentiles are shown.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub curve: Vec<(f64, f64)>,
}

impl Default for Latencies {
    fn default() -> Self {
        let spread = Histogram::new_with_bounds(1, LONGEST, DIGITS);
        Self { spread: spread.expect("bug: the histogram's bounds are valid"), sum: 0, longest: 0 }
    }
}

impl Latencies {
    pub fn record(&mut self, time: Duration) {
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.spread.saturating_record(time);
        self.sum += u128::from(time);
        self.longest = self.longest.max(time);
    }

    pub fn count(&self) -> u64 {
        self.spread.len()
    }

    /// The time within which a share of the requests was done, in milliseconds: the smallest time that was recorded,
    /// or stands for one within a thousandth, such that at least that share took no longer.
    pub fn within(&self, share: f64) -> f64 {
        milliseconds(self.spread.value_at_quantile(share).min(self.longest))
    }

    pub fn summary(&self, show: Show) -> Latency {
        if self.spread.is_empty() {
            return Latency::default();
        }
        let shown = |thousandths: u64| match show {
            Show::Nothing => false,
            Show::Sure => sure(thousandths, self.count()),
            Show::Everything => true,
        };
        let percentile =
            |thousandths: u64| shown(thousandths).then(|| self.within(thousandths as f64 / 1000.0));
        let steps = (10..=990).step_by(10).chain([992, 994, 996, 998, 999]);
        Latency {
            count: self.count(),
            mean: (self.sum as f64 / self.count() as f64).round() / 1000.0,
            max: milliseconds(self.longest),
            p50: percentile(500),
            p90: percentile(900),
            p95: percentile(950),
            p99: percentile(990),
            curve: steps.filter_map(|t| Some((t as f64 / 1000.0, percentile(t)?))).collect(),
        }
    }
}

/// Whether a percentile, in thousandths, has enough beyond it among `count`.
pub fn sure(thousandths: u64, count: u64) -> bool {
    count * (1000 - thousandths) >= BEYOND * 1000
}

fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against sorting: the percentile is the k-th smallest of n, k = ceil(share n), within a thousandth.
        #[test]
        fn percentiles_are_those_of_the_sorted_times(
            mut times in prop::collection::vec(1u64..120_000_000, 1..3000),
            share in 0.001..1.0f64,
        ) {
            let mut latencies = Latencies::default();
            times.iter().for_each(|t| latencies.record(Duration::from_micros(*t)));
            times.sort_unstable();
            let rank = ((share * times.len() as f64).ceil() as usize).clamp(1, times.len());
            // Where the product is nearly whole, rounding may take the neighbour: both are right.
            let near = (share * times.len() as f64).round() as usize;
            let near = if (share * times.len() as f64 - near as f64).abs() < 1e-6 { near + 1 } else { rank };
            let said = latencies.within(share);
            let right = |rank: usize| {
                let time = times[rank.clamp(1, times.len()) - 1] as f64 / 1000.0;
                (said - time).abs() <= time / 1000.0 + 0.001
            };
            prop_assert!(right(rank) || right(near), "{said} is not number {rank} of {}", times.len());
            prop_assert!(latencies.within(1.0) >= said);
        }

        #[test]
        fn a_percentile_is_sure_when_ten_lie_beyond_it(count in 0u64..20_000, thousandths in 1u64..1000) {
            let beyond = count as f64 * (1.0 - thousandths as f64 / 1000.0);
            prop_assert_eq!(sure(thousandths, count), beyond > 10.0 - 1e-6);
        }
    }

    fn of(count: u64) -> Latencies {
        let mut latencies = Latencies::default();
        (1..=count).for_each(|ms| latencies.record(Duration::from_millis(ms)));
        latencies
    }

    #[test]
    fn what_too_few_requests_cannot_say_is_left_out() {
        let seen = of(1000).summary(Show::Sure);
        assert_eq!((seen.count, seen.mean, seen.max), (1000, 500.5, 1000.0));
        assert!(seen.p99.is_some_and(|p| (989.0..991.5).contains(&p)), "{seen:?}");
        assert!(seen.curve.last().is_some_and(|(share, _)| *share == 0.99));
        let seen = of(999).summary(Show::Sure);
        assert!(seen.p95.is_some() && seen.p99.is_none());
        let seen = of(199).summary(Show::Sure);
        assert!(seen.p90.is_some() && seen.p95.is_none());
        let seen = of(5000).summary(Show::Nothing);
        assert!(seen.p50.is_none() && seen.curve.is_empty() && seen.mean > 0.0);
        assert!(of(3).summary(Show::Everything).p99.is_some());
        assert_eq!(of(0).summary(Show::Everything), Latency::default());
    }

    #[test]
    fn times_beyond_an_hour_count_as_an_hour() {
        let mut latencies = Latencies::default();
        latencies.record(Duration::from_secs(1 << 40));
        latencies.record(Duration::ZERO);
        assert_eq!(latencies.count(), 2);
        assert!((3_599_000.0..3_604_000.0).contains(&latencies.within(1.0)));
        let mut one = Latencies::default();
        one.record(Duration::from_micros(18_030_123));
        assert_eq!(one.within(0.99), 18_030.123, "no percentile is above the longest");
    }
}
