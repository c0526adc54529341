//! `hearth bench sweep`: one rate after another, until the limits break.

use clap::Args;

use super::asking::Asking;
use super::unwritten;
use super::values::positive;
use crate::bench::arrivals::Arrivals;
use crate::bench::limits::Verdict;
use crate::bench::load::{Cut, Plan};
use crate::bench::result::{Knee, Run};
use crate::bench::summary;
use crate::bench::sweep::{FASTEST, Search};
use crate::cli::{CliError, Common, Exit};

#[derive(Args)]
pub struct Sweep {
    #[command(flatten)]
    asking: Asking,
    /// The first rate [default: half of what 8 at a time get]
    #[arg(long, value_name = "RATE", value_parser = positive)]
    from: Option<f64>,
    /// No higher rate is tried
    #[arg(long, value_name = "RATE", default_value_t = FASTEST, hide_default_value = true, value_parser = positive)]
    to: f64,
}

impl Sweep {
    pub fn run(&self, common: &Common) -> Result<(), CliError> {
        let asking = &self.asking;
        let mut session = asking.begin(common)?;
        let plan = |arrivals, requests, number: u64| Plan {
            arrivals,
            warmup: asking.warmup(),
            requests: Some(requests),
            duration: None,
            limits: asking.limits(),
            stop_early: matches!(arrivals, Arrivals::Poisson(_)),
            quick: asking.quick,
            first: number << 32,
        };
        let (mut cut, mut beyond) = (None, "no higher rate was tried".to_owned());
        let mut search = match self.from {
            Some(rate) => Some(Search::new(rate, self.to)),
            None => {
                let (run, ended) = session.load(&plan(Arrivals::Concurrent(8), 40, 0));
                eprintln!("8 at a time: {:.2} answers/s", run.requests_per_s);
                cut = ended;
                cut.is_none().then(|| Search::new(run.requests_per_s / 2.0, self.to))
            }
        };
        while let (Some(search), None) = (&mut search, &cut) {
            let Some(rate) = search.next() else { break };
            let number = session.results.runs.len() as u64 + 1;
            let (run, ended) = session.load(&plan(Arrivals::Poisson(rate), asking.count(), number));
            eprintln!("{}", summary::step(&session.results, &run));
            let verdict = session.results.limits.judge(&run);
            session.results.runs.push(run);
            match verdict {
                Verdict::Holds => search.told(rate, true),
                Verdict::Breaks(why) => {
                    search.told(rate, false);
                    beyond = format!("at {rate} requests/s {why}");
                }
                Verdict::Open(why) if ended.is_none() => {
                    let what = format!("the sweep cannot go on: {why}");
                    return Err(
                        CliError::new(Exit::Usage, what).fix("raise --requests, or take a look with --quick")
                    );
                }
                Verdict::Open(_) => {}
            }
            cut = ended.filter(|cut| *cut != Cut::Late);
            if let Some(path) = &asking.output {
                // Whatever ends this process, what was measured is there.
                session.results.partial = Some("the sweep had not ended".to_owned());
                session.results.write(path).map_err(unwritten)?;
            }
        }
        session.results.partial = cut.as_ref().map(Cut::to_string);
        let holds = search.as_ref().and_then(Search::holds);
        let at = |rate| move |run: &Run| run.arrivals == Arrivals::Poisson(rate);
        let best = holds.and_then(|rate| {
            let held = |run: &&(usize, &Run)| session.results.limits.judge(run.1) == Verdict::Holds;
            session
                .results
                .runs
                .iter()
                .enumerate()
                .filter(|(_, run)| at(rate)(run))
                .find(|run| held(&run))
                .map(|(i, _)| i)
        });
        let at_least = !search.as_ref().is_some_and(Search::is_bounded);
        if session.results.runs.iter().any(|run| !run.is_empty()) {
            session.results.knee = Some(Knee { rate: holds, run: best, at_least, beyond });
        }
        session.hand_over(asking, &summary::sweep(&session.results))?;
        match cut {
            Some(cut) => Err(session.cut(&cut, asking.output.as_deref())),
            None => Ok(()),
        }
    }
}
