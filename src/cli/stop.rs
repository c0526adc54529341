//! How `hearth serve` is told to stop.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::{CliError, Exit};

pub fn caught(kind: SignalKind) -> Result<Signal, CliError> {
    signal(kind).map_err(|e| CliError::new(Exit::Failed, format!("signals cannot be caught: {e}")))
}

/// By SIGTERM or SIGINT. The second one says not to wait, the third one ends at once.
pub struct Stop<A, B> {
    pub first: A,
    pub again: B,
}

impl Stop<(), ()> {
    pub fn caught() -> Result<Stop<impl Future<Output = ()>, impl Future<Output = ()>>, CliError> {
        let mut terminate = caught(SignalKind::terminate())?;
        let mut interrupt = caught(SignalKind::interrupt())?;
        let (tell, mut told) = watch::channel(0);
        let mut before = told.clone();
        tokio::spawn(async move {
            for count in 1.. {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                if count > 2 {
                    std::process::exit(Exit::Interrupted as i32);
                }
                tell.send_replace(count);
            }
        });
        let first = async move { _ = before.wait_for(|count| *count >= 1).await };
        let again = async move { _ = told.wait_for(|count| *count >= 2).await };
        Ok(Stop { first, again })
    }
}
