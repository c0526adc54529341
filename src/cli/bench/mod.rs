//! `hearth bench`: how much a server answers in time, and for how many people that is enough.

mod asking;
mod micro;
mod report;
mod serve;
mod session;
mod sweep;
mod values;

use clap::Subcommand;

use super::{CliError, Common, Exit};
use crate::bench::result::ResultsError;

#[derive(Subcommand)]
pub enum Verb {
    /// Ask a server as users do, at one rate or so many at a time, and say how long they waited
    Serve(serve::Serve),
    /// Raise the rate until the limits break: the knee
    Sweep(sweep::Sweep),
    /// Make one HTML page of files of results, and say how many GitLab users fit
    Report(report::Report),
    /// List the benchmarks of single parts
    Micro,
}

pub fn run(verb: Verb, common: &Common) -> Result<(), CliError> {
    match verb {
        Verb::Serve(verb) => verb.run(common),
        Verb::Sweep(verb) => verb.run(common),
        Verb::Report(verb) => verb.run(),
        Verb::Micro => micro::run(),
    }
}

fn unwritten(error: ResultsError) -> CliError {
    let fix = match error {
        ResultsError::Write { .. } => "choose another place: -o FILE",
        ResultsError::Read { .. } => {
            "give files that `hearth bench serve -o FILE` or `hearth bench sweep -o FILE` wrote"
        }
        ResultsError::Foreign { .. } => "give files that `hearth bench` wrote, whole",
        ResultsError::Version { .. } => "use the hearth that wrote it, or measure again",
    };
    CliError::new(Exit::Failed, error.to_string()).fix(fix)
}
