//! Whom to ask and what, as flags say it: from the command line to a server that answers.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::session::{Session, interrupted};
use super::unwritten;
use super::values::{positive, share, time};
use crate::bench::client::{Client, ClientError};
use crate::bench::latency::ENOUGH;
use crate::bench::limits::Limits;
use crate::bench::machine::Machine;
use crate::bench::own::Own;
use crate::bench::profile::{BYTES_PER_TOKEN, Profile, Workload};
use crate::bench::result::{Results, Server, keep};
use crate::cli::flags::ModelFlags;
use crate::cli::{CliError, Common, Exit, runtime};
use crate::config::state::Secret;
use crate::config::{Origin, models_dir};
use crate::fit::built_in_papers;
use crate::outbound::Base;
use crate::store::{self, Store};

/// Whom to ask, and what.
#[derive(Args)]
pub struct Asking {
    /// The server's address, like https://hearth.example.com:5052; without one a server of this binary is started
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// A file with the API key for --url; HEARTH_KEY without it
    #[arg(long, value_name = "FILE", requires = "url")]
    key_file: Option<PathBuf>,
    /// Certificates in PEM form that are trusted for --url beside the system's
    #[arg(long, value_name = "FILE", requires = "url")]
    ca_file: Option<PathBuf>,
    #[command(flatten)]
    model: ModelFlags,
    /// Who asks
    #[arg(long, value_enum, default_value = "code-completion")]
    profile: Profile,
    /// Tokens of a prompt on average, instead of the profile's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..1_000_000))]
    prompt_tokens: Option<u32>,
    /// Tokens of an answer on average, instead of the profile's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..100_000))]
    output_tokens: Option<u32>,
    /// Share of the prompts that begin as others do, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share)]
    shared: f64,
    /// Another seed draws other prompts and other times
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Seconds at the beginning that are not counted [default: 5; with --quick 1]
    #[arg(long, value_name = "TIME", value_parser = time)]
    warmup: Option<Duration>,
    /// Counted requests of a run [default: 1000; with --quick 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: Option<u64>,
    /// Show percentiles of few requests too: a look, not a measurement
    #[arg(long)]
    pub quick: bool,
    /// Limit of the p95 of a completion's first token
    #[arg(long, value_name = "MS", default_value_t = Limits::default().completion_first_ms, value_parser = positive)]
    first_ms: f64,
    /// Limit of the p95 of the first token of an answer in a conversation
    #[arg(long, value_name = "MS", default_value_t = Limits::default().chat_first_ms, value_parser = positive)]
    chat_first_ms: f64,
    /// Limit of the p95 of the time per token
    #[arg(long, value_name = "MS", default_value_t = Limits::default().token_ms, value_parser = positive)]
    token_ms: f64,
    /// Print the results as JSON
    #[arg(long)]
    pub json: bool,
    /// Keep the results in a file, for `hearth bench report`
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

impl Asking {
    pub fn limits(&self) -> Limits {
        let Self { first_ms, chat_first_ms, token_ms, .. } = *self;
        Limits { completion_first_ms: first_ms, chat_first_ms, token_ms }
    }

    pub fn warmup(&self) -> Duration {
        self.warmup.unwrap_or(Duration::from_secs(if self.quick { 1 } else { 5 }))
    }

    /// Counted requests of a run, where nothing else says when it ends.
    pub fn count(&self) -> u64 {
        self.requests.unwrap_or(if self.quick { 100 } else { ENOUGH })
    }

    fn workload(&self) -> Workload {
        Workload {
            profile: self.profile,
            prompt_tokens: self.prompt_tokens,
            output_tokens: self.output_tokens,
            shared: self.shared,
            seed: self.seed,
            fills: true,
            whole_answers: true,
            context: None,
            bytes_per_token: BYTES_PER_TOKEN,
        }
    }

