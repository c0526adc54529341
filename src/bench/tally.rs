//! Counting a run: from what was seen of each request to the figures that are kept.

use std::collections::BTreeMap;
use std::time::Duration;

use super::arrivals::Arrivals;
use super::latency::{ENOUGH, Latencies, Show};
use super::limits::Limits;
use super::profile::Kind;
use super::result::{Run, Slice, Times};

/// One request as its client saw it. Times count from the beginning of the run.
#[derive(Clone, Debug)]
pub struct Seen {
    pub kind: Kind,
    /// When it should have been made.
    pub due: Duration,
    pub sent: Duration,
    pub ended: Duration,
    pub outcome: Outcome,
}

#[derive(Clone, Debug)]
pub enum Outcome {
    Answered(Answered),
    /// A status other than 200, with the server's words.
    Status(u16, String),
    /// No answer, or half of one.
    Lost(Loss, String),
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answered {
    pub first: Duration,
    pub last: Duration,
    /// Between two pieces.
    pub gaps: Vec<Duration>,
    /// Tokens of the prompt, if the server counts them.
    pub input: Option<u32>,
    pub output: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Connection,
    Silence,
    BrokenOff,
    ErrorEvent,
    NotSent,
}

impl Loss {
    fn word(self) -> &'static str {
        match self {
            Self::Connection => "no connection",
            Self::Silence => "silence",
            Self::BrokenOff => "broken off",
            Self::ErrorEvent => "error in the stream",
            Self::NotSent => "not sent: too many in flight",
        }
    }
}

/// A timer is exact to a millisecond; what it adds is no latency of the server's. Beyond this the sender was late, and
/// the wait counts.
const GRAIN: Duration = Duration::from_millis(2);
/// Slices of a timeline at most.
const SLICES: u64 = 60;

#[derive(Default)]
struct Sorts {
    first: Latencies,
    token: Latencies,
    gap: Latencies,
    whole: Latencies,
}

/// The counts of a run so far.
pub struct Tally {
    warmup: Duration,
    limits: Limits,
    kinds: BTreeMap<Kind, Sorts>,
    answered: u64,
    refused: u64,
    failed: u64,
    failures: BTreeMap<String, u64>,
    first_failure: Option<String>,
    input: (u64, u64),
    output: u64,
    behind: Duration,
    /// Answers whose first token, or whose tokens, came too late.
    slow: BTreeMap<Kind, (u64, u64)>,
    /// Every answer: its end, the wait for its first token, its tokens.
    ends: Vec<(Duration, Duration, u32)>,
}

impl Tally {
    pub fn new(warmup: Duration, limits: Limits) -> Self {
        Self {
            warmup,
            limits,
            kinds: BTreeMap::new(),
            answered: 0,
            refused: 0,
            failed: 0,
            failures: BTreeMap::new(),
            first_failure: None,
            input: (0, 0),
            output: 0,
            behind: Duration::ZERO,
            slow: BTreeMap::new(),
            ends: Vec::new(),
        }
    }

    /// Answers that are counted.
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// Counted requests that were refused or failed.
    pub fn lost(&self) -> u64 {
        self.refused + self.failed
    }

    /// Whether the p95 of a kind will break a limit, whatever else comes of `planned` requests.
    pub fn cannot_hold(&self, kind: Kind, planned: u64) -> bool {
        let (first, token) = self.slow.get(&kind).copied().unwrap_or_default();
        first.max(token) > planned / 20
    }

    pub fn first_failure(&self) -> Option<&str> {
        self.first_failure.as_deref()
    }

    pub fn count(&mut self, seen: &Seen) {
        let begin = match seen.sent.saturating_sub(seen.due) <= GRAIN {
            true => seen.sent,
            false => seen.due,
        };
        if let Outcome::Answered(answer) = &seen.outcome {
            self.ends.push((seen.ended, answer.first.saturating_sub(begin), answer.output));
        }
        if seen.due < self.warmup {
            return;
        }
        self.behind = self.behind.max(seen.sent.saturating_sub(seen.due));
        let (class, message) = match &seen.outcome {
            Outcome::Answered(answer) => return self.answer(seen, answer, begin),
            Outcome::Status(status, message) => (status.to_string(), message),
            Outcome::Lost(loss, message) => (loss.word().to_owned(), message),
        };
        match class.as_str() {
            "429" => self.refused += 1,
            _ => self.failed += 1,
        }
        self.first_failure.get_or_insert_with(|| format!("{class}: {message}"));
        *self.failures.entry(class).or_default() += 1;
    }

