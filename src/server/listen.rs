//! Where connections come from: sockets of our own, or those of a socket unit, which systemd passes.
//!
//! Neither is closed by a restart: while this process ends and the next one starts, connections wait in it. systemd has a
//! copy of our own too (`FileDescriptorStoreMax=`), and passes it to the next process under a name that says what it is.

use std::io;
use std::net::{SocketAddr, TcpListener as Socket};
use std::os::fd::{AsFd, BorrowedFd};

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

    /// For whoever is to keep a copy.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
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
    /// Our own of the process before.
    pub kept: Vec<Socket>,
}

/// How the names of our own sockets begin where they are kept.
const KEPT: &str = "hearth-kept-";

/// The name under which our socket at an address is kept. Colons are not allowed in it.
pub fn kept_as(address: SocketAddr) -> String {
    format!("{KEPT}{address}").replace(':', "_")
}

impl Passed {
    /// Those of our own that are at none of these addresses; the caller closes them and has them forgotten.
    pub fn not_at(&mut self, addresses: &[SocketAddr]) -> Vec<Socket> {
        let there = |socket: &Socket| socket.local_addr().is_ok_and(|address| addresses.contains(&address));
        let (there, elsewhere) = std::mem::take(&mut self.kept).into_iter().partition(there);
        self.kept = there;
        elsewhere
    }

    /// Our own at this address.
    pub fn take_kept(&mut self, address: SocketAddr) -> Option<Socket> {
        let at = self.kept.iter().position(|socket| socket.local_addr().is_ok_and(|kept| kept == address))?;
        Some(self.kept.swap_remove(at))
    }
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
        match name {
            _ if name.starts_with(KEPT) => passed.kept.push(socket),
            _ if name.contains("metrics") => passed.metrics = Some(socket),
            _ => passed.api.push(socket),
        }
    }
    Ok(passed)
}

/// For the runtime that this is called in.
pub fn adopt(socket: Socket) -> io::Result<Listener> {
    Ok(Listener { socket: TcpListener::from_std(socket)?, passed: true })
}

/// Our own socket of the process before, for the runtime that this is called in. That somebody keeps it is not certain
/// until the next start, so at the end it is treated as one that nobody keeps.
pub fn resume(socket: Socket) -> io::Result<Listener> {
    Ok(Listener { socket: TcpListener::from_std(socket)?, passed: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_socket_is_taken_up_where_its_address_is_still_wanted_and_given_up_elsewhere() {
        let socket = || Socket::bind("127.0.0.1:0").unwrap();
        let (wanted, other) = (socket(), socket());
        let (at, elsewhere) = (wanted.local_addr().unwrap(), other.local_addr().unwrap());
        let mut passed = Passed { kept: vec![wanted, other], ..Passed::default() };
        let given_up = passed.not_at(&[at]);
        assert_eq!(given_up.len(), 1);
        assert_eq!(given_up[0].local_addr().unwrap(), elsewhere);
        assert!(passed.take_kept(elsewhere).is_none());
        assert_eq!(passed.take_kept(at).unwrap().local_addr().unwrap(), at);
        assert!(passed.take_kept(at).is_none(), "once");
    }

    #[test]
    fn names_of_kept_sockets_have_no_colon() {
        assert_eq!(kept_as("[::1]:5052".parse().unwrap()), "hearth-kept-[__1]_5052");
    }
}
