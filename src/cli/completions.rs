//! `hearth completions`: what a shell needs to complete this command line. Packages put it where shells look.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, CliError};

#[derive(Args)]
pub struct Completions {
    /// The shell that will read them
    shell: Shell,
}

pub fn run(verb: Completions) -> Result<(), CliError> {
    // Made whole before it is written: the generator does not survive a reader that goes away.
    let mut script = Vec::new();
    clap_complete::generate(verb.shell, &mut Cli::command(), "hearth", &mut script);
    std::io::Write::write_all(&mut std::io::stdout().lock(), &script)?;
    Ok(())
}