    fn answer(&mut self, seen: &Seen, answer: &Answered, begin: Duration) {
        let sorts = self.kinds.entry(seen.kind).or_default();
        let first = answer.first.saturating_sub(begin);
        sorts.first.record(first);
        sorts.whole.record(seen.ended.saturating_sub(begin));
        answer.gaps.iter().for_each(|gap| sorts.gap.record(*gap));
        let slow = self.slow.entry(seen.kind).or_default();
        slow.0 += u64::from(first > milliseconds(self.limits.first(seen.kind)));
        if answer.output > 1 {
            let token = answer.last.saturating_sub(answer.first) / (answer.output - 1);
            sorts.token.record(token);
            slow.1 += u64::from(token > milliseconds(self.limits.token_ms));
        }
        self.answered += 1;
        self.output += u64::from(answer.output);
        if let Some(input) = answer.input {
            self.input = (self.input.0 + u64::from(input), self.input.1 + 1);
        }
    }

    /// The run's figures. `sent_until` is when the last request was sent.
    pub fn run(self, arrivals: Arrivals, sent_until: Duration, quick: bool) -> Run {
        let show = match quick {
            true => Show::Everything,
            false if self.answered < ENOUGH => Show::Nothing,
            false => Show::Sure,
        };
        let warmup = self.warmup.min(sent_until);
        let seconds = (sent_until - warmup).as_secs_f64();
        let within = |end: &Duration| (warmup..sent_until).contains(end);
        let ends: Vec<_> = self.ends.iter().filter(|(end, ..)| within(end)).collect();
        let each = |count: f64| if seconds > 0.0 { rounded(count / seconds) } else { 0.0 };
        let mean = |sum: u64, count: u64| rounded(sum as f64 / count as f64);
        let times = |sorts: &Sorts| Times {
            first_ms: sorts.first.summary(show),
            token_ms: sorts.token.summary(show),
            gap_ms: sorts.gap.summary(show),
            whole_ms: sorts.whole.summary(show),
        };
        Run {
            arrivals,
            warmup_s: rounded(warmup.as_secs_f64()),
            seconds: rounded(seconds),
            requests: self.answered,
            refused: self.refused,
            failed: self.failed,
            requests_per_s: each(ends.len() as f64),
            // Counted in whole numbers: no answers make 0, where an empty sum of f64 is -0.
            output_tokens_per_s: each(ends.iter().map(|(.., tokens)| u64::from(*tokens)).sum::<u64>() as f64),
            prompt_tokens: (self.input.1 > 0).then(|| mean(self.input.0, self.input.1)),
            output_tokens: if self.answered > 0 { mean(self.output, self.answered) } else { 0.0 },
            late_ms: rounded(self.behind.as_secs_f64() * 1e3),
            kinds: self.kinds.iter().map(|(kind, sorts)| (*kind, times(sorts))).collect(),
            timeline: timeline(&ends, warmup, seconds),
            failures: self.failures,
            first_failure: self.first_failure,
            ..Run::default()
        }
    }
}

fn timeline(ends: &[&(Duration, Duration, u32)], warmup: Duration, seconds: f64) -> Vec<Slice> {
    // Whole seconds, so that a slice has a width that people can say.
    let width = (seconds / SLICES as f64).ceil().max(1.0);
    let mut sums = vec![(0u64, 0.0f64, 0u64); (seconds / width) as usize];
    for (end, first, tokens) in ends {
        let slice = ((*end - warmup).as_secs_f64() / width) as usize;
        // What is left at the end is no whole slice.
        if let Some((count, wait, sum)) = sums.get_mut(slice) {
            *count += 1;
            *wait += first.as_secs_f64() * 1e3;
            *sum += u64::from(*tokens);
        }
    }
    let slice = |(i, (count, wait, tokens)): (usize, (u64, f64, u64))| Slice {
        at: i as f64 * width,
        requests_per_s: rounded(count as f64 / width),
        output_tokens_per_s: rounded(tokens as f64 / width),
        first_ms: if count > 0 { rounded(wait / count as f64) } else { 0.0 },
    };
    sums.into_iter().enumerate().map(slice).collect()
}

fn milliseconds(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1e3).unwrap_or(Duration::MAX)
}

