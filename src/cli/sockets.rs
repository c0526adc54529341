//! The sockets of `hearth serve`: those of a socket unit, those of the process before, or new ones.

use std::net::{SocketAddr, TcpListener as Socket};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{CliError, Exit};
use crate::config::Settings;
use crate::duo::identity::Bypass;
use crate::server::Listener;
use crate::server::listen::{self, Passed};
use crate::supervisor;

/// Lets this process open as many files as it may: what it was given at first is often 1,024, and a connection is a file.
pub fn open_many() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!("the limit of open files stays at {soft}: {}", error.desc());
    }
}

pub fn taken(address: SocketAddr, error: &std::io::Error) -> CliError {
    CliError::new(Exit::Port, format!("cannot listen on {address}: {error}"))
        .fix("stop what listens there, or choose another address: --listen, --metrics")
}

pub fn unusable(error: std::io::Error) -> CliError {
    CliError::new(Exit::Port, format!("a socket cannot be used: {error}"))
}

/// The sockets that systemd passes, if it does. They are as public as the unit makes them.
pub fn passed(settings: &Settings) -> Result<Passed, CliError> {
    let mut passed = listen::passed().map_err(|e| {
        let fix = "let the socket unit have ListenStream= with an address and a port, and nothing else";
        CliError::new(Exit::Port, e.to_string()).fix(fix)
    })?;
    let open =
        passed.api.iter().filter_map(|socket| socket.local_addr().ok()).find(|at| !at.ip().is_loopback());
    if let Some(address) = open.filter(|_| settings.gitlab.rules.bypass != Bypass::Off) {
        let what = format!("`gitlab.bypass` is on while systemd passes a socket on {address}");
        let fix = "whoever reaches that address would be let in: set gitlab.bypass to \"off\"";
        return Err(CliError::new(Exit::Config, what).fix(fix));
    }
    let wanted = if passed.api.is_empty() { settings.listen.as_slice() } else { &[] };
    for socket in passed.not_at(wanted) {
        if let Ok(address) = socket.local_addr() {
            supervisor::forget(&listen::kept_as(address));
        }
    }
    Ok(passed)
}

pub async fn for_api(settings: &Settings, mut passed: Passed) -> Result<Vec<Listener>, CliError> {
    if !passed.api.is_empty() {
        return passed.api.into_iter().map(|socket| listen::adopt(socket).map_err(unusable)).collect();
    }
    let mut listeners = Vec::new();
    for address in settings.listen.iter().copied() {
        let listener = match passed.take_kept(address) {
            Some(socket) => listen::resume(socket).map_err(unusable)?,
            None => bind(address).await?,
        };
        supervisor::keep(&listen::kept_as(address), listener.as_fd());
        listeners.push(listener);
    }
    Ok(listeners)
}

/// A socket of our own. One that was given up a moment ago, at the same port, may still be in the service manager's hands.
pub async fn bind(address: SocketAddr) -> Result<Listener, CliError> {
    let mut tries = 10;
    loop {
        match Listener::bind(address).await {
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && tries > 0 => tries -= 1,
            bound => return bound.map_err(|e| taken(address, &e)),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub async fn for_metrics(settings: &Settings, passed: Option<Socket>) -> Result<Option<Listener>, CliError> {
    match (passed, settings.metrics) {
        (Some(socket), _) => listen::adopt(socket).map(Some).map_err(unusable),
        (None, Some(address)) => bind(address).await.map(Some),
        (None, None) => Ok(None),
    }
}
