//! `hearth models`: checkpoints in and out of the store, what each is and needs, what is configured.

pub mod catalog;
pub mod import;
mod inspect;
mod list;
mod stored;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::steps::Steps;
use super::{CliError, Common, Exit};
use crate::config::{Layers, Settings};
use crate::store::{Store, StoreError};

#[derive(Subcommand)]
pub enum Verb {
    /// Take a checkpoint into the store: checked, copied, and there as a whole or not at all
    Import(import::Import),
    /// Name the configured, imported and built-in models, where each is, and its family as GitLab calls it
    List(list::List),
    /// Say what a checkpoint is: family, parameters, types, memory, what it can do
    Inspect(inspect::Inspect),
    /// Compare imported models with the sums that were written down when they came
    Verify(stored::Verify),
    /// Write an imported model into one archive
    Export(stored::Export),
    /// Remove an imported model, or what an import left that was cut off
    Remove(stored::Remove),
    /// Download a checkpoint and take it in, on a host that reaches the hub
    #[cfg(feature = "pull")]
    Pull(super::pull::Pull),
    /// The checkpoints that are known: licence, features, formats, hardware
    Catalog(catalog::Catalog),
}

/// Where the store is.
#[derive(Args, Clone)]
pub struct Place {
    /// Where imported models are [default: models in the state directory]
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
    /// The server's state directory
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl Place {
    /// The settings under these flags.
    fn layers(&self, common: &Common) -> Result<Layers, CliError> {
        let mut layers = common.layers()?;
        for (flag, name, value) in [
            ("--models-dir", "models.dir", &self.models_dir),
            ("--state-dir", "server.state_dir", &self.state_dir),
        ] {
            if let Some(directory) = value {
                layers.flag(flag, name, directory.display().to_string())?;
            }
        }
        Ok(layers)
    }

    pub fn settings(&self, common: &Common) -> Result<Settings, CliError> {
        Ok(Settings::of(&self.layers(common)?)?)
    }

    pub fn store(&self, common: &Common) -> Result<Store, CliError> {
        Ok(Store::at(self.settings(common)?.models_dir))
    }
}

pub fn run(verb: Verb, common: &Common) -> Result<(), CliError> {
    match verb {
        Verb::Import(verb) => import::run(verb, common),
        Verb::List(verb) => list::run(verb, common),
        Verb::Inspect(verb) => inspect::run(verb, common),
        Verb::Verify(verb) => stored::verify(verb, common),
        Verb::Export(verb) => stored::export(verb, common),
        Verb::Remove(verb) => stored::remove(verb, common),
        #[cfg(feature = "pull")]
        Verb::Pull(verb) => super::pull::run(verb, common),
        Verb::Catalog(verb) => catalog::run(verb),
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        use StoreError::*;
        let exit = match error {
            Name { .. } => Exit::Usage,
            Missing { .. } | Damaged { .. } | Refused { .. } | Archive { .. } => Exit::Model,
            Content { .. } | Sums { .. } | Vetting { .. } => Exit::Model,
            Busy { .. } => Exit::Busy,
            File { .. } | Full { .. } | ReadOnly { .. } | Exists { .. } | Licence { .. } | Audit(_) => {
                Exit::Failed
            }
        };
        CliError::new(exit, error.to_string()).fix(error.fix())
    }
}
