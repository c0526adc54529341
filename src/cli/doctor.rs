//! `hearth doctor`: is everything well, and if not, what to do.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::flags::ModelFlags;
use super::{CliError, Common, Exit};
use crate::config::Settings;
use crate::doctor::{self, Verdict, examine, steps};
use crate::fit::BUILT_IN;
use crate::outbound::Base;

#[derive(Args)]
pub struct Doctor {
    /// Address of the running server's API, if it is not the configured one
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// The running server's state directory
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The URL at which GitLab and the editors reach the server, to look at what stands in between
    #[arg(long, value_name = "URL")]
    through: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
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
    if layers.models().is_empty() && layers.upstreams().is_empty() {
        ModelFlags::default().apply(&mut layers)?;
    }
    let settings = Settings::of(&layers)?;
    let through = verb.through.as_deref().map(str::parse::<Base>).transpose().map_err(|e| {
        let given = verb.through.as_deref().unwrap_or_default();
        CliError::new(Exit::Usage, format!("--through is {given:?}")).fix(format!("it must be {e}"))
    })?;
    let findings = super::runtime()?.block_on(async {
        let mut findings = examine(&settings).await;
        if let Some(base) = &through {
            findings.extend(doctor::through(base, &settings).await);
        }
        findings
    });
    let mut out = std::io::stdout().lock();
    let count = |verdict| findings.iter().filter(|f| f.verdict == verdict).count();
    let (failures, warnings) = (count(Verdict::Failure), count(Verdict::Warning));
    if verb.json {
        let version = env!("CARGO_PKG_VERSION");
        let report = json!({"hearth": version, "checks": findings, "failed": failures, "warnings": warnings});
        writeln!(out, "{report:#}")?;
    } else {
        for finding in &findings {
            writeln!(out, "{finding}")?;
        }
        writeln!(out, "\nchecks: {}, failed: {failures}, warnings: {warnings}", findings.len())?;
    }
    if let Some(first) = findings.iter().find(|f| f.verdict == Verdict::Failure) {
        return Err(CliError::new(exit(first.check), format!("checks that failed: {failures}"))
            .fix("see each line's fix above"));
    }
    if verb.json {
        return Ok(());
    }
    let mut names: Vec<&str> = settings.models.iter().map(|model| model.name.as_str()).collect();
    if names.is_empty() {
        names.extend(BUILT_IN);
    }
    writeln!(out, "\n{}", steps(&settings, &names))?;
    Ok(())
}

/// The exit code of the first check that failed.
fn exit(check: &str) -> Exit {
    match check {
        "device" => Exit::Device,
        "model" => Exit::Model,
        "fit" => Exit::Memory,
        "gitlab" | "clock" => Exit::GitLab,
        _ => Exit::Failed,
    }
}
