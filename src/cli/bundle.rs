//! `hearth bundle`: everything for a site without a network, in one signed archive.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use hearth_models::memory::Size;

use super::models::Place;
use super::models::import::{Accept, Recorder, free};
use super::steps::Steps;
use super::{CliError, Common, Exit};
use crate::audit::{Audit, Event, Who};
use crate::bundle::{self, About, BundleError, Contents, Host, Opened, Trust};
use crate::config::Settings;
use crate::config::keys::size;
use crate::store::{Imported, Manifest, Request, Store, StoreError};

#[derive(Subcommand)]
pub enum Verb {
    /// Make a bundle of imported models and of files that are there; nothing is downloaded
    Create(Create),
    /// Check a bundle: its signature, every sum, nothing missing and nothing more
    Verify(Verify),
    /// Check a bundle and take its models in
    Install(Install),
    /// Make a pair of keys to sign bundles with; HEARTH_SIGNING_PASSWORD closes the secret one
    Key {
        /// The files will be NAME.key and NAME.pub
        #[arg(value_name = "NAME")]
        stem: PathBuf,
    },
}

#[derive(Args)]
pub struct Create {
    /// The bundle to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// An imported model; may be repeated
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// A file, or a directory whose files are meant: package, image, bill of materials, licences, documents
    #[arg(long = "with", value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    /// The secret key to sign it with
    #[arg(long, value_name = "KEY", required_unless_present = "unsigned")]
    sign: Option<PathBuf>,
    /// Make one that is not signed
    #[arg(long, conflicts_with = "sign")]
    unsigned: bool,
    /// In parts of this size, like 2GiB: FILE.000, FILE.001 and so on
    #[arg(long, value_name = "SIZE")]
    parts: Option<String>,
    #[command(flatten)]
    place: Place,
}

/// The bundle, and whose signature is believed.
#[derive(Args)]
pub struct Which {
    /// The bundle; of one in parts the first, or their name without the number
    bundle: PathBuf,
    /// The public key of whoever made it [default: /etc/hearth/bundle.pub, else the package's]
    #[arg(long, value_name = "KEY")]
    key: Option<PathBuf>,
    /// Do not ask who made it; sums are still checked
    #[arg(long, conflicts_with = "key")]
    unsigned: bool,
}

impl Which {
    fn trust(&self) -> Result<Trust, BundleError> {
        match self.unsigned {
            true => Ok(Trust::Anybody),
            false => Trust::of(self.key.as_deref()),
        }
    }
}

#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    which: Which,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Install {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    terms: Accept,
    /// Put the other files of the bundle (package, image, documents) there
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,
    /// Models take the places of others of their names
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    place: Place,
}

impl From<BundleError> for CliError {
    fn from(error: BundleError) -> Self {
        let fix = error.fix();
        let exit = match error {
            BundleError::Store(error) => return error.into(),
            BundleError::Content { .. } | BundleError::Signature { .. } => Exit::Model,
            BundleError::Key { .. } => Exit::Failed,
        };
        CliError::new(exit, error.to_string()).fix(fix)
    }
}

pub fn run(verb: Verb, common: &Common) -> Result<(), CliError> {
    match verb {
        Verb::Create(verb) => create(verb, common),
        Verb::Verify(verb) => verify(verb),
        Verb::Install(verb) => install(verb, common),
        Verb::Key { stem } => {
            let (secret, public) = bundle::generate(&stem)?;
            eprintln!("{} signs; keep it where bundles are made and nowhere else", secret.display());
            eprintln!(
                "{} checks; on every host that installs them: /etc/hearth/bundle.pub",
                public.display()
            );
            Ok(())
        }
    }
}

fn create(verb: Create, common: &Common) -> Result<(), CliError> {
    let parts = match &verb.parts {
        None => None,
        Some(text) => Some(size(text).filter(|size| *size >= 1 << 20).ok_or_else(|| {
            CliError::new(Exit::Usage, format!("--parts is {text:?}")).fix("give a size from 1MiB, like 2GiB")
        })?),
    };
    let store = verb.place.store(common)?;
    let _lock = store.lock_shared()?;
    let contents = Contents { files: verb.files, models: verb.models, key: verb.sign, parts };
    let mut steps = Steps::new(false);
    let (files, about) = bundle::create(&store, &contents, &verb.output, &mut steps)?;
    steps.end();
    for missing in missing(&about) {
        eprintln!("note: {missing}");
    }
    let mut out = std::io::stdout().lock();
    for file in files {
        writeln!(out, "{}", file.display())?;
    }
    Ok(())
}

/// What a site would look for and not find.
fn missing(about: &About) -> Vec<&'static str> {
    let has = |part: &str| about.files.iter().any(|name| name.contains(part));
    let wanted = [
        (has(".deb"), "no Debian package is in it"),
        (has("sbom"), "no bill of materials is in it"),
        (has("NOTICE"), "no licences of third parties are in it (NOTICE)"),
        (!about.models.is_empty(), "no model is in it"),
    ];
    wanted.into_iter().filter(|(there, _)| !there).map(|(_, what)| what).collect()
}

