//! A server that is being asked: runs one after another, what is kept of them, and how it ends when somebody interrupts.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::asking::Asking;
use super::unwritten;
use crate::bench::client::Client;
use crate::bench::load::{self, Cut, Plan, Progress};
use crate::bench::own::Own;
use crate::bench::result::{Results, Run};
use crate::cli::{CliError, Exit};

/// A server that can be asked, and what is known before the first figure.
pub struct Session {
    pub runtime: Runtime,
    pub client: Arc<Client>,
    pub results: Results,
    pub stop: watch::Receiver<bool>,
    // Last: the server ends when everything else has.
    pub own: Option<Own>,
}

impl Session {
    /// Runs a plan, with progress on standard error.
    pub fn load(&mut self, plan: &Plan) -> (Run, Option<Cut>) {
        let bar = std::io::stderr().is_terminal();
        let wanted = match (plan.requests, plan.duration) {
            (Some(requests), _) => format!("of {requests} answered"),
            (None, Some(time)) => format!("answered, {} s in all", time.as_secs()),
            (None, None) => "answered".to_owned(),
        };
        let mut said = 0;
        let mut show = |progress: &Progress| {
            let Progress { elapsed, warm, answered, lost, in_flight } = progress;
            let seconds = elapsed.as_secs();
            let state =
                if *warm { format!("{answered} {wanted}, {lost} lost") } else { "warming up".to_owned() };
            let line = format!("{}: {seconds} s, {state}, {in_flight} in flight", plan.arrivals);
            if bar {
                eprint!("\r\x1b[K{line}");
            } else if seconds >= said + 10 {
                said = seconds;
                eprintln!("{line}");
            }
        };
        let done = self.runtime.block_on(load::run(
            &self.client,
            &self.results.workload,
            plan,
            &mut self.stop,
            &mut show,
        ));
        if bar {
            eprint!("\r\x1b[K");
        }
        done
    }

    /// Why a cut run is an error of the whole; the partial results are kept by then.
    pub fn cut(&mut self, cut: &Cut, kept: Option<&Path>) -> CliError {
        let what = match kept {
            Some(path) => {
                format!("{cut}; what was measured before is in {}, marked as partial", path.display())
            }
            None => format!("{cut}; what was measured before is above, marked as partial"),
        };
        match (cut, self.own.as_mut().and_then(Own::ended)) {
            (Cut::Gone(_), Some(ended)) => CliError::new(Exit::NotRunning, what).at(ended.to_string()),
            (Cut::Gone(_), None) => {
                CliError::new(Exit::NotRunning, what).fix("see the server's log, then measure again")
            }
            (Cut::Interrupted, _) => CliError::new(Exit::Interrupted, what),
            (Cut::Late | Cut::Stuck, _) => {
                CliError::new(Exit::Failed, what).fix("lower --rate or --concurrency")
            }
        }
    }

    /// Prints and keeps what there is.
    pub fn hand_over(&self, asking: &Asking, text: &str) -> Result<(), CliError> {
        if let Some(path) = &asking.output {
            self.results.write(path).map_err(unwritten)?;
        }
        let mut out = std::io::stdout().lock();
        match asking.json {
            true => out.write_all(self.results.json().as_bytes())?,
            false => out.write_all(text.as_bytes())?,
        }
        out.flush()?;
        Ok(())
    }
}

/// Turns true at the first SIGINT or SIGTERM; a second one ends the process at once.
pub fn interrupted() -> Result<watch::Receiver<bool>, CliError> {
    let caught = |kind| {
        signal(kind).map_err(|e| CliError::new(Exit::Failed, format!("signals cannot be caught: {e}")))
    };
    let (mut terminate, mut interrupt) = (caught(SignalKind::terminate())?, caught(SignalKind::interrupt())?);
    let (tell, told) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        let _ = tell.send(true);
        let told = Instant::now();
        // timeout(1) and shells tell a process and its group, so one wish comes as two signals.
        while told.elapsed() < Duration::from_millis(500) {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        }
        std::process::exit(Exit::Interrupted as i32);
    });
    Ok(told)
}
