//! Settings: defaults < file < conf.d < environment < flags, and where each value came from.
//!
//! Every setting is a row of [`KEYS`]; a name that is in no row is an error with the nearest name. Values are kept as
//! text with their origin until they are read as what they are.

mod aliases;
pub mod entries;
pub mod front;
pub mod gitlab;
pub mod keys;
pub mod layers;
pub mod names;
pub mod schema;
pub mod state;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::access::{Amounts, Quotas};
use crate::audit::Rotation;
pub use entries::{ModelEntry, UpstreamEntry};
pub use front::Front;
pub use gitlab::GitLab;
pub use keys::{KEYS, Key, Kind};
pub use layers::{Layers, Origin};

use crate::store::{How, Store};

/// What is wrong with the settings: where, what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct ConfigError {
    pub origin: String,
    pub what: String,
    pub fix: String,
}

impl ConfigError {
    pub fn new(origin: &Origin, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { origin: origin.to_string(), what: what.into(), fix: fix.into() }
    }
}

fn state_dir(layers: &Layers) -> PathBuf {
    match layers.text("server.state_dir") {
        "" => state::default_directory(),
        path => path.into(),
    }
}

/// Where imported models are.
pub fn models_dir(layers: &Layers) -> PathBuf {
    match layers.text("models.dir") {
        "" => state_dir(layers).join("models"),
        path => path.into(),
    }
}

/// The settings of a server, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// At least one.
    pub listen: Vec<SocketAddr>,
    /// `None`: no metrics.
    pub metrics: Option<SocketAddr>,
    pub front: Front,
    /// Whether metrics ask for a key; `None`: by their address.
    pub metrics_key: Option<bool>,
    pub state_dir: PathBuf,
    pub key: Option<state::Secret>,
    pub quotas: Quotas,
    pub device: String,
    /// 0: every core that the process may use.
    pub threads: usize,
    pub step_tokens: u32,
    /// On a GPU: the same bytes whatever else runs.
    pub strict: bool,
    pub sequences: u32,
    pub queue_requests: u32,
    pub queue_tokens: u64,
    pub prefix_cache: bool,
    pub log_level: String,
    pub log_format: String,
    /// `None`: in the runtime or the state directory.
    pub admin_socket: Option<PathBuf>,
    /// When a file of the audit log is closed, and how many are kept.
    pub audit: Rotation,
    /// `None`: no console.
    pub console: Option<SocketAddr>,
    pub console_hosts: Vec<String>,
    /// Whether figures are told under vLLM's names too.
    pub vllm_metrics: bool,
    pub gitlab: GitLab,
    /// Whether answers to GitLab are streamed where it asks for that.
    pub streaming: bool,
    pub models: Vec<ModelEntry>,
    pub upstreams: Vec<UpstreamEntry>,
    /// The default models of completion, generation and chat; empty: chosen by what models can do.
    pub defaults: [(&'static str, String, Origin); 3],
    /// How long GitLab waits for chat.
    pub patience: Duration,
    /// Where the documentation is that GitLab's chat can search.
    pub docs: Option<PathBuf>,
    /// Where imported models are.
    pub models_dir: PathBuf,
    /// How much of them is compared with their sums when they are loaded.
    pub verify: How,
}

impl Settings {
    pub fn of(layers: &Layers) -> Result<Self, ConfigError> {
        let seconds = |name| layers.number(name).map(Duration::from_secs);
        let state_dir = state_dir(layers);
        let models_dir = models_dir(layers);
        let store = Store::at(&models_dir);
        Ok(Self {
            listen: front::listen(layers),
            metrics: match layers.text("server.metrics") {
                "" => None,
                _ => Some(layers.parse("server.metrics")?),
            },
            front: Front::of(layers)?,
            metrics_key: match layers.text("server.metrics_key") {
                "on" => Some(true),
                "off" => Some(false),
                _ => None,
            },
            state_dir,
            key: match layers.text("server.key") {
                "" => None,
                key => Some(state::Secret::checked(key, layers.origin("server.key"))?),
            },
            quotas: quotas(layers)?,
            device: layers.text("engine.device").to_owned(),
            threads: layers.number("engine.threads")? as usize,
            step_tokens: layers.number("engine.step_tokens")? as u32,
            strict: layers.text("engine.strict") == "true",
            sequences: layers.number("engine.sequences")? as u32,
            queue_requests: layers.number("engine.queue_requests")? as u32,
            queue_tokens: layers.number("engine.queue_tokens")?,
            prefix_cache: layers.text("engine.prefix_cache") == "true",
            log_level: layers.text("log.level").to_owned(),
            log_format: layers.text("log.format").to_owned(),
            admin_socket: Some(layers.text("admin.socket"))
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            audit: Rotation {
                max_size: keys::size(layers.text("audit.max_size")).expect("bug: checked by its row"),
                keep: layers.number("audit.keep")? as usize,
            },
            console: console(layers)?,
            console_hosts: layers
                .text("console.hosts")
                .split(',')
                .map(|name| name.trim().to_ascii_lowercase())
                .filter(|name| !name.is_empty())
                .collect(),
            vllm_metrics: layers.text("metrics.compat") == "vllm",
            gitlab: GitLab::of(layers)?,
            streaming: layers.text("duo.streaming") == "true",
            models: layers.models().iter().map(|model| model.found_in(&store)).collect(),
            upstreams: layers.upstreams().to_vec(),
            defaults: ["duo.completion_model", "duo.generation_model", "duo.chat_model"]
                .map(|name| (name, layers.text(name).to_owned(), layers.origin(name).clone())),
            patience: seconds("duo.patience")?,
            docs: Some(layers.text("duo.docs")).filter(|path| !path.is_empty()).map(PathBuf::from),
            models_dir,
            verify: How::parse(layers.text("models.verify")).expect("bug: checked by its row"),
        })
    }
}

impl Settings {
    /// Whether metrics at this address are open to everybody who reaches it.
    pub fn metrics_open(&self, address: SocketAddr) -> bool {
        !self.metrics_key.unwrap_or(!address.ip().is_loopback())
    }
}

/// `[limits]`: who may ask how much.
fn quotas(layers: &Layers) -> Result<Quotas, ConfigError> {
    let number = |name| layers.number(name).map(|number| number as u32);
    Ok(Quotas {
        keys: Amounts {
            requests: number("limits.key_requests")?,
            tokens: number("limits.key_tokens")?,
            concurrent: number("limits.key_concurrent")?,
        },
        users: Amounts {
            requests: number("limits.user_requests")?,
            tokens: 0,
            concurrent: number("limits.user_concurrent")?,
        },
        failures: number("limits.failures")?,
    })
}

/// The console speaks plain HTTP, so it is for this machine alone; from elsewhere one comes through a tunnel.
fn console(layers: &Layers) -> Result<Option<SocketAddr>, ConfigError> {
    if layers.text("console.listen").is_empty() {
        return Ok(None);
    }
    let address: SocketAddr = layers.parse("console.listen")?;
    if !address.ip().is_loopback() {
        let what = format!(
            "`console.listen` is {address}, which others can reach; the console is for loopback only"
        );
        let port = address.port();
        let fix = format!("set 127.0.0.1:{port}, and reach it by `ssh -L {port}:127.0.0.1:{port} HOST`");
        return Err(ConfigError::new(layers.origin("console.listen"), what, fix));
    }
    Ok(Some(address))
}
