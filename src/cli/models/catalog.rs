//! `hearth models catalog`: the checkpoints that are known.

use std::io::Write;

use clap::Args;
use hearth_models::catalog::{self, Entry};
use hearth_models::memory::Size;

use super::{CliError, Exit};
use crate::nearest::nearest;

#[derive(Args)]
pub struct Catalog {
    /// One of them, by id or name [default: a line for each]
    id: Option<String>,
    /// JSON
    #[arg(long)]
    json: bool,
}

pub fn run(verb: Catalog) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    let entries = match &verb.id {
        None => catalog::all().iter().collect(),
        Some(id) => vec![find(id)?],
    };
    if verb.json {
        for entry in entries {
            let entry = serde_json::to_string(entry).expect("bug: an entry of the catalogue is JSON");
            writeln!(out, "{entry}")?;
        }
        return Ok(());
    }
    if verb.id.is_some() {
        return describe(entries[0], &mut out);
    }
    for entry in entries {
        let size = entry.weight_bytes().map_or("-".to_owned(), |bytes| Size(bytes).to_string());
        let production = match entry.licence.production {
            Some(true) => "",
            Some(false) => ", NOT for production",
            None => ", with conditions",
        };
        let served = if entry.not_served.is_some() { "\tnot served by this version" } else { "" };
        writeln!(out, "{}\t{}\t{size}\t{}{production}{served}", entry.name, entry.id, entry.licence.name)?;
    }
    Ok(())
}

/// The checkpoint of that id or name.
pub fn find(id: &str) -> Result<&'static Entry, CliError> {
    catalog::find(id).ok_or_else(|| {
        let names = catalog::all().iter().flat_map(|entry| [entry.id.as_str(), entry.name.as_str()]);
        let fix = match nearest(id, names) {
            Some(known) => format!("did you mean {known}?"),
            None => "`hearth models catalog` names all of them".to_owned(),
        };
        CliError::new(Exit::Model, format!("{id} is not in the catalogue")).fix(fix)
    })
}

fn describe(entry: &Entry, out: &mut impl Write) -> Result<(), CliError> {
    let mut line = |what: &str, value: &str| writeln!(out, "{what:<20} {value}");
    line("checkpoint", &format!("{}, {}", entry.id, entry.title))?;
    line("name", &entry.name)?;
    let gated = if entry.gated { "; its publisher wants an agreement first" } else { "" };
    line("revision", &format!("{}{gated}", entry.revision))?;
    line("licence", &entry.licence.about())?;
    if let Some(bytes) = entry.weight_bytes() {
        line("weights", &format!("{}, 16 bits a parameter", Size(bytes)))?;
    }
    line("family in GitLab", &entry.family)?;
    for row in features(entry) {
        line(row.0, &row.1)?;
    }
    if let Some(hardware) = &entry.hardware {
        line("GitLab's minimum", &format!("{}, {} GB of memory", hardware.gpus, hardware.vram_gb))?;
    }
    if let Some(note) = &entry.note {
        line("note", note)?;
    }
    if let Some(why) = &entry.not_served {
        line("not served", why)?;
    }
    Ok(())
}

/// What GitLab's tables say of it, and the formats of its prompts.
pub fn features(entry: &Entry) -> [(&'static str, String); 2] {
    let features = &entry.features;
    let words = format!(
        "completion {}, generation {}, chat {}, agents {} ({})",
        features.completion, features.generation, features.chat, features.agents, features.table
    );
    let formats = format!("gaps: {}, chat: {}", entry.formats.fill, entry.formats.chat);
    [("good for", words), ("prompts", formats)]
}
