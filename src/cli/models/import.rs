//! `hearth models import`: a checkpoint into the store.

use std::cell::Cell;
use std::io::Write;

use clap::Args;
use hearth_models::memory::Size;
use serde_json::json;

use super::{CliError, Common, Exit, Place, Steps};
use crate::audit::{Audit, Event, Who};
use crate::config::Settings;
use crate::config::keys::size;
use crate::fit::BUILT_IN;
use crate::store::licence::{self, Terms};
use crate::store::{self, Imported, Manifest, Request, Source, Store, StoreError, Watch};

#[derive(Args)]
pub struct Import {
    /// A checkpoint's directory, an archive of one (.tar, .tar.zst), or - for an archive on standard input
    #[arg(value_name = "DIR|TAR|-")]
    from: String,
    /// What to call it [default: as the directory or archive is called]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    terms: Accept,
    /// Leave files behind that are refused (pickles, code), and take the rest
    #[arg(long)]
    leave_out: bool,
    /// Take the place of a model of that name
    #[arg(long)]
    replace: bool,
    /// How large a model may be
    #[arg(long, value_name = "SIZE", default_value = "1TiB")]
    largest: String,
    /// Progress and result as JSON, one object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// Whether the licence is accepted.
#[derive(Args, Clone, Copy)]
pub struct Accept {
    /// Says that you have read the licence and may use the model so; who said it and when is written down
    #[arg(long)]
    pub accept_license: bool,
}

pub fn run(verb: Import, common: &Common) -> Result<(), CliError> {
    let largest = size(&verb.largest).ok_or_else(|| {
        CliError::new(Exit::Usage, format!("--largest is {:?}", verb.largest)).fix("give a size, like 100GiB")
    })?;
    let source = Source::of(&verb.from)?;
    let name = verb.name.clone().or_else(|| source.default_name()).ok_or_else(|| {
        CliError::new(Exit::Usage, "a model from standard input has no name of its own")
            .fix("give it one: --name NAME")
    })?;
    free(&name)?;
    let from = source.default_name().unwrap_or_else(|| "standard input".to_owned());
    let mut steps = Steps::new(verb.json);
    if let (Source::Directory(path), false) = (&source, verb.leave_out) {
        // Before anybody reads a licence for nothing.
        store::admissible(&source.place(), &store::files(path)?)?;
    }
    // An archive is read only once when the licence is accepted; its licence is then told at the end.
    if matches!(source, Source::Directory(_)) || !verb.terms.accept_license {
        let terms = licence::before(&source, &[&name, &from])?;
        show(&terms, &mut steps);
        if !verb.terms.accept_license {
            return Err(StoreError::Licence { place: source.place() }.into());
        }
    }
    let request = Request {
        name,
        place: source.place(),
        from,
        revision: source.revision(),
        accepted_by: Who::caller().to_string(),
        leave_out: verb.leave_out,
        replace: verb.replace,
        largest,
    };
    let settings = verb.place.settings(common)?;
    let imported = import(&settings, &source, request, &mut steps)?;
    tell(&imported, &mut steps, verb.json)
}

/// The name of the built-in model is not for another one.
pub fn free(name: &str) -> Result<(), CliError> {
    Store::name(name)?;
    match BUILT_IN == Some(name) {
        false => Ok(()),
        true => {
            let what = format!("{name} is the name of the model that is built in");
            Err(CliError::new(Exit::Usage, what).fix("give another one: --name NAME"))
        }
    }
}

/// Takes a source in. What can never become a model leaves nothing behind; what was cut off stays for the next time.
pub fn import(
    settings: &Settings,
    source: &Source,
    request: Request,
    steps: &mut Steps,
) -> Result<Imported, StoreError> {
    let store = &Store::at(&settings.models_dir);
    let record = Recorder::new(settings);
    let lock = store.lock()?;
    let mut import = store::Import::begin(store, &lock, request)?;
    let total = match source {
        Source::Directory(path) => store::files(path).and_then(|found| import.plan(&found)).map(Some),
        _ => Ok(None),
    };
    let done = total.and_then(|total| {
        steps.begin("copying", total);
        source.each(&mut |offer| import.offer(offer, steps))?;
        import.finish(&|manifest| record.imported(manifest), steps)
    });
    record.ended(&done);
    match done {
        Err(error) if error.is_final() => {
            import.abandon()?;
            Err(error)
        }
        other => other,
    }
}

/// The audit log's part in an import: written before the model appears, or it does not appear.
pub struct Recorder {
    audit: Audit,
    imported: Cell<bool>,
}

impl Recorder {
    pub fn new(settings: &Settings) -> Self {
        Self { audit: Audit::of(settings), imported: Cell::new(false) }
    }

