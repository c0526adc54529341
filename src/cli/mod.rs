//! The command line: one file a verb. Data goes to standard output, everything else to standard error.

mod admin;
mod audit;
mod bench;
mod bundle;
mod chat;
mod complete;
mod completions;
mod config;
mod console;
mod doctor;
mod doors;
mod error;
mod flags;
mod keys;
mod load;
mod logs;
mod man;
mod models;
#[cfg(feature = "pull")]
mod pull;
mod serve;
mod sockets;
mod status;
mod steps;
mod stop;
mod support;
mod terminal;
mod vet;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{ConfigError, Layers};
pub use error::{CliError, Exit};

#[derive(Parser)]
#[command(name = "hearth", version, about, after_help = error::EXIT_CODES, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

/// Options of every verb.
#[derive(Args, Clone)]
struct Common {
    /// The settings file; /etc/hearth/hearth.toml if there is one
    #[arg(long, global = true, env = "HEARTH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Common {
    /// Defaults, file and environment; flags are the verb's own to put over them.
    fn layers(&self) -> Result<Layers, ConfigError> {
        let text =
            |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        Layers::load(self.config.as_deref(), std::env::vars_os().filter_map(text))
    }
}

#[derive(Subcommand)]
enum Verb {
    /// Run the server
    Serve(serve::Serve),
    /// Continue a text, or fill a gap, in this process
    Complete(complete::Complete),
    /// Talk to a model in this process
    Chat(chat::Chat),
    /// Take models in and out, look at them, check them
    #[command(subcommand)]
    Models(models::Verb),
    /// Make, list and end API keys; replace the key that signs editors' tokens
    #[command(subcommand)]
    Keys(keys::Verb),
    /// Read the audit log, or check that nobody changed it
    #[command(subcommand)]
    Audit(audit::Verb),
    /// Show what the running server is doing
    Status(status::Status),
    /// Let the running server read its settings again
    Reload(admin::Reload),
    /// Take the running server out of rotation: not ready any more, and what it has may end
    Drain(admin::Drain),
    /// The running server's log, and prompts in it for a while
    Logs(logs::Logs),
    /// A link into the running server's console, which works once
    Console(console::Console),
    /// Collect what helps others to help, without secrets and prompts
    SupportBundle(support::SupportBundle),
    /// Everything for a site without a network, in one signed archive
    #[command(subcommand)]
    Bundle(bundle::Verb),
    /// Say whether everything is well, and if not, what to do
    Doctor(doctor::Doctor),
    /// Measure how much a server answers in time, and for how many people that is enough
    #[command(subcommand)]
    Bench(bench::Verb),
    /// Check the settings, or show them and where each came from
    #[command(subcommand)]
    Config(config::Verb),
    /// Print the manual, or write all its pages into a directory
    #[command(hide = true)]
    Man(man::Manual),
    /// Print what a shell needs to complete this command line
    #[command(hide = true)]
    Completions(completions::Completions),
    #[command(hide = true)]
    Vet(vet::Vet),
}

/// The threads of everything but the models.
fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::new(Exit::Failed, format!("threads cannot be started: {e}")))
}

/// Parses the command line and does what it says.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are data and go to standard output with code 0; clap knows which is which.
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(Exit::Usage as u8) } else { ExitCode::SUCCESS };
        }
    };
    let done = match cli.verb {
        Verb::Serve(verb) => serve::run(verb, &cli.common),
        Verb::Complete(verb) => complete::run(verb, &cli.common),
        Verb::Chat(verb) => chat::run(verb, &cli.common),
        Verb::Models(verb) => models::run(verb, &cli.common),
        Verb::Bundle(verb) => bundle::run(verb, &cli.common),
        Verb::Keys(verb) => keys::run(verb, &cli.common),
        Verb::Audit(verb) => audit::run(verb, &cli.common),
        Verb::Status(verb) => status::run(verb, &cli.common),
        Verb::Reload(verb) => admin::reload(verb, &cli.common),
        Verb::Drain(verb) => admin::drain(verb, &cli.common),
        Verb::Logs(verb) => logs::run(verb, &cli.common),
        Verb::Console(verb) => console::run(verb, &cli.common),
        Verb::SupportBundle(verb) => support::run(verb, &cli.common),
        Verb::Doctor(verb) => doctor::run(verb, &cli.common),
        Verb::Bench(verb) => bench::run(verb, &cli.common),
        Verb::Config(verb) => config::run(verb, &cli.common),
        Verb::Man(verb) => man::run(verb),
        Verb::Completions(verb) => completions::run(verb),
        Verb::Vet(verb) => vet::run(verb),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            error.code()
        }
    }
}
