//! Listening, guarding, draining (steps 1, 2 and 11 in the life of a request).
//!
//! In the order in which a request meets them: [`accept`] takes the connection, [`track`] gives the request an id and
//! counts it, [`routes`] finds its row of the table, [`guard`] asks for the credential that the row names.

pub mod accept;
pub mod body;
pub mod cors;
pub mod dialect;
mod docs;
pub mod guard;
pub mod health;
pub mod metrics;
pub mod path;
pub mod routes;
pub mod track;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::access::Access;
use crate::duo::Gateway;
use crate::served::Models;
pub use health::Health;
pub use metrics::Metrics;
pub use track::RequestId;

/// Limits of the listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at the same time; more wait to be accepted.
    pub connections: usize,
    /// From the connection, or from the last answer, to the end of the next request's headers.
    pub headers: Duration,
    /// From one piece of a request's body to the next.
    pub body: Duration,
    /// Bytes of all requests' bodies that are read and worked on at the same time; more wait, and are then refused.
    pub bodies: usize,
    /// Requests in flight at shutdown have this long to end.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            connections: 4096,
            headers: seconds(10),
            body: seconds(30),
            bodies: 64 << 20,
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

/// A server that is bound to its port and not serving yet.
pub struct Server {
    listener: TcpListener,
    limits: Limits,
    shared: Shared,
}

impl Server {
    pub async fn bind(address: SocketAddr, limits: Limits, shared: Shared) -> std::io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, limits, shared })
    }

    /// The address with the port that was really given.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` resolves and the requests in flight have ended, or had their time.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let health = self.shared.health.clone();
        let models = self.shared.models.clone();
        let router = routes::router(self.shared, self.limits);
        let drained = async {
            stop.await;
            health.drain();
            tracing::info!(in_flight = health.in_flight(), "draining");
            if tokio::time::timeout(self.limits.drain, health.idle()).await.is_err() {
                tracing::warn!(in_flight = health.in_flight(), "drain time is over; ending what is left");
            }
            // Whoever is left gets an error event instead of a cut line.
            let stopping: Vec<_> = models.iter().flat_map(|m| m.engine.stop(Duration::ZERO)).collect();
            let last = futures::future::join(futures::future::join_all(stopping), health.idle());
            let _ = tokio::time::timeout(Duration::from_secs(2), last).await;
        };
        accept::run(self.listener, router, self.limits, drained).await;
    }
}
