//! `hearth bench serve`: one load, and what came of it.

use std::time::Duration;

use clap::Args;

use super::asking::Asking;
use super::values::{positive, time};
use crate::bench::arrivals::Arrivals;
use crate::bench::load::Plan;
use crate::bench::summary;
use crate::cli::{CliError, Common};

#[derive(Args)]
pub struct Serve {
    #[command(flatten)]
    asking: Asking,
    /// Requests a second, at random times whether or not the server keeps up
    #[arg(long, value_name = "RATE", conflicts_with = "concurrency", value_parser = positive)]
    rate: Option<f64>,
    /// Requests at the same time, each followed by the next [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=8192))]
    concurrency: Option<u64>,
    /// Time after the warm-up in which requests are sent, like 90s or 10m, instead of a number of requests
    #[arg(long, value_name = "TIME", value_parser = time)]
    duration: Option<Duration>,
}

impl Serve {
    pub fn run(&self, common: &Common) -> Result<(), CliError> {
        let asking = &self.asking;
        let mut session = asking.begin(common)?;
        let arrivals = match (self.rate, self.concurrency) {
            (Some(rate), _) => Arrivals::Poisson(rate),
            (None, n) => Arrivals::Concurrent(n.unwrap_or(8)),
        };
        let plan = Plan {
            arrivals,
            warmup: asking.warmup(),
            requests: match self.duration {
                Some(_) => asking.requests,
                None => Some(asking.count()),
            },
            duration: self.duration,
            limits: asking.limits(),
            stop_early: false,
            quick: asking.quick,
            first: 0,
        };
        let (run, cut) = session.load(&plan);
        let mut text = summary::run(&session.results, &run);
        session.results.runs.push(run);
        if let Some(cut) = &cut {
            session.results.partial = Some(cut.to_string());
            text += &format!("\nPARTIAL: {cut}\n");
        }
        session.hand_over(asking, &text)?;
        match cut {
            Some(cut) => Err(session.cut(&cut, asking.output.as_deref())),
            None => Ok(()),
        }
    }
}
