//! A certificate authority of the tests' own, and clients that trust it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hearth::config::Origin;
use hearth::server::tls::TlsFiles;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// What every certificate of a server is for.
const NAME: &str = "hearth.test";

/// Makes certificates, and writes them where a server reads them.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

/// A certificate and its key, in PEM form.
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, directory: tempfile::tempdir().unwrap() };
        std::fs::write(authority.path("ca.pem"), authority.issuer.pem()).unwrap();
        authority.install(&authority.server(1));
        authority
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A certificate for the server; `serial` tells two apart.
    pub fn server(&self, serial: u64) -> Pair {
        let mut parameters = CertificateParams::new([NAME.to_owned()]).unwrap();
        parameters.serial_number = Some(serial.into());
        self.signed(parameters)
    }

    /// A certificate for a client.
    pub fn client(&self) -> Pair {
        let mut parameters = CertificateParams::new(["gitlab".to_owned()]).unwrap();
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.signed(parameters)
    }

    fn signed(&self, parameters: CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// Puts a certificate where the server reads its own.
    pub fn install(&self, pair: &Pair) {
        std::fs::write(self.path("server.pem"), &pair.certificate).unwrap();
        std::fs::write(self.path("server.key"), &pair.key).unwrap();
    }

    /// What the server reads; `clients`: it asks for certificates of this authority.
    pub fn files(&self, clients: bool) -> TlsFiles {
        TlsFiles {
            certificate: self.path("server.pem"),
            key: self.path("server.key"),
            clients: clients.then(|| self.path("ca.pem")),
            origin: Origin::Default,
        }
    }

    /// A client that trusts this authority and nobody else.
    pub fn trusting(&self, protocols: &[&str], own: Option<&Pair>) -> Arc<ClientConfig> {
        trusting(&self.path("ca.pem"), protocols, own)
    }
}

pub fn trusting(authority: &Path, protocols: &[&str], own: Option<&Pair>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// A connection over TLS.
pub struct Secure(pub StreamOwned<ClientConnection, TcpStream>);

impl Secure {
    pub fn open(address: SocketAddr, config: &Arc<ClientConfig>) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let name = NAME.try_into().unwrap();
        let connection = ClientConnection::new(config.clone(), name).unwrap();
        let mut secure = StreamOwned::new(connection, stream);
        while secure.conn.is_handshaking() {
            secure.conn.complete_io(&mut secure.sock)?;
        }
        Ok(Self(secure))
    }

    pub fn protocol(&self) -> Option<&[u8]> {
        self.0.conn.alpn_protocol()
    }

    /// The serial number of the server's certificate.
    pub fn serial(&self) -> u64 {
        use x509_parser::prelude::{FromDer, X509Certificate};
        let chain = self.0.conn.peer_certificates().unwrap();
        let (_, certificate) = X509Certificate::from_der(&chain[0]).unwrap();
        certificate.tbs_certificate.serial.try_into().unwrap()
    }

    /// Sends, and reads to the end of the connection.
    pub fn ask(mut self, request: &[u8]) -> std::io::Result<String> {
        self.0.write_all(request)?;
        self.0.flush()?;
        let mut reply = String::new();
        self.0.read_to_string(&mut reply)?;
        Ok(reply)
    }
}
