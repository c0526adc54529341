//! Errors of the command line: what happened, where, what to do; and the exit code.

use std::fmt;
use std::process::ExitCode;

use crate::config::ConfigError;
use crate::fit::Unfit;

/// Exit codes, as `--help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Failed = 1,
    Usage = 2,
    Config = 3,
    Model = 4,
    Device = 5,
    Memory = 6,
    Port = 7,
    GitLab = 8,
    /// The server that a verb asks is not running.
    NotRunning = 9,
    Busy = 75,
    Interrupted = 130,
}

pub const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed
  2    wrong usage
  3    configuration invalid
  4    model missing or damaged
  5    device or driver
  6    does not fit in memory
  7    port in use or permission denied
  8    GitLab: address, trust or clock
  9    server not running
  75   try again: busy or shutting down
  130  interrupted";

/// A failure that ends the process.
#[derive(Clone, Debug)]
pub struct CliError {
    pub exit: Exit,
    what: String,
    place: Option<String>,
    fix: Option<String>,
}

impl CliError {
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), place: None, fix: None }
    }

    pub fn at(self, place: impl Into<String>) -> Self {
        Self { place: Some(place.into()), ..self }
    }

    pub fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }

    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.exit as u8)
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        if let Some(place) = &self.place {
            write!(f, "\n  {place}")?;
        }
        if let Some(fix) = &self.fix {
            write!(f, "\n  fix: {fix}")?;
        }
        Ok(())
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Config, error.what).at(error.origin).fix(error.fix)
    }
}

impl From<Unfit> for CliError {
    fn from(unfit: Unfit) -> Self {
        let exit = match unfit {
            Unfit::Store(error) => return error.into(),
            Unfit::Settings { .. } => Exit::Config,
            Unfit::Model { .. } => Exit::Model,
            Unfit::Device { .. } => Exit::Device,
            Unfit::Memory(_) => Exit::Memory,
            Unfit::Host(_) => Exit::Failed,
        };
        let (place, fix) = (unfit.place().map(str::to_owned), unfit.fix());
        Self { exit, what: unfit.to_string(), place, fix }
    }
}

/// Standard output: a reader that went away is no failure of ours to report.
impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::new(Exit::Failed, "the reader of the output is gone"),
            _ => Self::new(Exit::Failed, format!("the output cannot be written: {error}")),
        }
    }
}
