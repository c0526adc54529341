//! `hearth serve`: the server, from settings to the end of the drain.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use tokio::signal::unix::SignalKind;
use tokio::task::spawn_blocking;

use super::flags::ModelFlags;
use super::load;
use super::stop::{Stop, caught};
use super::{CliError, Common, Exit, doors, sockets};
use crate::access::{Access, FirstKey};
use crate::admin::{Addresses, Admin};
use crate::audit::{Audit, Event, Who};
use crate::config::{ConfigError, GitLab, Layers, Origin, Settings, layers, names};
use crate::duo::Gateway;
use crate::duo::choice::Defaults;
use crate::duo::identity::own::OwnKeys;
use crate::duo::identity::{Bypass, Identity};
use crate::duo::search::{Docs, LibraryError};
use crate::gpu::sensors::Gpus;
use crate::log::{self, Format};
use crate::reload::Reload;
use crate::served::Models;
use crate::server::tls::{Material, Tls};
use crate::server::{self, Door, Health, Listener, Metrics, Server, Shared};
use crate::supervisor;

#[derive(Args, Clone)]
pub struct Serve {
    #[command(flatten)]
    model: ModelFlags,
    /// Addresses of the API, with commas between them [default: 127.0.0.1:5052]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Address of the metrics; empty: none [default: 127.0.0.1:8082]
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<String>,
    /// Address of the console, on loopback; empty: none [default: 127.0.0.1:5053]
    #[arg(long, value_name = "ADDRESS:PORT")]
    console: Option<String>,
    /// The GitLab whose requests are served, as this host reaches it
    #[arg(long, value_name = "URL")]
    gitlab: Option<String>,
    /// Where the keys are kept
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Seconds that requests in flight have at shutdown [default: 30]
    #[arg(long, value_name = "SECONDS")]
    drain: Option<String>,
    /// Ends with the process that started it; for servers that `hearth bench` starts
    #[arg(long, hide = true)]
    with_parent: bool,
}

