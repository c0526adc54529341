//! `hearth models pull`: a checkpoint from the hub into the store, on the connected side of an air gap.
//!
//! The only place that names the hub's client, and no other verb leads here: the server holds no downloader, and a binary
//! that was built without the feature `pull` has none at all. The client says what a repository holds and where; the bytes
//! are fetched here, because its cache makes paths of what the hub says of a file.

mod files;

use std::fmt::Display;
use std::path::PathBuf;

use clap::Args;
use hearth_models::catalog;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
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
use files::Files;

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
    if let Some(name) = told.siblings.iter().map(|file| &file.rfilename).find(|name| leads_elsewhere(name)) {
        let what = format!(
            "the hub says that {id} holds a file {:?}, a name that leads out of it",
            store::brief(name)
        );
        return Err(CliError::new(Exit::Model, what).fix(MISTRUSTED));
    }
    steps.note(&format!("{id}, revision {}", told.sha));
    // From here on the commit and not the branch, which may move.
    let at_commit = Repo::with_revision(id.to_owned(), RepoType::Model, told.sha.clone());
    let folder = downloads.join(at_commit.folder_name());
    let files =
        Files::new(api.repo(at_commit), folder.join(&told.sha), verb.endpoint.clone(), id.to_owned())?;
    let wanted =
        told.siblings.iter().map(|file| file.rfilename.as_str()).filter(|name| store::is_wanted(name));
    let (weights, texts): (Vec<&str>, Vec<&str>) = wanted.partition(|name| name.ends_with(".safetensors"));
    if weights.is_empty() {
        let what = format!("{id} has no safetensors files");
        return Err(CliError::new(Exit::Model, what).fix("take a revision that has them: --revision"));
    }
    if !texts.contains(&"config.json") {
        return Err(
            CliError::new(Exit::Model, format!("{id} has no config.json")).fix("take another revision")
        );
    }
    // The small files first: the licence is among them.
    texts.iter().try_for_each(|name| files.get(name, &mut steps))?;
    let source = Source::Directory(files.directory.clone());
    show(&licence::before(&source, &[own, &name])?, &mut steps);
    if !verb.terms.accept_license {
        return Err(StoreError::Licence { place: id.to_owned() }.into());
    }
    weights.iter().try_for_each(|name| files.get(name, &mut steps))?;
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

/// Whether a name of a file is a path to somewhere else, or hides what it is. Files in folders below are not wanted, and
/// honest.
fn leads_elsewhere(name: &str) -> bool {
    name.is_empty()
        || name.starts_with('/')
        || name.contains(['\\', '\0'])
        || name.chars().any(char::is_control)
        || name.split('/').any(|part| part == "..")
}

fn token() -> Option<String> {
    std::env::var(TOKEN).ok().filter(|token| !token.is_empty())
}

fn api(endpoint: &str, downloads: PathBuf) -> Result<Api, ApiError> {
    // The client takes the provider of the process. Fails only when there is one already, which is then the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    ApiBuilder::from_cache(Cache::new(downloads))
        .with_endpoint(endpoint.trim_end_matches('/').to_owned())
        .with_token(token())
        .with_retries(RETRIES)
        .with_progress(false)
        .build()
}

/// What went wrong, without the token, which no error of the client holds.
fn failed(id: &str, endpoint: &str, error: &dyn Display) -> CliError {
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
