//! `hearth models list`: what is configured, imported and built in.

use std::io::Write;

use clap::Args;
use hearth_models::memory::Size;
use serde_json::json;

use super::{CliError, Common, Place};
use crate::config::ModelEntry;
use crate::fit::{self, BUILT_IN};
use crate::served::family::Family;
use crate::store::Store;

#[derive(Args)]
pub struct List {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// One line.
struct Row {
    name: String,
    place: String,
    family: Option<Family>,
    aliases: Vec<String>,
    configured: bool,
}

pub fn run(verb: List, common: &Common) -> Result<(), CliError> {
    let settings = verb.place.settings(common)?;
    let store = Store::at(&settings.models_dir);
    let mut rows = Vec::new();
    for model in &settings.models {
        let (name, aliases) = (model.name.clone(), model.aliases.clone());
        rows.push(Row { name, place: model.place(), family: fit::family(model), aliases, configured: true });
    }
    for upstream in &settings.upstreams {
        for (i, (name, _)) in upstream.models.iter().enumerate() {
            let aliases = if i == 0 { upstream.aliases.clone() } else { Vec::new() };
            let (name, place) = (name.clone(), format!("upstream {}", upstream.name));
            rows.push(Row { name, place, family: Some(upstream.family), aliases, configured: true });
        }
    }
    for name in store.names()? {
        let directory = store.directory(&name);
        if settings.models.iter().any(|model| model.path == directory) {
            continue;
        }
        let place = match store.get(&name) {
            Ok(stored) => {
                let licence = &stored.manifest.licence;
                let production = if licence.production == Some(false) { ", NOT for production" } else { "" };
                let licence = if licence.name.is_empty() { "licence unknown" } else { &licence.name };
                format!("imported, not configured: {}, {licence}{production}", Size(stored.manifest.bytes()))
            }
            Err(error) => error.to_string(),
        };
        let family = directory.and_then(|directory| fit::family(&ModelEntry::at(name.clone(), &directory)));
        rows.push(Row { name, place, family, aliases: Vec::new(), configured: false });
    }
    if let Some(name) = BUILT_IN.filter(|name| rows.iter().all(|row| row.name != *name)) {
        let place = "built in; for trying things out, not for work".to_owned();
        rows.push(Row {
            name: name.to_owned(),
            place,
            family: Some(Family::General),
            aliases: Vec::new(),
            configured: false,
        });
    }
    let mut out = std::io::stdout().lock();
    for Row { name, place, family, aliases, configured } in rows {
        if verb.json {
            let family = family.map(Family::name);
            let row = json!({"name": name, "place": place, "family": family, "aliases": aliases, "configured": configured});
            writeln!(out, "{row}")?;
            continue;
        }
        let family = family.map_or("family unknown: the checkpoint cannot be read", Family::name);
        let aliases = if aliases.is_empty() { String::new() } else { format!("\tor {}", aliases.join(", ")) };
        writeln!(out, "{name}\t{place}\t{family}{aliases}")?;
    }
    for half in store.halves()? {
        eprintln!(
            "{}: an import was cut off after {}; start it again, or: hearth models remove {}",
            half.name,
            Size(half.bytes),
            half.name
        );
    }
    Ok(())
}
