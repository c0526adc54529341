//! From requests a second to people: how many GitLab users a machine serves.

use super::arrivals::figure;
use super::latency::Latency;
use super::limits::Verdict;
use super::profile::Kind;
use super::result::{Results, Run};

/// GitLab's own figure for sizing: requests a second that a thousand of its users make.
const RATE_OF_A_THOUSAND: f64 = 7.0;

/// What a file of results says about a number of users.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// How many times over; the figure is a lower bound where no rate was found that breaks.
    Fits {
        headroom: f64,
        at_least: bool,
    },
    Needs(u64),
    /// In words.
    Unknown(String),
}

/// Requests a second that so many users make.
pub fn rate_of(users: u64) -> f64 {
    users as f64 * RATE_OF_A_THOUSAND / 1000.0
}

/// Users who make so many requests a second, rounded down.
pub fn users_of(rate: f64) -> u64 {
    (rate * 1000.0 / RATE_OF_A_THOUSAND + 1e-9) as u64
}

/// The highest rate that held the limits, and whether a higher one is known to break them.
pub struct Capacity<'a> {
    pub rate: f64,
    pub run: &'a Run,
    /// Its place among the runs.
    pub index: usize,
    pub at_least: bool,
}

/// What the machine of these results holds. Of a run at a given rate it is that rate, at least: what was answered a
/// second, which by chance differs a little from what was asked for; the lower of the two.
pub fn capacity(results: &Results) -> Result<Capacity<'_>, String> {
    if let Some(knee) = &results.knee {
        let run = knee.run.and_then(|index| Some((index, results.runs.get(index)?)));
        return match (knee.rate, run) {
            (Some(rate), Some((index, run))) => {
                Ok(Capacity { rate: rate.min(run.requests_per_s), run, index, at_least: knee.at_least })
            }
            _ => Err(format!("no rate held the limits: {}", knee.beyond)),
        };
    }
    let mut judged =
        results.runs.iter().enumerate().map(|(index, run)| (index, run, results.limits.judge(run)));
    let held = judged.clone().filter(|(.., verdict)| *verdict == Verdict::Holds);
    let best = held.max_by(|a, b| a.1.requests_per_s.total_cmp(&b.1.requests_per_s));
    match (best, judged.next_back()) {
        (Some((index, run, _)), _) => Ok(Capacity { rate: run.requests_per_s, run, index, at_least: true }),
        (None, Some((.., Verdict::Breaks(why) | Verdict::Open(why)))) => Err(why),
        (None, _) => Err("nothing was measured".to_owned()),
    }
}

/// Whether so many users fit on the machine of these results.
pub fn answer(results: &Results, users: u64) -> Answer {
    let need = rate_of(users);
    match capacity(results) {
        Ok(Capacity { rate, at_least, .. }) if rate >= need => {
            Answer::Fits { headroom: rate / need, at_least }
        }
        Ok(Capacity { rate, at_least: true, .. }) => Answer::Unknown(format!(
            "{} requests/s held the limits and {} are needed; what lies between, `hearth bench sweep` finds out",
            figure(rate),
            figure(need)
        )),
        Ok(Capacity { rate, .. }) => Answer::Needs((need / rate - 1e-9).ceil() as u64),
        Err(why) => Answer::Unknown(why),
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // Rounded down: nobody is promised what was not measured.
            Self::Fits { headroom, at_least } => {
                let bound = if *at_least { "at least " } else { "" };
                write!(f, "fits with {bound}{:.1}x headroom", (headroom * 10.0).floor() / 10.0)
            }
            Self::Needs(machines) => write!(f, "needs {machines} of this machine"),
            Self::Unknown(why) => write!(f, "not known: {why}"),
        }
    }
}

/// The sentence around it.
pub fn sentence(results: &Results, users: u64) -> String {
    let (need, profile) = (figure(rate_of(users)), results.workload.profile);
    format!(
        "{} GitLab users make {need} requests/s; as {profile}: {}",
        grouped(users),
        answer(results, users)
    )
}

/// 12,345.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The hardware table of the documentation, in Markdown: a row for each file. `link` is where a file is found.
pub fn table(files: &[(String, Results)]) -> String {
    let mut text = "| machine | model | requests | a second within the limits | first token p50 / p95 | per token p95 | tokens/s | GitLab users | results |\n\
                    |---|---|---|---:|---:|---:|---:|---:|---|\n"
        .to_owned();
    for (link, results) in files {
        let machine = &results.machine;
        let place = match &machine.gpu {
            Some(all) => {
                let name = all.split([',', ';']).next().unwrap_or(all);
                match all.split(';').count() {
                    1 => name.to_owned(),
                    several => format!("{several} x {name}"),
                }
            }
            None => format!("{} cores of {}; {}", machine.cores, machine.processor, machine.vectors),
        };
        let name = link.rsplit('/').next().unwrap_or(link);
        let quick = if results.quick { " (a quick look)" } else { "" };
        let head = format!("| {place} | {} | {}{quick} |", results.server.model, results.workload.profile);
        let row = match capacity(results) {
            Ok(Capacity { rate, run, at_least, .. }) => {
                let bound = if at_least { "at least " } else { "" };
                let cell = |of: fn(&Run, Kind) -> String| {
                    let kinds: Vec<String> = run.kinds.keys().map(|kind| of(run, *kind)).collect();
                    kinds.join("; ")
                };
                format!(
                    " {bound}{} | {} | {} | {:.0} | {bound}{} |",
                    figure(rate),
                    cell(|run, kind| {
                        let first = &run.kinds[&kind].first_ms;
                        format!("{} / {}", ms(first.p50), ms(first.p95))
                    }),
                    cell(|run, kind| ms(run.kinds[&kind].token_ms.p95)),
                    run.output_tokens_per_s,
                    grouped(users_of(rate)),
                )
            }
            Err(why) => format!(" none: {why} | | | | |"),
        };
        text += &format!("{head}{row} [{name}]({link}) |\n");
    }
    text
}

