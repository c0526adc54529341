//! The log (all along the life of a request): lines on standard error, as text or as one JSON object each, and the last
//! of them kept in memory for the console, `hearth logs` and the support bundle.
//!
//! Every line of a request carries its id under one name, `correlation_id`: the one that GitLab sent, in the gateway's
//! lines and in the engine's. Nothing secret gets here: keys and tokens are types without `Display`, and a prompt
//! becomes a field in one place alone, [`prompts`], which is off unless it was switched on for a time. Crates below
//! this one are heard from warnings on only, whatever the level: their traces would hold headers and bodies. HTTP/2's
//! warnings are not heard either: any stranger can cause one for each connection, and the lines that are kept would be
//! full of them. The metrics count those connections.

mod lines;
pub mod prompts;
pub mod recent;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use lines::Lines;
pub use recent::RECENT;

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// Starts the log. `level` is what this server's own code says; it changes with nothing but a restart.
pub fn start(level: &str, format: Format) {
    let filter = EnvFilter::new(format!("warn,h2=error,hearth={level},{}=info", prompts::TARGET));
    let base = tracing_subscriber::registry().with(filter).with(Lines { write: format == Format::Json });
    // Fails only when a subscriber is set already, as in tests that run in one process.
    let _ = match format {
        Format::Json => base.try_init(),
        Format::Text => {
            let text = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
            base.with(text.with_ansi(std::io::stderr().is_terminal())).try_init()
        }
    };
    // What a panic says may quote the text that it broke on; where it broke is enough to find it.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or("-").to_owned();
        tracing::error!(place, thread, "our own code broke");
    }));
}
