//! The certificate that the server shows.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::UNIX_EPOCH;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Finding, Verdict};
use crate::config::Settings;
use crate::server::tls::Material;

pub fn tls(settings: &Settings) -> Finding {
    const CHECK: &str = "tls";
    let Some(files) = &settings.front.tls else {
        return match settings.listen.iter().all(|listen| listen.ip().is_loopback()) {
            true => Finding::new(CHECK, Verdict::Note, "none, and only this machine reaches the server"),
            false => Finding::warns(
                CHECK,
                "none: prompts, code, keys and tokens cross the network in the clear",
                "set server.tls_cert and server.tls_key, or let a proxy on this machine end TLS",
            ),
        };
    };
    let material = match Material::read(files) {
        Ok(material) => material,
        Err(e) => {
            return Finding::fails(CHECK, format!("{} ({})", e.what, e.origin), e.fix)
                .effect("the server does not start, or a reload changes nothing");
        }
    };
    let names = names(&files.certificate);
    let shown = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
    let now = UNIX_EPOCH.elapsed().map_or(0, |now| now.as_secs() as i64);
    match material.certificate.warning(now) {
        Some(warning) => Finding::warns(
            CHECK,
            format!("{warning} (it is for {shown})"),
            "put a new one in its place, then `hearth reload`",
        )
        .effect("GitLab and the editors refuse an expired certificate"),
        None if names.is_empty() => Finding::warns(
            CHECK,
            "the certificate has no subject alternative name",
            "have it made with the name under which GitLab and the editors know this server",
        )
        .effect("clients of today refuse it, whatever its common name says"),
        None => {
            let days = (material.certificate.until - now) / 86_400;
            Finding::ok(CHECK, format!("a certificate for {shown}, good for {days} days"))
        }
    }
}

/// The names and addresses in the server's own certificate, the first of the file.
pub fn names(path: &Path) -> Vec<String> {
    let Ok(der) = CertificateDer::from_pem_file(path) else { return Vec::new() };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(text).collect()
}

/// A name under which the server's certificate is good, for a caller that connects to its address.
pub fn host(path: &Path, address: SocketAddr) -> String {
    let names = names(path);
    let own = address.ip().to_string();
    match names.iter().find(|name| **name == own).or(names.first()) {
        Some(name) if name.contains(':') => format!("[{name}]"),
        Some(name) => name.replacen('*', "hearth", 1),
        None => own,
    }
}
