//! `hearth serve`: the server, from settings to the end of the drain.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;

use super::load::{self, ModelFlags};
use super::{CliError, Common, Exit};
use crate::access::{Access, FirstKey};
use crate::audit::{Audit, Event, Who};
use crate::config::{ConfigError, GitLab, Layers, Settings};
use crate::duo::Gateway;
use crate::duo::choice::Defaults;
use crate::duo::identity::own::OwnKeys;
use crate::duo::identity::{Bypass, Identity};
use crate::duo::search::{Docs, LibraryError};
use crate::reload::Reload;
use crate::served::Models;
use crate::server::{self, Health, Limits, Metrics, Server, Shared};

#[derive(Args, Clone)]
pub struct Serve {
    #[command(flatten)]
    model: ModelFlags,
    /// Address of the API [default: 127.0.0.1:5052]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Address of the metrics; empty: none [default: 127.0.0.1:8082]
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<String>,
    /// The GitLab whose requests are served, as this host reaches it
    #[arg(long, value_name = "URL")]
    gitlab: Option<String>,
    /// Where the keys are kept
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Seconds that requests in flight have at shutdown [default: 30]
    #[arg(long, value_name = "SECONDS")]
    drain: Option<String>,
}

impl Serve {
    /// The settings as they are now, under these flags.
    fn layers(&self, common: &Common) -> Result<Layers, ConfigError> {
        let mut layers = common.layers()?;
        let directory = self.state_dir.as_ref().map(|d| d.display().to_string());
        for (flag, name, value) in [
            ("--listen", "server.listen", &self.listen),
            ("--metrics", "server.metrics", &self.metrics),
            ("--gitlab", "gitlab.url", &self.gitlab),
            ("--state-dir", "server.state_dir", &directory),
            ("--drain", "server.drain", &self.drain),
        ] {
            if let Some(value) = value {
                layers.flag(flag, name, value.clone())?;
            }
        }
        Ok(layers)
    }
}

pub fn run(verb: Serve, common: &Common) -> Result<(), CliError> {
    let mut layers = verb.layers(common)?;
    verb.model.apply(&mut layers)?;
    let settings = Settings::of(&layers)?;
    load::check_names(&settings)?;
    log(&settings);
    let (key, made) = FirstKey::of(&settings)?;
    let access = Arc::new(Access::open(key.clone(), &settings.state_dir, settings.quotas)?);
    let audit = Audit::at(&settings.state_dir);
    if !layers.unused().is_empty() {
        let names = layers.unused().join(", ");
        tracing::info!("variables of GitLab's own gateway that are not used here: {names}");
    }
    if let Some((warning, fix)) = settings.gitlab.warning() {
        tracing::warn!("{warning}; {fix}");
    }
    let identity = identity(&settings)?;
    let runtime = super::runtime()?;
    runtime.block_on(async {
        tokio::spawn(identity.keep());
        // A port in use is told before minutes of reading, not after.
        for address in [Some(settings.listen), settings.metrics].into_iter().flatten() {
            drop(tokio::net::TcpListener::bind(address).await.map_err(|e| port(address, &e))?);
        }
        let docs = settings.docs.clone().map(|path| spawn_blocking(move || Docs::read(&path)));
        let models = load::all(&settings)?;
        let docs = match docs {
            Some(read) => read.await.expect("bug: reading documentation panicked").map_err(documentation)?,
            None => Docs::default(),
        };
        let models = Models::new(models).with_upstreams(load::upstreams(&settings)?);
        let metrics = Metrics::default();
        let shared = Shared {
            duo: Arc::new(Gateway {
                identity,
                models: models.clone(),
                defaults: Defaults::new(settings.defaults.each_ref().map(|(_, name, _)| name.as_str())),
                figures: metrics.duo.clone(),
                docs,
                streaming: settings.streaming,
                patience: settings.patience,
            }),
            models,
            access: access.clone(),
            health: Arc::new(Health::default()),
            metrics,
        };
        let limits = Limits {
            connections: settings.connections,
            headers: settings.header_timeout,
            body: settings.body_timeout,
            drain: settings.drain,
            ..Limits::default()
        };
        let names = shared.models.names().join(", ");
        let notices: Vec<String> = shared.models.iter().filter_map(|m| m.notice.clone()).collect();
        if let Some(address) = settings.metrics {
            let bound = server::metrics::serve(address, &shared).await;
            let bound = bound.map_err(|e| port(address, &e))?;
            eprintln!("metrics: http://{bound}/metrics");
        }
        let failed = |e: std::io::Error| port(settings.listen, &e);
        let server = Server::bind(settings.listen, limits, shared).await.map_err(failed)?;
        let address = server.address().map_err(failed)?;
        let reload = reload(verb, common).part("keys and limits", {
            let access = access.clone();
            move |settings: &Settings| access.prepare(settings)
        });
        tokio::spawn(reload_on_hangup(Arc::new(reload.audited(audit.clone())))?);
        tokio::spawn(access.clone().keep());
        let version = env!("CARGO_PKG_VERSION");
        audit.note(&Who::Server, &Event::Started { version, listen: address.to_string() });
        greet(&settings, &names, &notices, made.then(|| key.expose()), address);
        server.serve(stopped()?).await;
        access.close();
        audit.note(&Who::Server, &Event::Stopped { version });
        tracing::info!("stopped");
        Ok(())
    })
}

