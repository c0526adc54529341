//! `hearth models`: what a checkpoint is and needs; what is configured.

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;
use hearth_models::checkpoint::Checkpoint;
use hearth_models::inspect::Inspection;
use serde_json::json;

use super::{CliError, Common, Exit, load};
use crate::served::family::Family;
use crate::text::{Text, TextFiles};

#[derive(Subcommand)]
pub enum Verb {
    /// Say what a checkpoint is: family, parameters, types, memory, what it can do
    Inspect {
        /// The checkpoint's directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Name the configured and built-in models, where each is, and its family as GitLab calls it
    List,
}

pub fn run(verb: Verb, common: &Common) -> Result<(), CliError> {
    match verb {
        Verb::Inspect { directory, json } => inspect(directory, json),
        Verb::List => list(common),
    }
}

fn list(common: &Common) -> Result<(), CliError> {
    let layers = common.layers()?;
    let mut out = std::io::stdout().lock();
    let mut row = |name: &str, place: &str, family: Option<Family>, aliases: &[String]| {
        let family = family.map_or("family unknown: the checkpoint cannot be read", Family::name);
        let aliases = if aliases.is_empty() { String::new() } else { format!("\tor {}", aliases.join(", ")) };
        writeln!(out, "{name}\t{place}\t{family}{aliases}")
    };
    for model in layers.models() {
        row(&model.name, &load::place(model), load::family(model), &model.aliases)?;
    }
    for upstream in layers.upstreams() {
        for (i, (name, _)) in upstream.models.iter().enumerate() {
            let aliases = if i == 0 { upstream.aliases.as_slice() } else { &[] };
            row(name, &format!("upstream {}", upstream.name), Some(upstream.family), aliases)?;
        }
    }
    if let Some(name) = load::BUILT_IN.filter(|name| layers.models().iter().all(|m| m.name != *name)) {
        row(name, "built in; for trying things out, not for work", Some(Family::General), &[])?;
    }
    Ok(())
}

fn inspect(directory: PathBuf, as_json: bool) -> Result<(), CliError> {
    let checkpoint = Checkpoint::open(&directory).map_err(|e| CliError::new(Exit::Model, e.to_string()))?;
    let inspection = Inspection::of(&checkpoint);
    let spec = checkpoint.spec();
    let (vocab, context) = (spec.vocab as u32, spec.context as u32);
    let text = TextFiles::read(&directory).and_then(|files| Text::new(&files, vocab, context, &spec.eos));
    let fim = text.as_ref().ok().and_then(|t| t.fim.as_ref()).map(|f| f.name());
    let chat = text.as_ref().is_ok_and(|t| t.chat.is_some());
    let mut out = std::io::stdout().lock();
    if as_json {
        let mut report = serde_json::to_value(&inspection).expect("bug: an inspection is JSON");
        report["fill_in_the_middle"] = json!(fim);
        report["chat"] = json!(chat);
        report["text_error"] = json!(text.as_ref().err().map(ToString::to_string));
        writeln!(out, "{report}")?;
        return Ok(());
    }
    write!(out, "{inspection}")?;
    writeln!(
        out,
        "{:<20} {}",
        "fill-in-the-middle",
        fim.map_or("no".to_owned(), |name| format!("yes, as {name}"))
    )?;
    writeln!(out, "{:<20} {}", "chat", if chat { "yes" } else { "no" })?;
    if let Err(error) = &text {
        writeln!(out, "{:<20} {error}", "cannot be served")?;
    }
    Ok(())
}
