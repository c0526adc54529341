//! The hidden verb that an import starts: the programs of a checkpoint, tried out under limits of the kernel.

use std::path::PathBuf;

use clap::Args;

use super::{CliError, Exit};
use crate::store::vet;

#[derive(Args)]
pub struct Vet {
    /// Bytes of memory beyond the binary's own
    memory: u64,
    /// Seconds of processor time
    seconds: u64,
    /// What to try out: template (on standard input) or text
    what: String,
    directory: Option<PathBuf>,
}

pub fn run(verb: Vet) -> Result<(), CliError> {
    let Vet { memory, seconds, what, directory } = verb;
    match vet::run(memory, seconds, &what, directory.as_deref()) {
        Ok(()) => Ok(()),
        // The reason alone: the parent puts it into its own words.
        Err(reason) => {
            eprintln!("{reason}");
            std::process::exit(Exit::Model as i32)
        }
    }
}