impl Serve {
    /// The settings as they are now, under these flags.
    fn layers(&self, common: &Common) -> Result<Layers, ConfigError> {
        let mut layers = common.layers()?;
        let directory = self.state_dir.as_ref().map(|d| d.display().to_string());
        for (flag, name, value) in [
            ("--listen", "server.listen", &self.listen),
            ("--metrics", "server.metrics", &self.metrics),
            ("--console", "console.listen", &self.console),
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
    if verb.with_parent {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)
            .map_err(|e| CliError::new(Exit::Failed, format!("the parent's end cannot be watched: {e}")))?;
    }
    let mut layers = verb.layers(common)?;
    verb.model.apply(&mut layers)?;
    let settings = Settings::of(&layers)?;
    names::check(&settings)?;
    log::start(&settings.log_level, if settings.log_format == "json" { Format::Json } else { Format::Text });
    let mut passed = sockets::passed(&settings)?;
    let tls = settings.front.tls.as_ref().map(Material::read).transpose()?.map(Tls::new);
    let (key, made) = FirstKey::of(&settings)?;
    let access = Arc::new(Access::open(key.clone(), &settings.state_dir, settings.quotas)?);
    let audit = Audit::of(&settings);
    if !layers.unused().is_empty() {
        let names = layers.unused().join(", ");
        tracing::info!("variables of GitLab's own gateway that are not used here: {names}");
    }
    if let Some((warning, fix)) = settings.gitlab.warning() {
        tracing::warn!("{warning}; {fix}");
    }
    let identity = identity(&settings)?;
    sockets::open_many();
    let runtime = super::runtime()?;
    runtime.block_on(async {
        tokio::spawn(identity.keep());
        // A port in use is told before minutes of reading, not after.
        let own = settings.listen.iter().filter(|_| passed.api.is_empty());
        let kept: Vec<_> = passed.kept.iter().filter_map(|socket| socket.local_addr().ok()).collect();
        for address in own.copied().chain(settings.metrics.filter(|_| passed.metrics.is_none())) {
            if !kept.contains(&address) {
                drop(sockets::bind(address).await?);
            }
        }
        let docs = settings.docs.clone().map(|path| spawn_blocking(move || Docs::read(&path)));
        let begin = Instant::now();
        let models = load::all(&settings)?;
        let reading = begin.elapsed();
        let docs = match docs {
            Some(read) => read.await.expect("bug: reading documentation panicked").map_err(documentation)?,
            None => Docs::default(),
        };
        let models = Models::new(models).with_upstreams(load::upstreams(&settings)?);
        let metrics = Metrics::default();
        metrics.loaded(reading);
        if settings.device != "cpu" {
            metrics.watch(Gpus::watch());
        }
        if settings.vllm_metrics {
            metrics.as_vllm();
        }
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
        let names = shared.models.names().join(", ");
        let notices: Vec<String> = shared.models.iter().filter_map(|m| m.notice.clone()).collect();
        shared.health.expect_steps_within(settings.front.step);
        let mut watched = Addresses::default();
        let metrics = Door::new(settings.front.metrics.clone(), None);
        if let Some(listener) = sockets::for_metrics(&settings, passed.metrics.take()).await? {
            let open = settings.metrics_open(listener.address().map_err(sockets::unusable)?);
            let bound = server::metrics::serve_on(listener, metrics.clone(), &shared, open);
            let bound = bound.map_err(sockets::unusable)?;
            eprintln!("metrics: http://{bound}/metrics");
            watched.metrics = Some(bound.to_string());
        }
        let door = Door::new(settings.front.addresses.clone(), tls);
        let listeners = sockets::for_api(&settings, passed).await?;
        let addresses = listeners
            .iter()
            .map(Listener::address)
            .collect::<Result<Vec<_>, _>>()
            .map_err(sockets::unusable)?;
        let Stop { first, again } = Stop::caught()?;
        let server = Server::on(listeners, door.clone(), settings.front.limits, shared.clone());
        let serving = format!("serving {names}");
        let reload = reload(verb, common, door, metrics).part("keys and limits", {
            let access = access.clone();
            move |settings: &Settings| access.prepare(settings)
        });
        watched.api = urls(&settings, &addresses);
        let reload = reload.audited(audit.clone());
        let admin = doors::open(shared.clone(), &settings, &layers, reload, watched).await?;
        tokio::spawn(reload_on_hangup(admin, serving.clone())?);
        tokio::spawn(access.clone().keep());
        let version = env!("CARGO_PKG_VERSION");
        let listen = addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ");
        audit.note(&Who::Server, &Event::Started { version, listen });
        greet(&settings, &names, &notices, made.then(|| key.expose()), &addresses);
        tokio::spawn(supervisor::watchdog(shared));
        supervisor::ready(&serving);
        let limits = settings.front.limits;
        let first = async {
            first.await;
            supervisor::stopping(limits.drain_delay + limits.drain);
        };
        server.serve_until(first, again).await;
        access.close();
        audit.note(&Who::Server, &Event::Stopped { version });
        tracing::info!("stopped");
        Ok(())
    })
}

/// What SIGHUP changes. The models stay as they are: they are read at the start.
fn reload(verb: Serve, common: &Common, door: Door, metrics: Door) -> Reload {
    let common = common.clone();
    let read = Box::new(move || Settings::of(&verb.layers(&common)?));
    let reload = Reload::new(read).part("addresses", {
        let (api, metrics) = (door.addresses.clone(), metrics.addresses);
        move |settings| {
            let (api, metrics) = (api.clone(), metrics.clone());
            let front = settings.front.clone();
            Ok(Box::new(move || {
                api.store(Arc::new(front.addresses));
                metrics.store(Arc::new(front.metrics));
            }))
        }
    });
    reload.part("certificates", move |settings| match (&door.tls, &settings.front.tls) {
        (Some(tls), Some(files)) => {
            let (tls, material) = (tls.clone(), Material::read(files)?);
            Ok(Box::new(move || tls.swap(material)))
        }
        (None, None) => Ok(Box::new(|| ())),
        (served, _) => {
            let (now, word) = if served.is_some() { ("with", "without") } else { ("without", "with") };
            let what =
                format!("the settings are {word} server.tls_cert, and the server was started {now} it");
            let fix = "restart the server to turn TLS on or off";
            Err(ConfigError::new(&Origin::File(layers::FILE.into()), what, fix))
        }
    })
}

/// Reloads at every SIGHUP, for as long as the process runs.
fn reload_on_hangup(admin: Arc<Admin>, serving: String) -> Result<impl Future<Output = ()>, CliError> {
    let mut hangups = caught(SignalKind::hangup())?;
    Ok(async move {
        while hangups.recv().await.is_some() {
            let admin = admin.clone();
            supervisor::reloading();
            // The admin's log line says what came of it.
            if spawn_blocking(move || admin.reload(&Who::Signal).is_ok()).await.is_err() {
                tracing::error!("not reloaded: the reload broke; what it had not swapped is as before");
            }
            supervisor::ready(&serving);
        }
    })
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

fn documentation(error: LibraryError) -> CliError {
    CliError::new(Exit::Config, format!("the documentation cannot be searched: {error}"))
        .fix("let duo.docs be a directory of Markdown files, or leave it out")
}

/// Where the API is.
fn urls(settings: &Settings, addresses: &[SocketAddr]) -> String {
    let scheme = if settings.front.tls.is_some() { "https" } else { "http" };
    let urls: Vec<String> = addresses.iter().map(|address| format!("{scheme}://{address}")).collect();
    urls.join(", ")
}

/// What a person at a terminal wants to know. The key is shown once, when it was made, and only to a terminal.
fn greet(settings: &Settings, names: &str, notices: &[String], key: Option<&str>, addresses: &[SocketAddr]) {
    eprintln!("hearth {} serves {names} at {}", env!("CARGO_PKG_VERSION"), urls(settings, addresses));
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