/// What SIGHUP changes. The models stay as they are: they are read at the start.
fn reload(verb: Serve, common: &Common) -> Reload {
    let common = common.clone();
    Reload::new(Box::new(move || Settings::of(&verb.layers(&common)?)))
}

/// Reloads at every SIGHUP, for as long as the process runs.
fn reload_on_hangup(reload: Arc<Reload>) -> Result<impl Future<Output = ()>, CliError> {
    let mut hangups = caught(SignalKind::hangup())?;
    Ok(async move {
        while hangups.recv().await.is_some() {
            let reload = reload.clone();
            match spawn_blocking(move || reload.run()).await {
                Ok(Ok(parts)) => tracing::info!("reloaded: {}", parts.join(", ")),
                Ok(Err(e)) => {
                    tracing::error!("not reloaded, nothing has changed: {e} ({}); {}", e.origin, e.fix)
                }
                Err(_) => {
                    tracing::error!("not reloaded: the reload broke; what it had not swapped is as before")
                }
            }
        }
    })
}

fn caught(kind: SignalKind) -> Result<tokio::signal::unix::Signal, CliError> {
    signal(kind).map_err(|e| CliError::new(Exit::Failed, format!("signals cannot be caught: {e}")))
}

/// Who may call the GitLab dialect. The key for editors' tokens is made only where there is a GitLab to ask for them.
fn identity(settings: &Settings) -> Result<Identity, CliError> {
    let GitLab { rules, signing_key, validation_key } = settings.gitlab.clone();
    let own = match rules.gitlab.is_some() || rules.bypass != Bypass::Off || signing_key.is_some() {
        true => Some(OwnKeys::open(&settings.state_dir, signing_key, validation_key)?),
        false => None,
    };
    Identity::new(rules, own).map_err(|e| {
        let fix = "correct gitlab.ca_file, or install the system's certificates (package ca-certificates)";
        CliError::new(Exit::Config, e.to_string()).fix(fix)
    })
}

fn port(address: std::net::SocketAddr, error: &std::io::Error) -> CliError {
    CliError::new(Exit::Port, format!("cannot listen on {address}: {error}"))
        .fix("stop what listens there, or choose another address: --listen, --metrics")
}

fn documentation(error: LibraryError) -> CliError {
    CliError::new(Exit::Config, format!("the documentation cannot be searched: {error}"))
        .fix("let duo.docs be a directory of Markdown files, or leave it out")
}

fn log(settings: &Settings) {
    let filter = tracing_subscriber::EnvFilter::new(format!("warn,hearth={}", settings.log_level));
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // Fails only when a subscriber is set already, as in tests that run in one process.
    let _ = match settings.log_format.as_str() {
        "json" => builder.json().try_init(),
        _ => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
}

/// What a person at a terminal wants to know. The key is shown once, when it was made, and only to a terminal.
fn greet(
    settings: &Settings,
    names: &str,
    notices: &[String],
    key: Option<&str>,
    address: std::net::SocketAddr,
) {
    eprintln!("hearth {} serves {names} at http://{address}", env!("CARGO_PKG_VERSION"));
    for notice in notices {
        eprintln!("  {notice}");
    }
    match &settings.gitlab.rules.gitlab {
        Some(url) => eprintln!("  GitLab: {url}"),
        None => eprintln!("  GitLab: none; set gitlab.url to let one in"),
    }
    let place = settings.state_dir.join("key");
    match key {
        Some(key) if std::io::stderr().is_terminal() => {
            eprintln!("  key {key}");
            eprintln!("  shown once; it is kept in {}", place.display());
        }
        _ if settings.key.is_some() => eprintln!("  key: the configured one"),
        _ => eprintln!("  key: in {}", place.display()),
    }
}

/// Resolves on SIGTERM or SIGINT. A second one ends the process at once.
fn stopped() -> Result<impl Future<Output = ()>, CliError> {
    let (mut terminate, mut interrupt) = (caught(SignalKind::terminate())?, caught(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            std::process::exit(Exit::Interrupted as i32);
        });
    })
}
