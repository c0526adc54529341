//! The settings of the front door: where it is, who may come to it, how it proves who it is, and how long it waits.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::keys::size;
use super::{ConfigError, Layers};
use crate::server::Limits;
use crate::server::addresses::{Addresses, Networks};
use crate::server::tls::TlsFiles;

/// Checked; the files of TLS are not read yet.
#[derive(Clone, Debug)]
pub struct Front {
    /// `None`: no TLS.
    pub tls: Option<TlsFiles>,
    pub addresses: Addresses,
    /// Whom the listener of the metrics takes.
    pub metrics: Addresses,
    pub limits: Limits,
    /// A step that takes longer is hung.
    pub step: Duration,
}

impl Front {
    pub fn of(layers: &Layers) -> Result<Self, ConfigError> {
        let seconds = |name| layers.number(name).map(Duration::from_secs);
        let networks = |name: &str| layers.parse::<Networks>(name);
        let bytes = |name| size(layers.text(name)).expect("bug: checked by its row") as usize;
        let (body, bodies) = (bytes("server.max_body"), bytes("server.max_bodies"));
        if body > bodies {
            let (body, bodies) = (layers.text("server.max_body"), layers.text("server.max_bodies"));
            let what = format!(
                "server.max_body is {body}, and all bodies together may be {bodies} (server.max_bodies)"
            );
            let fix = "raise server.max_bodies to a few times server.max_body, or lower server.max_body";
            return Err(ConfigError::new(layers.origin("server.max_body"), what, fix));
        }
        let proxies = networks("server.trusted_proxies")?;
        Ok(Self {
            tls: tls(layers)?,
            addresses: Addresses {
                allow: networks("server.allow")?,
                deny: networks("server.deny")?,
                proxies: proxies.clone(),
            },
            metrics: Addresses {
                allow: networks("server.metrics_allow")?,
                deny: networks("server.metrics_deny")?,
                proxies,
            },
            limits: Limits {
                connections: layers.number("server.connections")? as usize,
                per_address: layers.number("server.connections_per_address")? as usize,
                first_byte: seconds("server.first_byte_timeout")?,
                headers: seconds("server.header_timeout")?,
                body: seconds("server.body_timeout")?,
                idle: seconds("server.idle_timeout")?,
                unread: seconds("server.unread_timeout")?,
                header_count: layers.number("server.max_headers")? as usize,
                header_bytes: bytes("server.max_header_bytes"),
                body_bytes: body,
                bodies,
                drain_delay: seconds("server.drain_delay")?,
                drain: seconds("server.drain")?,
            },
            step: seconds("server.step_timeout")?,
        })
    }
}

/// The addresses of the API.
pub fn listen(layers: &Layers) -> Vec<SocketAddr> {
    let address = |text: &str| text.parse().expect("bug: checked by its row");
    layers.list("server.listen").map(address).collect()
}

fn tls(layers: &Layers) -> Result<Option<TlsFiles>, ConfigError> {
    let path = |name| Some(layers.text(name)).filter(|path| !path.is_empty()).map(PathBuf::from);
    let missing = |given: &str, missing: &str| {
        let what = format!("`{given}` is set and `{missing}` is not");
        ConfigError::new(layers.origin(given), what, format!("set `{missing}` too, or leave both out"))
    };
    match (path("server.tls_cert"), path("server.tls_key"), path("server.client_ca")) {
        (Some(certificate), Some(key), clients) => {
            Ok(Some(TlsFiles { certificate, key, clients, origin: layers.origin("server.tls_cert").clone() }))
        }
        (Some(_), None, _) => Err(missing("server.tls_cert", "server.tls_key")),
        (None, Some(_), _) => Err(missing("server.tls_key", "server.tls_cert")),
        (None, None, Some(_)) => Err(missing("server.client_ca", "server.tls_cert")),
        (None, None, None) => Ok(None),
    }
}