    /// Finds or starts the server. Called on the main thread, with which a server of our own ends.
    pub fn begin(&self, common: &Common) -> Result<Session, CliError> {
        if let Some(path) = &self.output {
            // Told before an hour of measuring, not after.
            keep(&path.with_extension("probe"), b"").map_err(unwritten)?;
            let _ = std::fs::remove_file(path.with_extension("probe"));
        }
        if self.model.named().len() > 1 {
            return Err(
                CliError::new(Exit::Usage, "several models are named").fix("measure them one after another")
            );
        }
        let machine = Machine::this();
        let runtime = runtime()?;
        let stop = runtime.block_on(async { interrupted() })?;
        let mut digest = None;
        let (own, url, key) = match &self.url {
            Some(url) => {
                let url: Base = url.parse().map_err(|e| {
                    CliError::new(Exit::Usage, format!("--url is {url:?}")).fix(format!("it must be {e}"))
                })?;
                (None, url, self.key()?)
            }
            None => {
                let mut layers = common.layers()?;
                self.model.apply(&mut layers)?;
                let entry = layers.models().first();
                digest = entry.and_then(|entry| match &entry.path {
                    Some(path) => store::digest_at(&Store::at(models_dir(&layers)), path).ok(),
                    None => built_in_papers().digest,
                });
                let mut arguments = self.model.arguments();
                if let Some(file) = &common.config {
                    arguments.extend([OsString::from("--config"), file.into()]);
                }
                let own = Own::start(&arguments, &models_dir(&layers), |line| eprintln!("{line}"));
                let own = own.map_err(|e| {
                    CliError::new(Exit::Failed, e.to_string())
                        .fix("see what `hearth serve` with the same flags says")
                })?;
                let (url, key) = (own.url.clone(), own.key.clone());
                (Some(own), url, Some(key))
            }
        };
        let here = own.is_some() || is_here(&url);
        if !url.guarded() && key.is_some() {
            eprintln!("note: {url} is plain http: whoever is on the way can read the key");
        }
        let mut client = Client::new(&url, key.as_ref(), self.ca_file.as_deref()).map_err(|e| unasked(&e))?;
        let mut workload = self.workload();
        let name = self.url.as_ref().and_then(|_| self.model.named().first()).map(String::as_str);
        let mut stopping = stop.clone();
        runtime.block_on(async {
            tokio::select! {
                found = client.find(name, &mut workload) => found.map_err(|e| unasked(&e)),
                _ = stopping.wait_for(|stop| *stop) => {
                    Err(CliError::new(Exit::Interrupted, "interrupted before anything was measured"))
                }
            }
        })?;
        eprintln!("asking {} at {url}", client.model);
        let server =
            Server { url: own.is_none().then(|| url.to_string()), model: client.model.clone(), digest, here };
        let mut results = Results::begin(command(), machine, server, workload, self.limits());
        results.quick = self.quick;
        Ok(Session { runtime, client: Arc::new(client), results, stop, own })
    }

    fn key(&self) -> Result<Option<Secret>, CliError> {
        let text = match &self.key_file {
            Some(path) => Some((
                std::fs::read_to_string(path).map_err(|e| {
                    CliError::new(Exit::Config, format!("{} cannot be read: {e}", path.display()))
                        .fix("let --key-file name a file that holds the key and nothing else")
                })?,
                Origin::File(path.clone()),
            )),
            None => {
                std::env::var("HEARTH_KEY").ok().map(|key| (key, Origin::Environment("HEARTH_KEY".into())))
            }
        };
        Ok(text.map(|(text, origin)| Secret::given(text.trim(), &origin)).transpose()?)
    }
}

/// Whether an address is this very machine's.
fn is_here(url: &Base) -> bool {
    url.guarded() && url.to_string().starts_with("http://") || {
        let host = url.join("/").host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }
}

/// The command line as a shell takes it.
fn command() -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+".contains(c);
    let quoted = |text: String| match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    };
    let rest = std::env::args_os().skip(1).map(|argument| quoted(argument.to_string_lossy().into_owned()));
    std::iter::once("hearth".to_owned()).chain(rest).collect::<Vec<_>>().join(" ")
}

fn unasked(error: &ClientError) -> CliError {
    let (exit, fix) = match error {
        ClientError::Away(_) => (Exit::NotRunning, "start the server, or correct --url"),
        ClientError::Prepare(_) => (Exit::Config, "correct --ca-file, or install the system's certificates"),
        ClientError::Key { .. } => {
            (Exit::Config, "set HEARTH_KEY or --key-file to a key of that server which may use the model")
        }
        ClientError::NoKey { .. } => (Exit::Config, "set HEARTH_KEY, or give --key-file FILE"),
        ClientError::Foreign { .. } => {
            (Exit::Failed, "let --url name an OpenAI-compatible server, without a path")
        }
        ClientError::NoModel { .. } => (Exit::Model, "give one of them: --model NAME"),
        ClientError::Busy { .. } => (Exit::Busy, "measure when nobody else uses the server"),
        ClientError::Request { .. } => (
            Exit::Failed,
            "choose another --profile or --model, or shorter --prompt-tokens and --output-tokens",
        ),
    };
    CliError::new(exit, error.to_string()).fix(fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_loopback_is_here() {
        let here = |url: &str| is_here(&url.parse().unwrap());
        assert!(here("http://127.0.0.1:5052") && here("https://localhost:1") && here("http://[::1]:1"));
        assert!(!here("https://hearth.example.com") && !here("http://10.0.0.1:5052"));
    }
}
