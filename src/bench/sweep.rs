//! Looking for the knee: the highest rate at which the limits hold.

/// How near the answer comes: the rate that holds and the one that breaks differ by a tenth.
const NEAR: f64 = 1.1;
/// From a rate that holds to the next one tried.
const UP: f64 = 1.6;
/// From a rate that breaks to the next one tried.
const DOWN: f64 = 0.4;
/// Slower than this, which is 14 users of GitLab, is no service.
const SLOWEST: f64 = 0.1;
/// Faster than one process can ask.
pub const FASTEST: f64 = 20_000.0;

/// The search, one rate after another. A rate must break twice before it counts as too high: on a machine that does
/// something else for a moment, once is chance.
#[derive(Clone, Debug)]
pub struct Search {
    start: f64,
    /// No higher rate is tried.
    most: f64,
    /// The highest rate that held.
    holds: Option<f64>,
    /// The lowest rate that broke, twice.
    breaks: Option<f64>,
    /// A rate that broke once.
    doubted: Option<f64>,
}

impl Search {
    pub fn new(start: f64, most: f64) -> Self {
        let most = most.clamp(SLOWEST, FASTEST);
        Self {
            start: round(start.clamp(SLOWEST, most)).min(most),
            most,
            holds: None,
            breaks: None,
            doubted: None,
        }
    }

    /// The rate to try; `None` when the knee is known, or out of reach.
    pub fn next(&self) -> Option<f64> {
        if self.doubted.is_some() {
            return self.doubted;
        }
        match (self.holds, self.breaks) {
            (None, None) => Some(self.start),
            (Some(holds), None) => Some(round(holds * UP).min(self.most)).filter(|rate| *rate > holds),
            (None, Some(breaks)) => Some(round(breaks * DOWN)).filter(|rate| *rate >= SLOWEST),
            (Some(holds), Some(breaks)) => {
                let between = round((holds * breaks).sqrt());
                Some(between).filter(|rate| breaks / holds > NEAR && (holds < *rate && *rate < breaks))
            }
        }
    }

    /// What came of a rate.
    pub fn told(&mut self, rate: f64, holds: bool) {
        match holds {
            true => {
                self.holds = Some(self.holds.map_or(rate, |before| before.max(rate)));
                self.doubted = None;
            }
            false if self.doubted == Some(rate) => {
                self.breaks = Some(rate);
                self.doubted = None;
            }
            false => self.doubted = Some(rate),
        }
    }

    /// Whether a rate is known that is too high.
    pub fn is_bounded(&self) -> bool {
        self.breaks.is_some()
    }

    /// The highest rate that held.
    pub fn holds(&self) -> Option<f64> {
        self.holds
    }
}

/// To three digits: rates that people can say, and type again.
fn round(rate: f64) -> f64 {
    let unit = 10f64.powf(rate.log10().floor() - 2.0);
    let digits = (rate / unit).round();
    // Divided by a power of ten, which is exact, and not multiplied by a fraction, which is not.
    if unit >= 1.0 { digits * unit } else { digits / (1.0 / unit).round() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn search(start: f64, most: f64, mut holds: impl FnMut(f64) -> bool) -> (Search, Vec<f64>) {
        let mut search = Search::new(start, most);
        let mut tried = Vec::new();
        while let Some(rate) = search.next() {
            tried.push(rate);
            assert!(tried.len() < 200, "no end in sight: {tried:?}");
            search.told(rate, holds(rate));
        }
        (search, tried)
    }

    proptest! {
        #[test]
        fn the_knee_is_found_from_anywhere(start in 0.001..50_000f64, knee in 0.2..10_000f64) {
            let (search, tried) = search(start, FASTEST, |rate| rate <= knee);
            let found = search.holds().expect("some rate holds");
            prop_assert!(found <= knee && knee < found * NEAR * 1.02, "{found} for {knee}: {tried:?}");
            prop_assert!(tried.len() <= 60, "{tried:?}");
        }

        /// Chance breaks one try in seven; the answer is still one that held.
        #[test]
        fn a_single_break_by_chance_ends_no_search(knee in 1.0..100f64, chance in 0usize..7) {
            let mut tries = 0;
            let (search, _) = search(2.0, FASTEST, |rate| {
                tries += 1;
                rate <= knee && tries % 7 != chance
            });
            let found = search.holds().expect("some rate holds");
            prop_assert!(found <= knee && knee < found * NEAR * 1.02, "{found} for {knee}");
        }

        #[test]
        fn rates_have_three_digits(rate in 0.02..20_000f64) {
            let rounded = round(rate);
            prop_assert!((rounded / rate - 1.0).abs() <= 0.0051);
            prop_assert!(format!("{rounded}").trim_start_matches(['0', '.']).replace('.', "").trim_end_matches('0').len() <= 3, "{rounded}");
        }
    }

    #[test]
    fn a_machine_that_holds_nothing_or_everything_ends_the_search_too() {
        assert_eq!(search(10.0, FASTEST, |_| false).0.holds(), None);
        let (all, _) = search(10.0, FASTEST, |_| true);
        assert_eq!((all.holds(), all.is_bounded()), (Some(FASTEST), false));
        let (some, tried) = search(10.0, 30.0, |_| true);
        assert_eq!((some.holds(), tried), (Some(30.0), vec![10.0, 16.0, 25.6, 30.0]));
    }
}
