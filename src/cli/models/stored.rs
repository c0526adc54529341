//! `hearth models verify | export | remove`: the models in the store.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;
use hearth_models::memory::Size;
use serde_json::json;

use super::{CliError, Common, Exit, Place, Steps};
use crate::audit::{Audit, Event, Who};
use crate::store::{self, How};

#[derive(Args)]
pub struct Verify {
    /// Which models [default: all]
    names: Vec<String>,
    /// Read parts of large files only, as at every load
    #[arg(long)]
    sample: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

pub fn verify(verb: Verify, common: &Common) -> Result<(), CliError> {
    let store = verb.place.store(common)?;
    let _lock = store.lock_shared()?;
    let names = if verb.names.is_empty() { store.names()? } else { verb.names };
    let how = if verb.sample { How::Sample } else { How::Full };
    let mut steps = Steps::new(verb.json);
    let mut damaged = Vec::new();
    for name in &names {
        // One that is broken must not keep the others from being looked at.
        let (files, bytes, wrong) = match store::verify(&store, name, how, &mut steps) {
            Ok(report) => (report.files, report.bytes, report.wrong),
            Err(store::StoreError::Damaged { files, .. }) => (0, 0, files),
            Err(error) => return Err(error.into()),
        };
        steps.end();
        let mut out = std::io::stdout().lock();
        if verb.json {
            let wrong: Vec<_> =
                wrong.iter().map(|(file, reason)| json!({"file": file, "reason": reason})).collect();
            let ok = wrong.is_empty();
            writeln!(
                out,
                "{}",
                json!({"event": "verified", "name": name, "ok": ok, "files": files, "bytes": bytes, "wrong": wrong})
            )?;
        } else if wrong.is_empty() {
            writeln!(out, "{name}\tok\t{files} files\t{} read", Size(bytes))?;
        }
        for (file, reason) in &wrong {
            if !verb.json {
                writeln!(out, "{name}\tDAMAGED\t{file} {reason}")?;
            }
        }
        if !wrong.is_empty() {
            damaged.push(name.clone());
        }
    }
    match damaged.is_empty() {
        true => Ok(()),
        false => {
            let what =
                format!("{} of {} models are damaged: {}", damaged.len(), names.len(), damaged.join(", "));
            Err(CliError::new(Exit::Model, what).fix("check the disk, then import them again with --replace"))
        }
    }
}

#[derive(Args)]
pub struct Export {
    name: String,
    /// The archive to write: .tar, .tar.zst, or - for standard output
    #[arg(long, short, value_name = "FILE|-")]
    output: PathBuf,
    #[command(flatten)]
    place: Place,
}

pub fn export(verb: Export, common: &Common) -> Result<(), CliError> {
    let store = verb.place.store(common)?;
    let _lock = store.lock_shared()?;
    let target = (verb.output.as_os_str() != "-").then_some(verb.output.as_path());
    if target.is_none() && std::io::stdout().is_terminal() {
        let what = "an archive is not for a terminal";
        return Err(CliError::new(Exit::Usage, what).fix("send it into a file or a pipe"));
    }
    let mut steps = Steps::new(false);
    store::export(&store, &verb.name, target, &mut steps)?;
    steps.end();
    Ok(())
}

#[derive(Args)]
pub struct Remove {
    name: String,
    /// Also when the settings name it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    place: Place,
}

pub fn remove(verb: Remove, common: &Common) -> Result<(), CliError> {
    let settings = verb.place.settings(common)?;
    let store = store::Store::at(&settings.models_dir);
    let directory = store.directory(&verb.name);
    let used = settings.models.iter().find(|model| directory.is_some() && model.path == directory);
    if let Some(model) = used.filter(|_| !verb.force) {
        let what = format!("{} is a configured model: the server will not start without it", verb.name);
        return Err(CliError::new(Exit::Failed, what)
            .at(model.origin.to_string())
            .fix("take it out of the settings first, or --force"));
    }
    let lock = store.lock()?;
    if let Some(name) = directory.as_ref().map(|_| verb.name.clone()) {
        // One whose manifest is damaged can be removed too.
        let sha256 = store.get(&name).map_or_else(|_| String::new(), |stored| stored.manifest.digest());
        let event = Event::ModelRemoved { name, sha256 };
        Audit::of(&settings).record(&Who::caller(), &event).map_err(store::StoreError::from)?;
    }
    let freed = store.remove(&verb.name, &lock)?;
    eprintln!(
        "{} removed, {} are free again; a server that has it loaded keeps it until it stops",
        verb.name,
        Size(freed)
    );
    Ok(())
}
