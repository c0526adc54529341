//! TLS (step 1 in the life of a request): the certificate that is shown, and whose certificates are asked for.
//!
//! TLS 1.3 and 1.2 with aws-lc-rs and its default suites. A reload reads all files anew and swaps them together; connections
//! that stand keep what they were made with.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use arc_swap::ArcSwap;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::{ConfigError, Origin};

/// Protocols inside TLS, best first. Over cleartext there is HTTP/1.1 alone: guessing between the two is what lets half a
/// preface wait forever.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

const DAY: i64 = 86_400;

/// Where the parts of TLS are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Who signs the certificates that callers must have; `None`: they need none.
    pub clients: Option<PathBuf>,
    pub origin: Origin,
}

/// What keeps TLS from being used, with the file that it is about.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{0} cannot be read: {1}")]
    Read(&'static str, io::Error),
    #[error("{0} is not in PEM form: {1}")]
    Pem(&'static str, String),
    #[error("there is no {0} in it")]
    Empty(&'static str),
    #[error("the key does not belong to the certificate")]
    Mismatch,
    #[error("{0} cannot be used: {1}")]
    Unusable(&'static str, String),
}

impl TlsError {
    fn fix(&self) -> &'static str {
        match self {
            TlsError::Read(..) => "check the path and its rights; the server's user must be able to read it",
            TlsError::Pem(..) => "write the whole file anew, from -----BEGIN to -----END",
            TlsError::Empty("private key") => {
                "use a key without a passphrase: `openssl pkey -in KEY -out PLAIN` writes one"
            }
            TlsError::Empty(_) => "it must hold a block that begins with -----BEGIN CERTIFICATE-----",
            TlsError::Mismatch => {
                "put the server's own certificate first in server.tls_cert, and its key into server.tls_key"
            }
            TlsError::Unusable(..) => {
                "make the certificate and its key anew: RSA from 2048 bits, P-256, P-384 or Ed25519"
            }
        }
    }

    fn at(self, path: &Path) -> ConfigError {
        ConfigError::new(&Origin::File(path.to_owned()), format!("TLS: {self}"), self.fix())
    }
}

/// What the certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Seconds since 1970.
    pub from: i64,
    pub until: i64,
}

impl Certificate {
    /// What clients will not like about it, `now` seconds after 1970.
    pub fn warning(&self, now: i64) -> Option<String> {
        match self.until - now {
            left if left < 0 => Some(format!("the certificate expired {} days ago", -left / DAY)),
            _ if self.from > now => {
                Some(format!("the certificate is not valid yet, for {} days", (self.from - now) / DAY))
            }
            left if left < 30 * DAY => Some(format!("the certificate expires in {} days", left / DAY)),
            _ => None,
        }
    }
}

/// Everything that was read from the files, checked.
#[derive(Clone)]
pub struct Material {
    config: Arc<ServerConfig>,
    pub certificate: Certificate,
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Material {
    /// An expired certificate is taken, with a warning: a server that does not start is no better for anybody.
    pub fn read(files: &TlsFiles) -> Result<Self, ConfigError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error: TlsError| error.at(&path)
        };
        let chain = certificates(&files.certificate).map_err(at(&files.certificate))?;
        let certificate = dates(&chain[0]).map_err(at(&files.certificate))?;
        let key = private_key(&files.key).map_err(at(&files.key))?;
        let clients = match &files.clients {
            Some(path) => Some(verifier(path).map_err(at(path))?),
            None => None,
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("bug: the provider has suites for both versions");
        let builder = match clients {
            Some(clients) => builder.with_client_cert_verifier(clients),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => TlsError::Mismatch.at(&files.key),
            e => TlsError::Unusable("the certificate and its key", e.to_string()).at(&files.certificate),
        })?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        let material = Self { config: Arc::new(config), certificate };
        let now = UNIX_EPOCH.elapsed().map_or(0, |now| now.as_secs() as i64);
        if let Some(warning) = material.certificate.warning(now) {
            tracing::warn!("{}: {warning}; clients refuse it then", files.certificate.display());
        }
        Ok(material)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let what = "the certificate";
    let text = std::fs::read(path).map_err(|e| TlsError::Read(what, e))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|e: pem::Error| TlsError::Pem(what, e.to_string()))?;
    match chain.is_empty() {
        true => Err(TlsError::Empty("certificate")),
        false => Ok(chain),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let what = "the private key";
    let text = std::fs::read(path).map_err(|e| TlsError::Read(what, e))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|e| match e {
        pem::Error::NoItemsFound => TlsError::Empty("private key"),
        // The error may quote a line, and a line of this file is a secret.
        _ => TlsError::Pem(what, "a block in it is cut or damaged".to_owned()),
    })
}

fn verifier(path: &Path) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let what = "the authority of clients";
    let unusable = |e: String| TlsError::Unusable(what, e);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| unusable(e.to_string()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(aws_lc_rs::default_provider()))
        .build()
        .map_err(|e| unusable(e.to_string()))
}

fn dates(certificate: &CertificateDer<'_>) -> Result<Certificate, TlsError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|e| TlsError::Unusable("the certificate", e.to_string()))?;
    let validity = parsed.validity();
    Ok(Certificate { from: validity.not_before.timestamp(), until: validity.not_after.timestamp() })
}

/// What a listener speaks TLS with; clones are the same.
#[derive(Clone, Debug)]
pub struct Tls(Arc<ArcSwap<Material>>);

impl Tls {
    pub fn new(material: Material) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(material)))
    }

    /// For connections from now on.
    pub fn swap(&self, material: Material) {
        self.0.store(Arc::new(material));
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        self.0.load().config.clone().into()
    }

    /// The certificate that is shown now.
    pub fn certificate(&self) -> Certificate {
        self.0.load().certificate.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_clients_refuse_or_soon_will_is_told() {
        let certificate = Certificate { from: 100 * DAY, until: 200 * DAY };
        for (day, words) in [
            (99, Some("not valid yet")),
            (101, None),
            (169, None),
            (171, Some("expires in 29 days")),
            (203, Some("expired 3 days ago")),
        ] {
            let said = certificate.warning(day * DAY);
            match words {
                Some(words) => {
                    assert!(said.as_ref().is_some_and(|said| said.contains(words)), "{day}: {said:?}")
                }
                None => assert_eq!(said, None, "{day}"),
            }
        }
    }
}