    pub fn imported(&self, manifest: &Manifest) -> Result<(), StoreError> {
        let event = Event::ModelImported {
            name: manifest.name.clone(),
            sha256: manifest.digest(),
            bytes: manifest.bytes(),
            licence: manifest.licence.name.clone(),
        };
        self.audit.record(&Who::caller(), &event)?;
        self.imported.set(true);
        Ok(())
    }

    /// What was recorded and then did not come about is recorded as that.
    pub fn ended(&self, result: &Result<Imported, StoreError>) {
        match result {
            Ok(_) => self.done(),
            Err(error) => self.failed(&error.to_string()),
        }
    }

    /// What was recorded has come about.
    pub fn done(&self) {
        self.imported.set(false);
    }

    /// The same, of whoever knows more than the import does.
    pub fn failed(&self, why: &str) {
        if self.imported.take() {
            let event = Event::ChangeFailed { of: "model_imported".to_owned(), what: why.to_owned() };
            self.audit.note(&Who::caller(), &event);
        }
    }
}

/// What is known of a licence before it is accepted.
pub fn show(terms: &Terms, steps: &mut Steps) {
    let Terms { name, file, text, production, about, .. } = terms;
    steps.note(&match (name.as_str(), file) {
        ("", None) => "licence: none among the files; find out what it is before you accept it".to_owned(),
        ("", Some(file)) => format!("licence: in {file}"),
        (name, None) => format!("licence: {name}"),
        (name, Some(file)) => format!("licence: {name}, in {file}"),
    });
    if let Some(about) = about {
        steps.note(&format!("  {about}"));
    }
    if *production == Some(false) {
        steps.note("  NOT FOR PRODUCTION without another licence from its publisher");
    }
    for line in text.iter().flat_map(|text| text.lines()).filter(|line| !line.trim().is_empty()).take(6) {
        let line: String = line.chars().filter(|c| !c.is_control()).take(110).collect();
        steps.note(&format!("  | {line}"));
    }
}

/// The result: a line, or an object.
pub fn tell(imported: &Imported, steps: &mut Steps, as_json: bool) -> Result<(), CliError> {
    steps.end();
    let Imported { manifest, directory, unchanged } = imported;
    let Manifest { name, left_out, licence, id, .. } = manifest;
    let (bytes, digest) = (manifest.bytes(), manifest.digest());
    let mut out = std::io::stdout().lock();
    if as_json {
        let result = json!({
            "event": "imported", "name": name, "directory": directory, "bytes": bytes, "files": manifest.files.len(),
            "digest": format!("sha256:{digest}"), "id": id, "unchanged": unchanged, "left_out": left_out,
            "licence": licence,
        });
        writeln!(out, "{result}")?;
        return Ok(());
    }
    if !left_out.is_empty() {
        let shown = left_out.iter().take(12).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = left_out.len().saturating_sub(12);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        eprintln!("not needed and left behind: {shown}{more}");
    }
    let word = if *unchanged { "was there already, unchanged" } else { "imported" };
    let production = if licence.production == Some(false) { " (NOT for production)" } else { "" };
    let licence_name = if licence.name.is_empty() { "unknown" } else { &licence.name };
    eprintln!("{name} {word}: licence {licence_name}{production}, accepted by {}", licence.accepted_by);
    eprintln!("  serve it: hearth serve --model {name}, or [[model]] name = {name:?} in the settings");
    writeln!(out, "{name}\t{}\t{} files\tsha256:{digest}", Size(bytes), manifest.files.len())?;
    Ok(())
}