fn verify(verb: Verify) -> Result<(), CliError> {
    let mut steps = Steps::new(false);
    let opened = bundle::verify(&verb.which.bundle, &verb.which.trust()?, &mut steps)?;
    steps.end();
    let mut out = std::io::stdout().lock();
    if verb.json {
        let about = &opened.about;
        let result = serde_json::json!({
            "ok": true, "signed_by": opened.signed_by, "sha256": opened.digest, "bytes": opened.bytes,
            "created": about.created, "hearth": about.hearth, "files": about.files, "models": about.models,
        });
        writeln!(out, "{result}")?;
        return Ok(());
    }
    describe(&opened, &mut out)?;
    Ok(())
}

fn describe(opened: &Opened, out: &mut impl Write) -> std::io::Result<()> {
    let About { created, hearth, files, models, .. } = &opened.about;
    writeln!(out, "signed by\t{}", opened.signed_by)?;
    writeln!(out, "made\t{created} by hearth {hearth}, {}, every sum agrees", Size(opened.bytes))?;
    for file in files {
        writeln!(out, "file\t{file}")?;
    }
    for model in models {
        let production = if model.production == Some(false) { " (NOT for production)" } else { "" };
        let licence = if model.licence.is_empty() { "licence unknown" } else { &model.licence };
        writeln!(out, "model\t{}\t{}\t{licence}{production}", model.name, Size(model.bytes))?;
    }
    Ok(())
}

/// The command line as whoever takes models in.
struct Here<'a> {
    settings: &'a Settings,
    recorder: Recorder,
    accepted: bool,
    replace: bool,
    bundle: String,
    imported: Vec<Imported>,
}

impl Host for Here<'_> {
    fn opened(&mut self, opened: &Opened) -> Result<(), BundleError> {
        eprintln!("signed by {}", opened.signed_by);
        for model in &opened.about.models {
            let production = if model.production == Some(false) { ": NOT FOR PRODUCTION" } else { "" };
            let licence = if model.licence.is_empty() { "unknown" } else { &model.licence };
            eprintln!("model {}: {}, licence {licence}{production}", model.name, Size(model.bytes));
            if free(&model.name).is_err() {
                return Err(StoreError::Name { name: model.name.clone() }.into());
            }
        }
        if !self.accepted && !opened.about.models.is_empty() {
            return Err(StoreError::Licence { place: format!("the models in {}", self.bundle) }.into());
        }
        let event = Event::BundleInstalled {
            name: self.bundle.clone(),
            sha256: opened.digest.clone(),
            signed_by: opened.signed_by.clone(),
        };
        let recorded = Audit::of(self.settings).record(&Who::caller(), &event);
        recorded.map(|_| ()).map_err(|e| StoreError::from(e).into())
    }

    fn request(&self, name: &str, _: &Opened) -> Request {
        Request {
            name: name.to_owned(),
            place: format!("{} in {}", name, self.bundle),
            from: self.bundle.clone(),
            revision: None,
            accepted_by: Who::caller().to_string(),
            leave_out: false,
            replace: self.replace,
            largest: u64::MAX,
        }
    }

    fn record(&self, manifest: &Manifest) -> Result<(), StoreError> {
        self.recorder.imported(manifest)
    }

    fn imported(&mut self, imported: Imported) {
        self.recorder.done();
        self.imported.push(imported);
    }
}

fn install(verb: Install, common: &Common) -> Result<(), CliError> {
    let settings = verb.place.settings(common)?;
    let store = Store::at(&settings.models_dir);
    let bundle = verb.which.bundle.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut steps = Steps::new(false);
    let mut here = Here {
        settings: &settings,
        recorder: Recorder::new(&settings),
        accepted: verb.terms.accept_license,
        replace: verb.replace,
        bundle,
        imported: Vec::new(),
    };
    let trust = verb.which.trust()?;
    let done =
        bundle::install(&verb.which.bundle, &trust, &store, verb.files.as_deref(), &mut here, &mut steps);
    steps.end();
    if let Err(error) = &done {
        here.recorder.failed(&error.to_string());
    }
    for imported in &here.imported {
        let word = if imported.unchanged { "was there already, unchanged" } else { "imported" };
        eprintln!("{} {word}", imported.manifest.name);
    }
    let opened = done?;
    if verb.files.is_none() && !opened.about.files.is_empty() {
        eprintln!(
            "its other files stay in it; --files DIR takes them out: {}",
            opened.about.files.join(", ")
        );
    }
    let mut out = std::io::stdout().lock();
    for imported in &here.imported {
        let manifest = &imported.manifest;
        writeln!(out, "{}\t{}\tsha256:{}", manifest.name, Size(manifest.bytes()), manifest.digest())?;
    }
    Ok(())
}
