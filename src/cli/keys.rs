//! `hearth keys`: the keys that this server made for itself.

use std::path::PathBuf;

use clap::Subcommand;

use super::{CliError, Common, Exit};
use crate::config::Settings;
use crate::duo::identity::own;

#[derive(Subcommand)]
pub enum Verb {
    /// Make a new key for editors' tokens; tokens signed with the one before stay good until they end
    Rotate {
        /// Forget the key before at once, and with it the tokens that it signed
        #[arg(long)]
        revoke: bool,
        /// Where the keys are kept
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
    },
}

pub fn run(verb: Verb, common: &Common) -> Result<(), CliError> {
    let Verb::Rotate { revoke, state_dir } = verb;
    let mut layers = common.layers()?;
    if let Some(directory) = state_dir {
        layers.flag("--state-dir", "server.state_dir", directory.display().to_string())?;
    }
    let settings = Settings::of(&layers)?;
    for (key, name) in [
        (&settings.gitlab.signing_key, "gitlab.signing_key"),
        (&settings.gitlab.validation_key, "gitlab.validation_key"),
    ] {
        if key.is_some() {
            let what = format!("`{name}` is configured, and goes before what is in the state directory");
            return Err(CliError::new(Exit::Config, what).at(layers.origin(name).to_string()).fix(
                "put the new key into gitlab.signing_key and the old one into gitlab.validation_key, or remove both",
            ));
        }
    }
    let tokens = match revoke {
        true => {
            own::revoke(&settings.state_dir)?;
            "then tokens of the key before are refused, and editors ask for new ones"
        }
        false => {
            own::rotate(&settings.state_dir)?;
            "restart it within the hour: for that long, tokens of the key before are still good"
        }
    };
    eprintln!("a new key for editors' tokens is in {}", settings.state_dir.display());
    eprintln!("  a running server takes it at its next start; {tokens}");
    Ok(())
}