/// To a thousandth: more digits would be noise, and make files that nobody reads.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn answered(due: u64, sent: u64, first: u64, last: u64, output: u32) -> Seen {
        let answer = Answered { first: ms(first), last: ms(last), gaps: Vec::new(), input: Some(10), output };
        let (due, sent, ended) = (ms(due), ms(sent), ms(last));
        Seen { kind: Kind::Completion, due, sent, ended, outcome: Outcome::Answered(answer) }
    }

    #[test]
    fn waiting_counts_from_when_a_request_was_due_also_when_it_was_sent_late() {
        let mut tally = Tally::new(Duration::ZERO, Limits::default());
        tally.count(&answered(1000, 1001, 1051, 1091, 5));
        tally.count(&answered(2000, 2400, 2450, 2490, 5));
        let run = tally.run(Arrivals::Poisson(1.0), ms(4000), true);
        let times = &run.kinds[&Kind::Completion];
        assert_eq!(
            (times.first_ms.mean, times.first_ms.max),
            (250.0, 450.0),
            "50 by the timer, 450 by lateness"
        );
        assert_eq!((times.token_ms.mean, times.whole_ms.max), (10.0, 490.0));
        assert_eq!(
            (run.late_ms, run.requests, run.prompt_tokens, run.output_tokens),
            (400.0, 2, Some(10.0), 5.0)
        );
        assert_eq!((run.seconds, run.requests_per_s, run.output_tokens_per_s), (4.0, 0.5, 2.5));
    }

    #[test]
    fn the_warm_up_is_in_no_figure_but_its_answers_that_end_later_are_throughput() {
        let mut tally = Tally::new(ms(1000), Limits::default());
        tally.count(&answered(0, 0, 10, 500, 5));
        tally.count(&answered(900, 900, 1100, 1500, 5));
        tally.count(&answered(1000, 1000, 1010, 1500, 5));
        let lost = Outcome::Lost(Loss::Connection, "refused".into());
        tally.count(&Seen { kind: Kind::Chat, due: ms(999), sent: ms(999), ended: ms(999), outcome: lost });
        let run = tally.run(Arrivals::Poisson(1.0), ms(3000), true);
        assert_eq!((run.requests, run.failed, run.kinds[&Kind::Completion].first_ms.max), (1, 0, 10.0));
        assert_eq!((run.requests_per_s, run.output_tokens_per_s), (1.0, 5.0));
        assert_eq!(run.timeline.len(), 2);
        assert_eq!((run.timeline[0].requests_per_s, run.timeline[1].requests_per_s), (2.0, 0.0));
    }

    #[test]
    fn refusals_and_failures_are_told_apart_and_never_counted_as_fast_answers() {
        let mut tally = Tally::new(Duration::ZERO, Limits::default());
        let lost = |outcome| Seen { kind: Kind::Chat, due: ms(1), sent: ms(1), ended: ms(2), outcome };
        tally.count(&lost(Outcome::Status(429, "busy".into())));
        tally.count(&lost(Outcome::Status(500, "broken".into())));
        tally.count(&lost(Outcome::Lost(Loss::BrokenOff, "gone".into())));
        let run = tally.run(Arrivals::Concurrent(1), ms(1000), true);
        assert_eq!((run.requests, run.refused, run.failed, run.requests_per_s), (0, 1, 2, 0.0));
        assert_eq!(run.first_failure.as_deref(), Some("429: busy"));
        let failures: Vec<_> = run.failures.iter().map(|(class, n)| (class.as_str(), *n)).collect();
        assert_eq!(failures, [("429", 1), ("500", 1), ("broken off", 1)]);
        assert!(run.kinds.is_empty());
    }

    #[test]
    fn a_run_that_is_interrupted_in_its_warm_up_counts_nothing_and_its_rates_have_no_sign() {
        let mut tally = Tally::new(ms(1000), Limits::default());
        tally.count(&answered(0, 0, 10, 500, 5));
        for sent_until in [600, 2000] {
            let run = Tally { ends: tally.ends.clone(), ..Tally::new(ms(1000), Limits::default()) };
            let run = run.run(Arrivals::Poisson(1.0), ms(sent_until), true);
            assert!(run.is_empty(), "{run:?}");
            let rates = [run.requests_per_s, run.output_tokens_per_s, run.output_tokens];
            assert_eq!(rates.map(|rate| format!("{rate:.0}")), ["0", "0", "0"], "{sent_until} ms");
        }
    }

    #[test]
    fn a_run_cannot_hold_its_limits_once_more_than_one_in_twenty_of_all_is_late() {
        let mut tally = Tally::new(Duration::ZERO, Limits::default());
        let holds = |tally: &Tally| !tally.cannot_hold(Kind::Completion, 100);
        (0..5).for_each(|i| tally.count(&answered(i, i, i + 501, i + 502, 2)));
        (0..5).for_each(|i| tally.count(&answered(i, i, i + 5, i + 66, 2)));
        assert!(holds(&tally), "five late first tokens and five slow answers break neither p95 of 100");
        tally.count(&answered(6, 6, 10, 71, 2));
        assert!(!holds(&tally));
        (0..94).for_each(|i| tally.count(&answered(i, i, i + 5, i + 6, 2)));
        let run = tally.run(Arrivals::Poisson(1.0), ms(1000), true);
        let verdict = Limits::default().judge(&run);
        assert!(
            matches!(verdict, crate::bench::limits::Verdict::Breaks(_)),
            "{verdict:?} of {} answers",
            run.requests
        );
    }

    #[test]
    fn percentiles_of_few_requests_are_shown_only_to_who_asked_for_a_quick_look() {
        for (count, quick, shown) in [(999, false, false), (1000, false, true), (3, true, true)] {
            let mut tally = Tally::new(Duration::ZERO, Limits::default());
            (0..count).for_each(|i| tally.count(&answered(i, i, i + 5, i + 9, 2)));
            let run = tally.run(Arrivals::Poisson(1.0), ms(1000), quick);
            assert_eq!(run.kinds[&Kind::Completion].first_ms.p99.is_some(), shown, "{count}");
            assert_eq!(run.kinds[&Kind::Completion].first_ms.mean, 5.0, "a mean is always there");
        }
    }
}
