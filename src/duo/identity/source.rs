//! Where public keys come from: an identity provider's discovery document names the place of its keys, and its issuer.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::{StatusCode, Url};
use serde_json::Value;

use super::claims::brief;
use super::set::{self, PublicKey, Set};
use crate::outbound::{Base, Limits, Outbound, OutboundError};

/// Of each answer: a set of 32 keys has some 20 KiB.
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    idle: Duration::from_secs(5),
    total: Some(Duration::from_secs(5)),
    bytes: 256 << 10,
};

const DISCOVERY: &str = "/.well-known/openid-configuration";
/// The second place of GitLab's keys, of newer versions.
const CLOUD_CONNECTOR: &str = "/-/cloud_connector/keys";

/// Which provider this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    GitLab,
    /// GitLab's shop, whose tokens instances carry that are not cut off from the internet.
    Portal,
}

impl Provider {
    pub fn name(self) -> &'static str {
        match self {
            Provider::GitLab => "GitLab",
            Provider::Portal => "the customers portal",
        }
    }
}

/// Why keys could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    #[error("{url} answered {status}")]
    Status { url: Url, status: StatusCode },
    #[error("{url} is no discovery document")]
    NoDocument { url: Url },
    #[error("{url} names issuer {issuer}, which is not at {base}")]
    OtherPlace { url: Url, issuer: String, base: Base },
    #[error("{url} is no set of keys")]
    NoSet { url: Url },
    #[error("{url} holds no RSA key for signatures")]
    Empty { url: Url },
}

impl SourceError {
    /// Whether asking the same host for another path is a waste of time.
    fn hopeless(&self) -> bool {
        matches!(
            self,
            Self::Outbound(
                OutboundError::Time { .. }
                    | OutboundError::Unreachable { .. }
                    | OutboundError::Elsewhere { .. }
            )
        )
    }
}

/// One provider.
pub struct Source {
    pub provider: Provider,
    outbound: Outbound,
    /// Whether it was told that keys are fetched from another host than the document names.
    told: AtomicBool,
}

/// What a provider published.
pub struct Published {
    pub set: Set,
    /// Why its own name for itself is not in the set.
    pub problem: Option<SourceError>,
}

/// What a discovery document says.
struct Document {
    issuer: Option<String>,
    keys: Url,
}

impl Source {
    pub fn new(provider: Provider, base: Base, authorities: Option<&Path>) -> Result<Self, OutboundError> {
        let outbound = Outbound::new(base, authorities, LIMITS)?;
        Ok(Self { provider, outbound, told: AtomicBool::new(false) })
    }

    pub fn base(&self) -> &Base {
        self.outbound.base()
    }

    /// The keys as they are published now: at least one.
    pub async fn fetch(&self) -> Result<Published, SourceError> {
        // The issuer is what the instance says of itself: it may be reached by another name than its users know.
        let mut issuers = vec![self.base().to_string()];
        let (failure, documented) = match self.discover().await {
            Ok(document) => {
                issuers.extend(document.issuer);
                match self.keys(document.keys).await {
                    Ok(keys) => return Ok(Published { set: Set { keys, issuers }, problem: None }),
                    Err(e) => (e, true),
                }
            }
            Err(e) => (e, false),
        };
        if self.provider == Provider::Portal || failure.hopeless() {
            return Err(failure);
        }
        // What is wrong with the usual place is worth more than that an old GitLab lacks this one.
        match self.keys(self.base().join(CLOUD_CONNECTOR)).await {
            Ok(keys) => {
                let problem = Some(failure).filter(|_| !documented);
                Ok(Published { set: Set { keys, issuers }, problem })
            }
            Err(_) => Err(failure),
        }
    }

    /// The discovery document, below the relative URL root or at the host's root.
    async fn discover(&self) -> Result<Document, SourceError> {
        let base = self.base();
        let failure = match self.document(base.join(DISCOVERY)).await {
            Ok(document) => return Ok(document),
            Err(e) if base.root().is_empty() || e.hopeless() => return Err(e),
            Err(e) => e,
        };
        let url = base.at_host(DISCOVERY);
        let document = self.document(url.clone()).await.map_err(|_| failure)?;
        // At the root of the host another application may live, which is not whose tokens are taken.
        match document.issuer {
            Some(issuer)
                if Url::parse(&issuer).is_ok_and(|i| i.path().trim_end_matches('/') == base.root()) =>
            {
                Ok(Document { issuer: Some(issuer), ..document })
            }
            issuer => {
                Err(SourceError::OtherPlace { url, issuer: brief(&Value::from(issuer)), base: base.clone() })
            }
        }
    }

    async fn document(&self, url: Url) -> Result<Document, SourceError> {
        let text = self.get(&url).await?;
        let document: Value = serde_json::from_slice(&text).unwrap_or_default();
        let field = |name: &str| document.get(name).and_then(Value::as_str);
        let keys = field("jwks_uri").and_then(|keys| Url::parse(keys).ok());
        let Some(keys) = keys else { return Err(SourceError::NoDocument { url }) };
        let issuer = field("issuer").filter(|issuer| !issuer.is_empty()).map(str::to_owned);
        Ok(Document { issuer, keys: self.here(keys) })
    }

    /// The place of the keys on the configured host. The document names it as the instance's users reach it, which
    /// may be another host, and no other host is connected to.
    fn here(&self, keys: Url) -> Url {
        if self.base().reaches(&keys) {
            return keys;
        }
        let here = self.base().at_host(keys.path());
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::info!(
                named = keys.as_str(),
                fetched = here.as_str(),
                "keys are on another host by name"
            );
        }
        here
    }

    async fn keys(&self, url: Url) -> Result<Vec<PublicKey>, SourceError> {
        let text = self.get(&url).await?;
        match set::read(&text) {
            None => Err(SourceError::NoSet { url }),
            Some(keys) if keys.is_empty() => Err(SourceError::Empty { url }),
            Some(keys) => Ok(keys),
        }
    }

    async fn get(&self, url: &Url) -> Result<Vec<u8>, SourceError> {
        let answer = self.outbound.get(url.clone()).await?;
        match answer.status() {
            StatusCode::OK => Ok(answer.bytes().await?),
            status => Err(SourceError::Status { url: url.clone(), status }),
        }
    }
}
