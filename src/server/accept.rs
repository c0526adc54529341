//! The accept loop (step 1 in the life of a request): takes connections, asks who they are, and closes those that do not
//! get on. `axum::serve` has none of the limits.
//!
//! What a connection goes through: a place in all and for its address, the lists of addresses, a first byte in time, TLS
//! where it is spoken, headers in time; then requests, each with the address of its client; and between two of them not
//! longer than [`Limits::idle`].

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::http::{StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::future::join_all;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use serde_json::json;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tower::ServiceExt;

use super::addresses::Addresses;
use super::body::Watched;
use super::connections::{Connections, Open, Reason};
use super::frames::{CONNECTION_WINDOW, STREAM_WINDOW};
use super::listen::Listener;
use super::pace::{Pace, Paced, Sent, fetched};
use super::places::{Place, Places};
use super::tls::Tls;
use super::{Limits, path};

/// Requests side by side on one HTTP/2 connection.
const MOST_STREAMS: u32 = 128;
/// An HTTP/2 client that says nothing while it waits for an answer is asked, and has this long to answer.
const ASK_EVERY: Duration = Duration::from_secs(20);

/// A connection that is told to end has this long to say so.
const LAST: Duration = Duration::from_secs(1);

/// The first byte of TLS.
const HANDSHAKE: u8 = 0x16;

/// Where a request came from, behind proxies too; an extension of every request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// What connections meet before the routes. Clones are the same door.
#[derive(Clone, Default)]
pub struct Door {
    pub addresses: Arc<ArcSwap<Addresses>>,
    /// `None`: cleartext.
    pub tls: Option<Tls>,
    /// What became of those who came.
    pub connections: Connections,
}

impl Door {
    pub fn new(addresses: Addresses, tls: Option<Tls>) -> Self {
        Self { addresses: Arc::new(ArcSwap::from_pointee(addresses)), tls, ..Self::default() }
    }
}

/// What all connections of a listener share.
struct Hall {
    door: Door,
    router: Router,
    limits: Limits,
    places: Arc<Places>,
}

/// Serves connections until `closing` resolves. Then no more are taken, requests that are worked on or on their way are
/// answered, and the end is when the last connection has ended. Dropped, it cuts nothing: connections have tasks of their own.
pub async fn run(
    listeners: Vec<Listener>,
    door: Door,
    router: Router,
    limits: Limits,
    closing: impl Future<Output = ()>,
) {
    let places = Places::new(limits.connections, limits.per_address);
    door.connections.limited_to(limits.connections);
    let hall = Arc::new(Hall { door, router, limits, places });
    let (close, closed) = watch::channel(false);
    let accepting = join_all(listeners.iter().map(|listener| take(listener, &hall, &closed)));
    tokio::select! {
        _ = accepting => {}
        () = closing => {}
    }
    for listener in listeners.iter().filter(|listener| !listener.passed) {
        // They are connected as far as their clients know, and would be reset with the socket.
        while let Some(Ok((stream, peer))) =
            tokio::task::unconstrained(listener.socket.accept()).now_or_never()
        {
            let Some(Ok(permit)) = hall.places.free().now_or_never().map(Ok::<_, ()>) else { break };
            hall.clone().admit(stream, peer, permit, &closed);
        }
    }
    drop(listeners);
    close.send_replace(true);
    drop(closed);
    close.closed().await;
}

/// Takes connections for as long as it is polled.
async fn take(listener: &Listener, hall: &Arc<Hall>, closed: &watch::Receiver<bool>) {
    loop {
        let permit = hall.places.free().await;
        match listener.socket.accept().await {
            Ok((stream, peer)) => hall.clone().admit(stream, peer, permit, closed),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(e) => {
                // Out of file descriptors, for one: the connections at hand go on, and so does the loop.
                tracing::warn!("a connection could not be accepted: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

impl Hall {
    /// Gives a connection its place and its task, or closes it without a word.
    fn admit(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        permit: tokio::sync::OwnedSemaphorePermit,
        closed: &watch::Receiver<bool>,
    ) {
        let peer = peer.ip().to_canonical();
        let addresses = self.door.addresses.load();
        if !addresses.hears(peer) {
            return self.refuse(peer, Reason::Address);
        }
        let limited = !addresses.proxies.contains(peer);
        let Some(place) = self.places.take(permit, peer, limited) else {
            return self.refuse(peer, Reason::PerAddress);
        };
        drop(addresses);
        let (closed, open) = (closed.clone(), self.door.connections.open());
        tokio::spawn(self.connection(stream, peer, (place, open), closed));
    }

    /// A connection was refused, or has ended, for what its client did or is.
    fn refuse(&self, peer: IpAddr, reason: Reason) {
        self.door.connections.refuse(reason);
        tracing::debug!(%peer, reason = reason.label(), "connection refused");
    }

    async fn connection(
        self: Arc<Self>,
        mut stream: TcpStream,
        peer: IpAddr,
        _held: (Place, Open),
        mut closed: watch::Receiver<bool>,
    ) {
        let first = match first_byte(&stream, self.limits.first_byte, &mut closed).await {
            Ok(Some(first)) => first,
            Ok(None) => return,
            Err(reason) => return self.refuse(peer, reason),
        };
        let _ = stream.set_nodelay(true);
        // A client that never reads what it asked for loses its connection, not ours for everybody else.
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(self.limits.unread));
        let Some(tls) = &self.door.tls else {
            return self.serve(stream, false, peer, closed).await;
        };
        if first != HANDSHAKE {
            self.refuse(peer, Reason::Cleartext);
            let _ = stream.write_all(NOT_TLS).await;
            let _ = stream.shutdown().await;
            // What is left unread when a socket closes takes the answer with it.
            let _ = timeout(LAST, tokio::io::copy(&mut stream, &mut tokio::io::sink())).await;
            return;
        }
        match timeout(self.limits.headers, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => {
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                self.serve(stream, http2, peer, closed).await;
            }
            Ok(Err(e)) => {
                tracing::debug!(%peer, "no TLS: {e}");
                self.refuse(peer, Reason::Tls);
            }
            Err(_) => self.refuse(peer, Reason::TlsTimeout),
        }
    }

    async fn serve<S>(self: Arc<Self>, stream: S, http2: bool, peer: IpAddr, closed: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let pace = Pace::new(&self.limits, http2, self.places.clone());
        let io = TokioIo::new(Paced::new(stream, pace.clone()));
        let service = service_fn(|request: Request<Incoming>| {
            let (busy, hall) = (pace.request(), self.clone());
            let request = request.map(|body| Watched { body, watch: Sent(pace.clone()) });
            async move {
                let mut response = hall.answer(request, peer).await;
                if http2 {
                    // A word of HTTP/1.1; here the connection itself says when it ends.
                    response.headers_mut().remove(header::CONNECTION);
                }
                Ok::<_, std::convert::Infallible>(response.map(|body| fetched(body, busy)))
            }
        });
        let fault = if http2 {
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(ASK_EVERY)
                .keep_alive_timeout(ASK_EVERY)
                .max_concurrent_streams(MOST_STREAMS)
                .max_header_list_size(self.limits.header_bytes as u32)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .serve_connection(io, service);
            drive(connection, &pace, closed).await
        } else {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(None)
                .max_headers(self.limits.header_count)
                .max_buf_size(self.limits.header_bytes)
                .serve_connection(io, service);
            drive(connection, &pace, closed).await
        };
        if let Some(reason) = fault {
            self.refuse(peer, reason);
        }
    }

    async fn answer(&self, mut request: Request<Watched<Incoming, Sent>>, peer: IpAddr) -> Response {
        let addresses = self.door.addresses.load();
        let client = addresses.client(peer, request.headers());
        // Asked again for every request: the lists may have changed since the connection was made.
        if !addresses.admits(client) {
            self.door.connections.refuse(Reason::Address);
            tracing::info!(%client, "refused: not allowed by server.allow and server.deny");
            return not_admitted(request.version());
        }
        drop(addresses);
        request.extensions_mut().insert(Peer(client));
        let Ok(response) = self.router.clone().oneshot(path::normalise(request)).await;
        if response.status() == StatusCode::REQUEST_TIMEOUT {
            // Its body did not come.
            self.refuse(client, Reason::Body);
        }
        response
    }
}

/// Between two looks at a new connection, when the server closes.
const GLANCE: Duration = Duration::from_millis(5);

/// Serves a connection to its end, or until its client has had its time; then why, if the client gave a reason. One that
/// only went away gave none: the request's own line is in the log.
async fn drive(
    connection: impl GracefulConnection<Error = hyper::Error>,
    pace: &Pace,
    mut closed: watch::Receiver<bool>,
) -> Option<Reason> {
    let mut connection = pin!(connection);
    let (mut told, mut awaited) = (false, false);
    loop {
        // In this order: a request that has come is read before the connection hears that the server closes, or it would
        // end without an answer.
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                return ended.err().and_then(|error| pace.fault().or_else(|| Reason::of(&error)));
            }
            () = pace.late() => break,
            () = closing(&mut closed), if !told => {
                told = true;
                pace.close();
                match pace.spoken() {
                    true => connection.as_mut().graceful_shutdown(),
                    false => awaited = true,
                }
            }
            // Its first request may be on its way: whoever has just connected takes silence for a failure.
            () = tokio::time::sleep(GLANCE), if awaited => {
                if pace.spoken() {
                    awaited = false;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
    let fault = pace.fault();
    // Who did nothing wrong is told, and may be about to ask again.
    if fault.is_none() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(LAST, connection).await;
    }
    fault
}

async fn closing(closed: &mut watch::Receiver<bool>) {
    // Without a sender the loop is gone, which is the same.
    let _ = closed.wait_for(|closed| *closed).await;
}

/// The first byte that the client sends in time; `None`: it went away. At shutdown its time is short.
async fn first_byte(
    stream: &TcpStream,
    limit: Duration,
    closed: &mut watch::Receiver<bool>,
) -> Result<Option<u8>, Reason> {
    let peek = async {
        let mut first = [0];
        matches!(stream.peek(&mut first).await, Ok(1)).then_some(first[0])
    };
    let mut peek = pin!(timeout(limit, peek));
    tokio::select! {
        peeked = &mut peek => peeked.map_err(|_| Reason::FirstByte),
        () = closing(closed) => Ok(timeout(LAST, peek).await.ok().and_then(Result::ok).flatten()),
    }
}

/// In both dialects at once: what it would have asked is not looked at.
fn not_admitted(version: Version) -> Response {
    let text = "This address may not call here.";
    let body = json!({
        "error": {"message": text, "type": "invalid_request_error", "param": null, "code": "address_not_allowed"},
        "detail": text,
    });
    let mut response = (StatusCode::FORBIDDEN, axum::Json(body)).into_response();
    if version < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    }
    response.map(Body::new)
}

/// What a client reads that forgot the s.
const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\
                         content-length: 62\r\n\r\nThis port speaks TLS: use https:// where you have used http://";
