//! `hearth doctor`: is everything well, and if not, what to do.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::load::BUILT_IN;
use super::{CliError, Common, Exit};
use crate::config::Settings;
use crate::doctor::{Verdict, examine, steps};

#[derive(Args)]
pub struct Doctor {
    /// Address of the running server's API, if it is not the configured one
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// The running server's state directory
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

pub fn run(verb: Doctor, common: &Common) -> Result<(), CliError> {
    let mut layers = common.layers()?;
    let directory = verb.state_dir.map(|d| d.display().to_string());
    for (flag, name, value) in
        [("--listen", "server.listen", verb.listen), ("--state-dir", "server.state_dir", directory)]
    {
        if let Some(value) = value {
            layers.flag(flag, name, value)?;
        }
    }
    let settings = Settings::of(&layers)?;
    let findings = super::runtime()?.block_on(examine(&settings));
    let mut out = std::io::stdout().lock();
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    let count = |verdict| findings.iter().filter(|f| f.verdict == verdict).count();
    let (failures, warnings) = (count(Verdict::Failure), count(Verdict::Warning));
    writeln!(out, "\n{} checks: {failures} failed, {warnings} warnings", findings.len())?;
    if failures > 0 {
        return Err(
            CliError::new(Exit::Failed, format!("{failures} checks failed")).fix("see each line's fix above")
        );
    }
    let mut names: Vec<&str> = settings.models.iter().map(|model| model.name.as_str()).collect();
    if names.is_empty() {
        names.extend(BUILT_IN);
    }
    writeln!(out, "\n{}", steps(&settings, &names))?;
    Ok(())
}
