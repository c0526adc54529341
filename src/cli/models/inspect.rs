//! `hearth models inspect`: what a checkpoint is and needs; of an imported one, where it came from.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use hearth_models::catalog;
use hearth_models::checkpoint::Checkpoint;
use hearth_models::inspect::Inspection;
use hearth_models::memory::Size;
use serde_json::json;

use super::catalog::features;
use super::{CliError, Common, Exit, Place};
use crate::store::{Manifest, Store};
use crate::text::{Text, TextFiles};

#[derive(Args)]
pub struct Inspect {
    /// The checkpoint's directory, or the name of an imported model
    #[arg(value_name = "DIR|NAME")]
    model: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

pub fn run(verb: Inspect, common: &Common) -> Result<(), CliError> {
    let store = verb.place.store(common)?;
    let name = verb.model.to_str().filter(|_| !verb.model.is_dir());
    let directory = name.and_then(|name| store.directory(name)).unwrap_or(verb.model);
    let stored = store.model_in(&directory).map(|name| store.get(&name)).transpose()?;
    let manifest = stored.map(|stored| stored.manifest);
    let checkpoint = Checkpoint::open(&directory)
        .map_err(|e| CliError::new(Exit::Model, e.to_string()).fix(known(&store)))?;
    let inspection = Inspection::of(&checkpoint);
    let spec = checkpoint.spec();
    let (vocab, context) = (spec.vocab as u32, spec.context as u32);
    let text = TextFiles::read(&directory).and_then(|files| Text::new(&files, vocab, context, &spec.eos));
    let fim = text.as_ref().ok().and_then(|t| t.fim.as_ref()).map(|f| f.name());
    let chat = text.as_ref().is_ok_and(|t| t.chat.is_some());
    let mut out = std::io::stdout().lock();
    if verb.json {
        let mut report = serde_json::to_value(&inspection).expect("bug: an inspection is JSON");
        report["fill_in_the_middle"] = json!(fim);
        report["chat"] = json!(chat);
        report["text_error"] = json!(text.as_ref().err().map(ToString::to_string));
        if let Some(manifest) = &manifest {
            let digest = format!("sha256:{}", manifest.digest());
            // Without the sums of chunks, of which there are thousands.
            let files =
                manifest.files.iter().map(|f| json!({"name": f.name, "bytes": f.bytes, "sha256": f.sha256}));
            report["imported"] = json!({
                "name": manifest.name, "at": manifest.imported, "by": manifest.hearth, "from": manifest.from,
                "id": manifest.id, "revision": manifest.revision, "licence": manifest.licence, "digest": digest,
                "left_out": manifest.left_out, "files": files.collect::<Vec<_>>(),
            });
        }
        writeln!(out, "{report}")?;
        return Ok(());
    }
    write!(out, "{inspection}")?;
    let mut line = |what: &str, value: &str| writeln!(out, "{what:<20} {value}");
    line("fill-in-the-middle", &fim.map_or("no".to_owned(), |name| format!("yes, as {name}")))?;
    line("chat", if chat { "yes" } else { "no" })?;
    if let Err(error) = &text {
        line("cannot be served", &error.to_string())?;
    }
    if let Some(manifest) = &manifest {
        for (what, value) in origin(manifest, &directory) {
            line(what, &value)?;
        }
    }
    Ok(())
}

/// What the manifest and the catalogue say.
fn origin(manifest: &Manifest, directory: &Path) -> Vec<(&'static str, String)> {
    let Manifest { imported, hearth, from, id, revision, licence, .. } = manifest;
    let mut lines = vec![("imported", format!("{imported} from {from}, by hearth {hearth}"))];
    let revision = revision.as_ref().map(|r| format!(", revision {r}")).unwrap_or_default();
    lines.extend(id.as_ref().map(|id| ("published as", format!("{id}{revision}"))));
    let name = if licence.name.is_empty() { "unknown" } else { &licence.name };
    let production = if licence.production == Some(false) { ", NOT for production" } else { "" };
    lines.push((
        "licence",
        format!("{name}{production}; accepted by {} at {}", licence.accepted_by, licence.accepted),
    ));
    lines.extend(licence.file.as_ref().map(|file| ("its text", directory.join(file).display().to_string())));
    if let Some(entry) = id.as_ref().and_then(|id| catalog::find(id)) {
        lines.extend(features(entry));
    }
    lines.push(("files", format!("{}, {}", manifest.files.len(), Size(manifest.bytes()))));
    lines.push(("digest", format!("sha256:{}", manifest.digest())));
    lines
}

fn known(store: &Store) -> String {
    match store.names() {
        Ok(names) if !names.is_empty() => {
            format!("give a checkpoint's directory, or one of the imported models: {}", names.join(", "))
        }
        _ => "give a checkpoint's directory".to_owned(),
    }
}
