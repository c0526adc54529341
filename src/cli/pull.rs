//! `hearth models pull`: a checkpoint from the hub into the store, on the connected side of an air gap.
//!
//! The only place that names the hub's client, and no other verb leads here: the server holds no downloader, and a binary
//! that was built without the feature `pull` has none at all.

use std::path::{Path, PathBuf};

use clap::Args;
use hearth_models::catalog;
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use tokio_rustls::rustls;
use url::{Host, Url};

use super::models::Place;
use super::models::catalog::find as named;
use super::models::import::{Accept, free, import, show, tell};
use super::steps::Steps;
use super::{CliError, Common, Exit};
use crate::audit::Who;
use crate::store::{self, Request, Source, StoreError, Watch, licence};

#[derive(Args)]
pub struct Pull {
    /// A checkpoint of the catalogue, by id or name, or any other as PUBLISHER/MODEL
    #[arg(value_name = "ID")]
    id: String,
    /// A branch, a tag or a commit [default: the catalogue's]
    #[arg(long)]
    revision: Option<String>,
    /// What to call it [default: the catalogue's name, else the model's]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    terms: Accept,
    /// The hub, or a mirror of it
    #[arg(long, value_name = "URL", env = "HF_ENDPOINT", default_value = "https://huggingface.co")]
    endpoint: String,
    /// Keep what was downloaded beside the store
    #[arg(long)]
    keep: bool,
    /// Progress and result as JSON, one object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// A token for checkpoints that want an agreement.
const TOKEN: &str = "HF_TOKEN";
/// Attempts at a file that breaks off; each goes on where the one before ended.
const RETRIES: usize = 5;

const MISTRUSTED: &str =
    "do not use this hub: pull from https://huggingface.co or from a mirror that you trust";

pub fn run(verb: Pull, common: &Common) -> Result<(), CliError> {
    // A name without its publisher can only be one of the catalogue.
    let known = match verb.id.contains('/') {
        true => catalog::find(&verb.id),
        false => Some(named(&verb.id)?),
    };
    let id = known.map_or(verb.id.as_str(), |entry| entry.id.as_str());
    if id.split('/').count() != 2 || !id.split('/').all(store::flat) {
        let what = format!("{id:?} is neither in the catalogue nor PUBLISHER/MODEL");
        return Err(CliError::new(Exit::Usage, what).fix("`hearth models catalog` names what is known"));
    }
    encrypted(&verb.endpoint)?;
    let mut steps = Steps::new(verb.json);
    if let Some((entry, why)) = known.and_then(|entry| Some((entry, entry.not_served.as_ref()?))) {
        let what = format!("{} is not served by this version", entry.id);
        return Err(CliError::new(Exit::Model, what).fix(why.clone()));
    }
    let own = id.rsplit('/').next().unwrap_or(id);
    let name = verb.name.clone().unwrap_or_else(|| known.map_or(own, |entry| &entry.name).to_owned());
    free(&name)?;
    let settings = verb.place.settings(common)?;
    let downloads = settings.models_dir.join(".hub");
    std::fs::create_dir_all(&downloads).map_err(StoreError::io(&downloads, "it cannot be made"))?;
    let asked = verb.revision.as_deref().or(known.map(|entry| entry.revision.as_str())).unwrap_or("main");

    let api = api(&verb.endpoint, downloads.clone()).map_err(|e| failed(id, &verb.endpoint, &e))?;
    let told = api.repo(Repo::with_revision(id.to_owned(), RepoType::Model, asked.to_owned())).info();
    let told = told.map_err(|e| failed(id, &verb.endpoint, &e))?;
    if !is_commit(&told.sha) {
        let what =
            format!("{} is not a commit, and the hub says that {id} is at it", store::brief(&told.sha));
        return Err(CliError::new(Exit::Model, what).fix(MISTRUSTED));
    }
    steps.note(&format!("{id}, revision {}", told.sha));
    // From here on the commit and not the branch, which may move.
    let at_commit = Repo::with_revision(id.to_owned(), RepoType::Model, told.sha.clone());
    let repo = api.repo(at_commit.clone());
    let wanted =
        told.siblings.iter().map(|file| file.rfilename.as_str()).filter(|name| store::is_wanted(name));
    let (weights, texts): (Vec<&str>, Vec<&str>) = wanted.partition(|name| name.ends_with(".safetensors"));
    if weights.is_empty() {
        let what = format!("{id} has no safetensors files");
        return Err(CliError::new(Exit::Model, what).fix("take a revision that has them: --revision"));
    }
    let fetch = |names: &[&str], steps: &mut Steps| -> Result<Option<PathBuf>, CliError> {
        let mut directory = None;
        for name in names {
            let path = get(&repo, name, steps).map_err(|e| failed(id, &verb.endpoint, &e))?;
            below(&path, &downloads)?;
            directory = path.parent().map(PathBuf::from);
        }
        Ok(directory)
    };
    // The small files first: the licence is among them.
    let directory = fetch(&texts, &mut steps)?;
    let Some(directory) = directory else {
        return Err(
            CliError::new(Exit::Model, format!("{id} has no config.json")).fix("take another revision")
        );
    };
    let source = Source::Directory(directory.clone());
    show(&licence::before(&source, &[own, &name])?, &mut steps);
    if !verb.terms.accept_license {
        return Err(StoreError::Licence { place: id.to_owned() }.into());
    }
    fetch(&weights, &mut steps)?;
    let request = Request {
        name,
        place: id.to_owned(),
        from: own.to_owned(),
        revision: Some(told.sha),
        accepted_by: Who::caller().to_string(),
        leave_out: false,
        replace: false,
        largest: u64::MAX,
    };
    let imported = import(&settings, &source, request, &mut steps)?;
    if !verb.keep {
        let folder = downloads.join(at_commit.folder_name());
        std::fs::remove_dir_all(&folder).map_err(StoreError::io(&folder, "it cannot be removed"))?;
    }
    tell(&imported, &mut steps, verb.json)
}

/// The token goes to the hub, and what comes back is believed.
fn encrypted(endpoint: &str) -> Result<(), CliError> {
    let url = Url::parse(endpoint).map_err(|e| {
        CliError::new(Exit::Usage, format!("--endpoint is no URL: {e}")).fix("write it as https://HOST")
    })?;
    let here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    match (url.scheme(), here) {
        ("https", _) | ("http", true) => Ok(()),
        _ => {
            let what = format!("--endpoint is not https: {TOKEN} and the checkpoint would pass in the clear");
            Err(CliError::new(Exit::Usage, what)
                .fix("an https:// address; http:// is for this machine alone"))
        }
    }
}

/// The client makes it a part of paths.
fn is_commit(sha: &str) -> bool {
    sha.len() == 40 && sha.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Paths are made of what the hub says of its files, too: one that leads elsewhere is not taken.
fn below(path: &Path, downloads: &Path) -> Result<(), CliError> {
    let real = |path: &Path| path.canonicalize().map_err(StoreError::io(path, "it cannot be found"));
    match real(path)?.starts_with(real(downloads)?) {
        true => Ok(()),
        false => {
            let what = "what the hub says of a file leads out of the directory of downloads";
            Err(CliError::new(Exit::Model, what).at(path.display().to_string()).fix(MISTRUSTED))
        }
    }
}

fn api(endpoint: &str, downloads: PathBuf) -> Result<Api, ApiError> {
    // The client takes the provider of the process. Fails only when there is one already, which is then the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    ApiBuilder::from_cache(Cache::new(downloads))
        .with_endpoint(endpoint.trim_end_matches('/').to_owned())
        .with_token(std::env::var(TOKEN).ok().filter(|token| !token.is_empty()))
        .with_retries(RETRIES)
        .with_progress(false)
        .build()
}

/// A file, from the cache if it is there whole.
fn get(repo: &ApiRepo, name: &str, steps: &mut Steps) -> Result<PathBuf, ApiError> {
    let path = repo.download_with_progress(name, Stage { steps, done: 0 })?;
    steps.end();
    Ok(path)
}

/// The client's progress as a stage.
struct Stage<'a> {
    steps: &'a mut Steps,
    done: u64,
}

impl Progress for Stage<'_> {
    fn init(&mut self, size: usize, name: &str) {
        self.done = 0;
        self.steps.begin(name, Some(size as u64));
    }

    fn update(&mut self, bytes: usize) {
        self.done += bytes as u64;
        self.steps.at(self.done);
    }

    fn finish(&mut self) {}
}

/// What went wrong, without the token, which no error of the client holds.
fn failed(id: &str, endpoint: &str, error: &ApiError) -> CliError {
    let text = error.to_string();
    let status = |code: &str| text.contains(&format!("http status: {code}"));
    let (exit, fix) = if status("401") || status("403") {
        let agree = format!("agree to its licence at {endpoint}/{id}, make a token there and set {TOKEN}");
        (Exit::Model, agree)
    } else if status("404") {
        (Exit::Model, "check the id and --revision".to_owned())
    } else {
        let fix = "pulling is for a host that reaches the hub (--endpoint for a mirror); elsewhere: hearth models import";
        (Exit::Failed, fix.to_owned())
    };
    CliError::new(exit, format!("{id} cannot be pulled from {endpoint}: {text}")).fix(fix)
}
