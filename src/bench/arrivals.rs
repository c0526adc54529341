//! When requests are made.
//!
//! People do not wait for each other: requests of many independent users come at random times, and a server that falls
//! behind is not asked less. So the times are drawn before the run (an open loop), and a request's latency counts from the
//! time at which it should have been made: a client that waits for a slow answer before it asks again would hide the
//! waiting of everybody who came meanwhile (coordinated omission).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::random::Random;

/// How requests arrive.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// At random times, so many a second on average.
    Poisson(f64),
    /// So many at the same time: each is followed by another when it ends.
    Concurrent(u64),
}

impl std::fmt::Display for Arrivals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Poisson(rate) => write!(f, "{} requests/s at random times", figure(*rate)),
            Self::Concurrent(1) => write!(f, "one request after another"),
            Self::Concurrent(n) => write!(f, "{n} requests at the same time"),
        }
    }
}

/// A rate with the digits that matter.
pub fn figure(rate: f64) -> String {
    let digits = match rate {
        r if r >= 100.0 => 0,
        r if r >= 10.0 => 1,
        _ => 2,
    };
    format!("{rate:.digits$}")
}

/// The times of a Poisson process, from the beginning of the run on.
#[derive(Clone, Debug)]
pub struct Times {
    random: Random,
    rate: f64,
    at: f64,
}

impl Times {
    pub fn new(rate: f64, seed: u64) -> Self {
        Self { random: Random::new(seed, 1), rate, at: 0.0 }
    }
}

impl Iterator for Times {
    type Item = Duration;

    /// Gaps are exponential: minus the logarithm of a number in (0, 1].
    fn next(&mut self) -> Option<Duration> {
        self.at += -(1.0 - self.random.unit()).ln() / self.rate;
        Duration::try_from_secs_f64(self.at).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn times_rise_and_a_seed_gives_the_same_ones(seed: u64, rate in 0.01..5000.0f64) {
            let times: Vec<Duration> = Times::new(rate, seed).take(500).collect();
            prop_assert!(times.is_sorted());
            prop_assert_eq!(&times, &Times::new(rate, seed).take(500).collect::<Vec<_>>());
            let other: Vec<Duration> = Times::new(rate, seed.wrapping_add(1)).take(500).collect();
            prop_assert_ne!(&times, &other);
        }

        /// Gaps of an exponential distribution: their mean is 1/rate, their deviation as large, and a share of 1/e is
        /// longer than the mean. Bounds of five standard errors: a right generator fails once in a million seeds.
        #[test]
        fn gaps_are_exponential(seed: u64, rate in 0.01..5000.0f64) {
            const N: usize = 20_000;
            let times: Vec<f64> = Times::new(rate, seed).take(N).map(|t| t.as_secs_f64()).collect();
            let gaps: Vec<f64> = std::iter::once(times[0])
                .chain(times.windows(2).map(|pair| pair[1] - pair[0]))
                .map(|gap| gap * rate)
                .collect();
            let n = N as f64;
            let mean = gaps.iter().sum::<f64>() / n;
            prop_assert!((mean - 1.0).abs() < 5.0 / n.sqrt(), "mean {mean}");
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / n;
            prop_assert!((variance - 1.0).abs() < 5.0 * (8.0 / n).sqrt(), "variance {variance}");
            let e = (-1f64).exp();
            let longer = gaps.iter().filter(|gap| **gap > 1.0).count() as f64 / n;
            prop_assert!((longer - e).abs() < 5.0 * (e * (1.0 - e) / n).sqrt(), "{longer} longer than the mean");
        }

        /// Requests in equal windows scatter as widely as their mean: bunches come as often as they do by chance, and
        /// neighbouring windows know nothing of each other.
        #[test]
        fn counts_in_windows_are_independent(seed: u64) {
            const WINDOWS: usize = 2_000;
            let mut counts = [0f64; WINDOWS];
            for time in Times::new(10.0, seed) {
                match counts.get_mut(time.as_secs() as usize) {
                    Some(count) => *count += 1.0,
                    None => break,
                }
            }
            let n = WINDOWS as f64;
            let mean = counts.iter().sum::<f64>() / n;
            let variance = counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / n;
            prop_assert!((variance / mean - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "{variance} around {mean}");
            let together: f64 = counts.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum();
            prop_assert!((together / n / variance).abs() < 5.0 / n.sqrt(), "neighbours go together");
        }
    }
}
