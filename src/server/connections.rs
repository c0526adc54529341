//! What became of connections (step 1 in the life of a request): how many stand, and why some were refused or ended before
//! their clients were through. A flood, a scanner and a limit that is too tight look the same to whoever is not let in; here
//! they are told apart.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Why a connection was refused or ended. Who waits for a place is not among them: it waits with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `server.allow` and `server.deny`.
    Address,
    /// `server.connections_per_address`.
    PerAddress,
    /// `server.first_byte_timeout`.
    FirstByte,
    /// Cleartext where TLS is spoken.
    Cleartext,
    /// A handshake that failed.
    Tls,
    /// A handshake that took longer than `server.header_timeout`.
    TlsTimeout,
    /// `server.header_timeout`.
    Headers,
    /// More headers, in number or bytes, than are read.
    HeaderBytes,
    /// Bytes that are no request.
    Malformed,
    /// `server.body_timeout`.
    Body,
    /// An answer that its client did not fetch.
    Unread,
    /// HTTP/2 frames that only cost: streams reset as they are opened, floods of pings and their like.
    Http2,
}

impl Reason {
    const ALL: [Self; 12] = [
        Self::Address,
        Self::PerAddress,
        Self::FirstByte,
        Self::Cleartext,
        Self::Tls,
        Self::TlsTimeout,
        Self::Headers,
        Self::HeaderBytes,
        Self::Malformed,
        Self::Body,
        Self::Unread,
        Self::Http2,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::PerAddress => "per_address",
            Self::FirstByte => "first_byte",
            Self::Cleartext => "cleartext",
            Self::Tls => "tls",
            Self::TlsTimeout => "tls_timeout",
            Self::Headers => "headers",
            Self::HeaderBytes => "header_bytes",
            Self::Malformed => "malformed",
            Self::Body => "body",
            Self::Unread => "unread",
            Self::Http2 => "http2",
        }
    }

    /// Of a connection that hyper ended with an error; `None`: its client went away.
    pub fn of(error: &hyper::Error) -> Option<Self> {
        if error.is_parse_too_large() {
            return Some(Self::HeaderBytes);
        }
        if error.is_parse() {
            return Some(Self::Malformed);
        }
        let cause = std::error::Error::source(error)?.downcast_ref::<h2::Error>()?;
        // Ended by this side, for what the other one did.
        (cause.is_go_away() && cause.is_library()).then_some(Self::Http2)
    }
}

/// What is counted of a listener's connections. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    refused: Family<[(&'static str, &'static str); 1], Counter>,
    open: Gauge,
    limit: Gauge,
}

/// A connection that stands, until it is dropped.
pub struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Connections {
    pub fn refuse(&self, reason: Reason) {
        self.refused.get_or_create(&[("reason", reason.label())]).inc();
    }

    pub fn open(&self) -> Open {
        self.open.inc();
        Open(self.open.clone())
    }

    /// There are so many places.
    pub fn limited_to(&self, places: usize) {
        self.limit.set(places as i64);
    }

    pub fn register(&self, registry: &mut Registry) {
        // Present from the beginning, so that an alert on a change sees the first one.
        for reason in Reason::ALL {
            drop(self.refused.get_or_create(&[("reason", reason.label())]));
        }
        let help = "Connections refused, or ended before their clients were through, by reason";
        registry.register("connections_refused", help, self.refused.clone());
        registry.register("connections_open", "Connections of the API that stand", self.open.clone());
        registry.register("connections_limit", "Connections of the API that may stand", self.limit.clone());
    }
}