/// Milliseconds with the digits that matter.
pub fn ms(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(ms) => format!("{} ms", milliseconds(ms)),
    }
}

pub fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms >= 100.0 => format!("{ms:.0}"),
        ms if ms >= 10.0 => format!("{ms:.1}"),
        ms => format!("{ms:.2}"),
    }
}

/// The percentiles of a time as columns.
pub fn columns(latency: &Latency) -> [Option<f64>; 5] {
    let max = (latency.count > 0).then_some(latency.max);
    [latency.p50, latency.p90, latency.p95, latency.p99, max]
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::bench::arrivals::Arrivals;
    use crate::bench::limits::Limits;
    use crate::bench::machine::Machine;
    use crate::bench::profile::{Profile, Workload};
    use crate::bench::result::{Knee, Server, Times};
    use proptest::prelude::*;

    /// A sweep that found this rate, for tests.
    pub fn sweep(knee: f64) -> Results {
        let machine = Machine {
            processor: "Some CPU".into(),
            cores: 8,
            vectors: "AVX2".into(),
            memory_bytes: 16 << 30,
            gpu: None,
            system: "Debian".into(),
            load_before: 0.5,
        };
        let server = Server { url: None, model: "ember-demo".into(), digest: None, here: true };
        let workload = Workload {
            profile: Profile::CodeCompletion,
            prompt_tokens: None,
            output_tokens: None,
            shared: 0.5,
            seed: 1,
            fills: true,
            whole_answers: true,
            context: Some(2048),
            bytes_per_token: 3.2,
        };
        let run = |rate: f64, p95: f64| {
            let of = |p50, p95| Latency {
                count: 1000,
                mean: p50,
                max: p95,
                p50: Some(p50),
                p95: Some(p95),
                ..Latency::default()
            };
            let times = Times {
                first_ms: of(p95 / 3.0, p95),
                token_ms: of(4.0, 12.5),
                gap_ms: of(4.0, 5.0),
                whole_ms: of(90.0, 700.0),
            };
            Run {
                arrivals: Arrivals::Poisson(rate),
                requests: 1000,
                seconds: 1000.0 / rate,
                requests_per_s: rate,
                output_tokens_per_s: rate * 32.0,
                kinds: [(Kind::Completion, times)].into(),
                ..Run::default()
            }
        };
        let mut results =
            Results::begin("hearth bench sweep".into(), machine, server, workload, Limits::default());
        results.runs = vec![run(knee / 2.0, 40.0), run(knee, 240.0), run(knee * 1.1, 700.0)];
        results.knee = Some(Knee { rate: Some(knee), run: Some(1), at_least: false, beyond: "p95".into() });
        results
    }

    #[test]
    fn users_fit_or_need_more_machines_by_gitlabs_own_figure() {
        let said = |knee, users| answer(&sweep(knee), users).to_string();
        assert_eq!(said(16.2, 1000), "fits with 2.3x headroom");
        assert_eq!(said(7.0, 1000), "fits with 1.0x headroom");
        assert_eq!(said(6.99, 1000), "needs 2 of this machine");
        assert_eq!(said(3.5, 1000), "needs 2 of this machine");
        assert_eq!(said(3.49, 1000), "needs 3 of this machine");
        assert_eq!((rate_of(1000), users_of(7.0), users_of(16.2)), (7.0, 1000, 2314));
    }

    #[test]
    fn a_run_at_one_rate_is_a_lower_bound_and_a_bad_one_says_nothing() {
        let mut one = sweep(10.0);
        one.knee = None;
        one.runs.truncate(1);
        assert_eq!(answer(&one, 500).to_string(), "fits with at least 1.4x headroom");
        assert!(
            answer(&one, 1000).to_string().contains("5.00 requests/s held the limits and 7.00 are needed")
        );
        one.runs[0].failed = 3;
        assert!(answer(&one, 1).to_string().starts_with("not known: 3 requests were not answered"));
        let mut none = sweep(10.0);
        none.knee = Some(Knee {
            rate: None,
            run: None,
            at_least: false,
            beyond: "p95 of the first token is 900 ms".into(),
        });
        assert_eq!(
            answer(&none, 1).to_string(),
            "not known: no rate held the limits: p95 of the first token is 900 ms"
        );
    }

    proptest! {
        /// As many machines as it says carry the load, and one fewer does not.
        #[test]
        fn machines_are_enough_and_not_one_too_many(knee in 0.05..5000f64, users in 1u64..1_000_000) {
            let need = rate_of(users);
            match answer(&sweep(knee), users) {
                Answer::Fits { headroom, .. } => prop_assert!((headroom - knee / need).abs() < 1e-9 && headroom >= 1.0),
                Answer::Needs(machines) => {
                    let n = machines as f64;
                    prop_assert!(machines >= 2 && n * knee >= need * 0.999_999 && (n - 1.0) * knee < need);
                }
                Answer::Unknown(why) => prop_assert!(false, "{why}"),
            }
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_file() {
        let table = table(&[("results/a.json".into(), sweep(16.2))]);
        let row = table.lines().nth(2).unwrap();
        assert_eq!(
            row,
            "| 8 cores of Some CPU; AVX2 | ember-demo | code-completion | 16.2 | 80.0 ms / 240 ms | 12.5 ms | 518 | 2,314 | [a.json](results/a.json) |"
        );
        assert_eq!(
            (grouped(999), grouped(1000), grouped(1234567)),
            ("999".into(), "1,000".into(), "1,234,567".into())
        );
    }
}
