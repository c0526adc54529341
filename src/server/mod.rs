//! Listening, guarding, draining (steps 1, 2 and 11 in the life of a request).
//!
//! In the order in which a request meets them: [`accept`] takes the connection, [`track`] gives the request an id and
//! counts it, [`routes`] finds its row of the table, [`guard`] asks for the credential that the row names.

pub mod accept;
pub mod addresses;
pub mod body;
pub mod connections;
pub mod cors;
pub mod dialect;
mod docs;
mod frames;
pub mod guard;
pub mod health;
pub mod listen;
pub mod metrics;
mod pace;
pub mod path;
mod places;
pub mod routes;
pub mod tls;
pub mod track;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::access::Access;
use crate::duo::Gateway;
use crate::served::Models;
pub use accept::Door;
pub use health::Health;
pub use listen::Listener;
pub use metrics::Metrics;
pub use track::RequestId;

/// Limits of the listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at the same time; more wait to be accepted.
    pub connections: usize,
    /// Connections of one address at the same time; more are closed.
    pub per_address: usize,
    /// From the connection to its first byte.
    pub first_byte: Duration,
    /// From a request's first byte to the end of its headers.
    pub headers: Duration,
    /// From one piece of a request's body to the next.
    pub body: Duration,
    /// From an answer to the next request on the same connection.
    pub idle: Duration,
    /// From a piece of an answer to the client's room for the next; as long may sent bytes stay unacknowledged.
    pub unread: Duration,
    /// Headers of a request.
    pub header_count: usize,
    /// Their bytes.
    pub header_bytes: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of all requests' bodies that are read and worked on at the same time; more wait, and are then refused.
    pub bodies: usize,
    /// At shutdown, from being no longer ready to taking no more connections.
    pub drain_delay: Duration,
    /// Then requests in flight have this long to end.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            connections: 4096,
            per_address: 1024,
            first_byte: seconds(5),
            headers: seconds(10),
            body: seconds(30),
            idle: seconds(120),
            unread: seconds(60),
            header_count: 128,
            header_bytes: 64 << 10,
            body_bytes: 8 << 20,
            bodies: 64 << 20,
            drain_delay: Duration::ZERO,
            drain: seconds(30),
        }
    }
}

/// What every request can reach.
#[derive(Clone)]
pub struct Shared {
    pub models: Models,
    pub access: Arc<Access>,
    pub health: Arc<Health>,
    pub metrics: Metrics,
    pub duo: Arc<Gateway>,
}

impl axum::extract::FromRef<Shared> for Arc<Gateway> {
    fn from_ref(shared: &Shared) -> Self {
        shared.duo.clone()
    }
}

/// A server that is bound to its ports and not serving yet.
pub struct Server {
    listeners: Vec<Listener>,
    door: Door,
    limits: Limits,
    shared: Shared,
}

impl Server {
    /// On a socket of its own, open to everybody, in cleartext.
    pub async fn bind(address: SocketAddr, limits: Limits, shared: Shared) -> std::io::Result<Self> {
        Ok(Self::on(vec![Listener::bind(address).await?], Door::default(), limits, shared))
    }

    pub fn on(listeners: Vec<Listener>, door: Door, limits: Limits, shared: Shared) -> Self {
        Self { listeners, door, limits, shared }
    }

    /// The first address, with the port that was really given.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listeners.first().ok_or_else(|| std::io::Error::other("no listener"))?.address()
    }

    /// Serves until `stop` resolves and the requests in flight have ended, or had their time.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        self.serve_until(stop, std::future::pending()).await;
    }

    /// The same; when `hurry` resolves too, nothing is waited for any more.
    pub async fn serve_until(self, stop: impl Future<Output = ()>, hurry: impl Future<Output = ()>) {
        let Self { listeners, mut door, limits, shared } = self;
        door.connections = shared.metrics.connections.clone();
        let health = shared.health.clone();
        let models = shared.models.clone();
        let router = routes::router(shared, limits);
        let (close, mut closing) = watch::channel(false);
        let closing = async move {
            let _ = closing.wait_for(|close| *close).await;
        };
        let hurried = async {
            hurry.await;
            tracing::info!("told again to stop: waiting for nothing");
        };
        let mut hurried = std::pin::pin!(hurried.fuse());
        let mut served = std::pin::pin!(accept::run(listeners, door, router, limits, closing));
        tokio::select! {
            () = &mut served => return,
            () = stop => {}
        }
        // No longer ready, and still serving: whoever sends requests here needs a moment to notice.
        health.drain();
        tracing::info!(in_flight = health.in_flight(), "draining");
        tokio::select! {
            () = &mut served => return,
            () = tokio::time::sleep(limits.drain_delay) => {}
            () = &mut hurried => {}
        }
        close.send_replace(true);
        let over = tokio::select! {
            () = &mut served => {
                let _ = timeout(LAST_WORDS, end(&models)).await;
                return;
            }
            () = tokio::time::sleep(limits.drain) => "drain time is over",
            () = &mut hurried => "no time to drain",
        };
        tracing::warn!(in_flight = health.in_flight(), "{over}; ending what is left");
        health.give_up();
        // Whoever is left gets an error event instead of a cut line.
        let _ = timeout(LAST_WORDS, futures::future::join(end(&models), served)).await;
    }
}

/// For the last event of answers that are cut short to reach their readers.
const LAST_WORDS: Duration = Duration::from_secs(2);

async fn end(models: &Models) {
    models.upstream().for_each(|model| model.upstream.end());
    futures::future::join_all(models.iter().flat_map(|model| model.engine.stop(Duration::ZERO))).await;
}
