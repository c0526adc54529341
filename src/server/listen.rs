//! Where connections come from: sockets of our own, or those that systemd passes and keeps over a restart.
//!
//! A passed socket is never closed for good: while this process ends and the next one starts, connections wait in it.

use std::io;
use std::net::{SocketAddr, TcpListener as Socket};

use listenfd::ListenFd;
use tokio::net::TcpListener;

/// One socket that connections are taken from.
#[derive(Debug)]
pub struct Listener {
    pub(super) socket: TcpListener,
    /// Somebody else holds it too.
    pub(super) passed: bool,
}

impl Listener {
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(address).await?, passed: false })
    }

    /// The address with the port that was really given.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// Sockets that were passed at the start, by what their names say that they are for.
#[derive(Debug, Default)]
pub struct Passed {
    pub api: Vec<Socket>,
    pub metrics: Option<Socket>,
}

/// Why passed sockets cannot be used; the text says which.
#[derive(Debug, thiserror::Error)]
#[error("the socket {number} that systemd passes ({name:?}) cannot be used: {error}")]
pub struct PassedError {
    number: usize,
    name: String,
    error: io::Error,
}

/// Takes the sockets that the environment names. Called once, before there are threads: the variables are removed, so that
/// no child believes that they are its own.
pub fn passed() -> Result<Passed, PassedError> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut fds = ListenFd::from_env();
    let mut passed = Passed::default();
    for number in 0..fds.len() {
        let name = names.split(':').nth(number).unwrap_or_default();
        let failed = |error| PassedError { number, name: name.to_owned(), error };
        let Some(socket) = fds.take_tcp_listener(number).map_err(failed)? else { continue };
        // A socket that only connects would fail at every accept.
        socket.set_nonblocking(true).map_err(failed)?;
        match name.contains("metrics") {
            true => passed.metrics = Some(socket),
            false => passed.api.push(socket),
        }
    }
    Ok(passed)
}

/// For the runtime that this is called in.
pub fn adopt(socket: Socket) -> io::Result<Listener> {
    Ok(Listener { socket: TcpListener::from_std(socket)?, passed: true })
}
