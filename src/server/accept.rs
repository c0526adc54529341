//! The accept loop (step 1 in the life of a request): HTTP/1.1 with a limit on connections, on the wait for the first
//! byte and on the wait for headers. `axum::serve` has none of them.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tower::ServiceExt;

use super::{Limits, path};

/// How long sent bytes may stay unacknowledged, or the client's window closed.
const UNREAD: Duration = Duration::from_secs(60);

/// Headers of a request at most, in number and in bytes.
const MOST_HEADERS: usize = 128;
const HEADER_BYTES: usize = 64 * 1024;

/// Where a request came from; an extension of every request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// Serves connections until `drained` resolves; then closes those that are idle and gives the others a moment.
pub async fn run(listener: TcpListener, router: Router, limits: Limits, drained: impl Future<Output = ()>) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let mut drained = pin!(drained);
    loop {
        let accepted = async {
            let permit = permits.clone().acquire_owned().await.expect("bug: the semaphore is never closed");
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut drained => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of file descriptors, for one: the connections at hand go on, and so does the loop.
                tracing::warn!("a connection could not be accepted: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let routes = router.clone().map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer.ip()));
            path::normalise(request)
        });
        let service = TowerToHyperService::new(routes);
        let watcher = graceful.watcher();
        tokio::spawn(async move {
            let _permit = permit;
            if !spoke(&stream, limits.headers).await {
                return;
            }
            let _ = stream.set_nodelay(true);
            // A client that never reads what it asked for loses its connection, not ours for everybody else.
            let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits.headers)
                .max_headers(MOST_HEADERS)
                .max_buf_size(HEADER_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            // A connection that ends badly is the client's affair; the request's own line is in the log.
            let _ = watcher.watch(connection).await;
        });
    }
    drop(listener);
    let _ = timeout(Duration::from_secs(1), graceful.shutdown()).await;
}

/// Whether the client sent anything in time.
async fn spoke(stream: &TcpStream, limit: Duration) -> bool {
    matches!(timeout(limit, stream.peek(&mut [0])).await, Ok(Ok(1)))
}
