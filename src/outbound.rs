//! Connections to the outside: the only place that makes an HTTP client.
//!
//! A client belongs to one configured base URL and reaches nothing else: scheme, host and port of every request are
//! compared with it, redirects are not followed, and proxies that the environment names are not used. What comes back
//! has limits in bytes and in time.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, StatusCode, Url};
use url::Host;

/// A base URL from the settings: `http` or `https`, a host, perhaps a port and a path, and nothing else. A slash at
/// its end makes no difference.
#[derive(Clone, PartialEq, Eq)]
pub struct Base(Url);

/// Why a text is no base URL; reads after "it must be".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BaseError {
    #[error("a URL with its scheme, like https://gitlab.example.com")]
    Scheme,
    #[error("a URL with a host, like https://gitlab.example.com")]
    Host,
    #[error("a URL without a user name and a password")]
    User,
    #[error("a URL without `?` and `#`")]
    Query,
}

impl FromStr for Base {
    type Err = BaseError;

    fn from_str(text: &str) -> Result<Self, BaseError> {
        if !text.starts_with("http://") && !text.starts_with("https://") {
            return Err(BaseError::Scheme);
        }
        let mut url = Url::parse(text).map_err(|_| BaseError::Host)?;
        if !url.has_host() {
            return Err(BaseError::Host);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(BaseError::User);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(BaseError::Query);
        }
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        Ok(Self(url))
    }
}

impl Base {
    /// The path below which this base lies: empty, or like `/gitlab`.
    pub fn root(&self) -> &str {
        self.0.path().trim_end_matches('/')
    }

    /// The base with a path below it; `path` begins with a slash.
    pub fn join(&self, path: &str) -> Url {
        self.at_host(&format!("{}{path}", self.root()))
    }

    /// The base's host with another path.
    pub fn at_host(&self, path: &str) -> Url {
        let mut url = self.0.clone();
        url.set_path(path);
        url
    }

    /// Whether nobody on the way can read what is sent: TLS, or this very host.
    pub fn guarded(&self) -> bool {
        let here = match self.0.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        here || self.0.scheme() == "https"
    }

    /// Whether a URL has this base's scheme, host and port.
    pub fn reaches(&self, url: &Url) -> bool {
        url.scheme() == self.0.scheme()
            && url.host() == self.0.host()
            && url.port_or_known_default() == self.0.port_or_known_default()
            && url.username().is_empty()
            && url.password().is_none()
    }
}

/// As it was configured, without the slash at its end.
impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl fmt::Debug for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What an answer may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Until the connection stands, TLS included.
    pub connect: Duration,
    /// Until the headers are there, and between two pieces of the body.
    pub idle: Duration,
    /// For the whole answer; `None` where a body is streamed for as long as it flows.
    pub total: Option<Duration>,
    /// Bytes of the body.
    pub bytes: usize,
}

/// Why there is no answer. None of them repeats what was sent.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    #[error("{} cannot be read: {error}", path.display())]
    Authority { path: PathBuf, error: io::Error },
    #[error("{} holds no certificates in PEM form", path.display())]
    NoCertificate { path: PathBuf },
    #[error("TLS cannot be prepared: {0}")]
    Tls(String),
    #[error("{url} is not below {base}, and nothing else is connected to")]
    Elsewhere { url: String, base: Base },
    #[error("{base} did not answer in time")]
    Time { base: Base },
    #[error("{base} cannot be reached: {problem}")]
    Unreachable { base: Base, problem: String },
    #[error("{base} redirects to {to}; redirects are not followed")]
    Redirect { base: Base, to: String },
    #[error("{base} answered more than {limit} bytes")]
    TooLarge { base: Base, limit: usize },
    #[error("the answer of {base} was cut: {problem}")]
    Cut { base: Base, problem: String },
}

/// A client for one base URL.
#[derive(Clone, Debug)]
pub struct Outbound {
    client: Client,
    base: Base,
    limits: Limits,
}

impl Outbound {
    /// `authorities` is a file of certificates in PEM form that are trusted beside the system's.
    pub fn new(base: Base, authorities: Option<&Path>, limits: Limits) -> Result<Self, OutboundError> {
        let authorities: Vec<&Path> = authorities.into_iter().collect();
        Self::built(base, None, &authorities, limits)
    }

    /// The same to a known address, whatever its name leads to elsewhere.
    pub fn at(
        base: Base,
        address: SocketAddr,
        authorities: &[&Path],
        limits: Limits,
    ) -> Result<Self, OutboundError> {
        Self::built(base, Some(address), authorities, limits)
    }

    fn built(
        base: Base,
        address: Option<SocketAddr>,
        authorities: &[&Path],
        limits: Limits,
    ) -> Result<Self, OutboundError> {
        let mut builder = Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .referer(false)
            .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(limits.connect)
            .read_timeout(limits.idle);
        if let Some(total) = limits.total {
            builder = builder.timeout(total);
        }
        if base.0.scheme() == "http" {
            // No certificate is ever looked at: a host without the system's own must not be an error.
            builder = builder.tls_certs_only([]);
        } else {
            for path in authorities {
                builder = builder.tls_certs_merge(certificates(path)?);
            }
        }
        if let (Some(address), Some(host)) = (address, base.0.host_str()) {
            builder = builder.resolve(host, address);
        }
        let client = builder.build().map_err(|e| OutboundError::Tls(chain(&e)))?;
        Ok(Self { client, base, limits })
    }

    pub fn base(&self) -> &Base {
        &self.base
    }

    pub async fn get(&self, url: Url) -> Result<Answer, OutboundError> {
        self.get_with(url, HeaderMap::new()).await
    }

    pub async fn get_with(&self, url: Url, headers: HeaderMap) -> Result<Answer, OutboundError> {
        self.send(self.client.get(self.own(url)?).headers(headers)).await
    }

    /// Sends JSON. The answer's body comes piece by piece.
    pub async fn post(&self, url: Url, mut headers: HeaderMap, json: Bytes) -> Result<Answer, OutboundError> {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.send(self.client.post(self.own(url)?).headers(headers).body(json)).await
    }

    fn own(&self, url: Url) -> Result<Url, OutboundError> {
        match self.base.reaches(&url) {
            true => Ok(url),
            false => Err(OutboundError::Elsewhere {
                url: url.origin().ascii_serialization(),
                base: self.base.clone(),
            }),
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer, OutboundError> {
        let response = request.send().await.map_err(|e| self.failed(&e))?;
        if response.status().is_redirection() {
            let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or("nowhere");
            let to = to.chars().filter(|c| !c.is_control()).take(200).collect();
            return Err(OutboundError::Redirect { base: self.base.clone(), to });
        }
        Ok(Answer { outbound: self.clone(), response, left: self.limits.bytes })
    }

    fn failed(&self, error: &reqwest::Error) -> OutboundError {
        let base = self.base.clone();
        // A connection that does not stand in time is one that cannot be made.
        match error.is_timeout() && !error.is_connect() {
            true => OutboundError::Time { base },
            false => OutboundError::Unreachable { base, problem: chain(error) },
        }
    }
}

/// The certificates of a file, of which there must be some.
fn certificates(path: &Path) -> Result<Vec<Certificate>, OutboundError> {
    let text =
        std::fs::read(path).map_err(|error| OutboundError::Authority { path: path.to_owned(), error })?;
    let found = Certificate::from_pem_bundle(&text).unwrap_or_default();
    match found.is_empty() {
        true => Err(OutboundError::NoCertificate { path: path.to_owned() }),
        false => Ok(found),
    }
}

/// An error with its causes, which is where "certificate has expired" stands. reqwest's own first sentence only
/// repeats the URL.
fn chain(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Layers often repeat the text of the layer below.
        if causes.last().is_none_or(|last: &String| !last.contains(&text)) {
            causes.push(text);
        }
        cause = error.source();
    }
    match causes.is_empty() {
        true => "the request failed".to_owned(),
        false => causes.join(": "),
    }
}

/// An answer whose headers are there. Dropping it closes the connection.
#[derive(Debug)]
pub struct Answer {
    outbound: Outbound,
    response: reqwest::Response,
    left: usize,
}

impl Answer {
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next piece of the body; `None` at its end.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, OutboundError> {
        let base = || self.outbound.base.clone();
        let piece = self.response.chunk().await.map_err(|e| match e.is_timeout() {
            true => OutboundError::Time { base: base() },
            false => OutboundError::Cut { base: base(), problem: chain(&e) },
        })?;
        let Some(piece) = piece else { return Ok(None) };
        let limit = self.outbound.limits.bytes;
        self.left = match self.left.checked_sub(piece.len()) {
            Some(left) => left,
            None => return Err(OutboundError::TooLarge { base: base(), limit }),
        };
        Ok(Some(piece))
    }

    /// The whole body.
    pub async fn bytes(mut self) -> Result<Vec<u8>, OutboundError> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece().await? {
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(text: &str) -> Base {
        text.parse().unwrap()
    }

    #[test]
    fn a_base_url_has_a_scheme_and_a_host_and_nothing_behind_its_path() {
        for (text, error) in [
            ("", BaseError::Scheme),
            ("gitlab.example.com", BaseError::Scheme),
            ("gitlab.example.com:443", BaseError::Scheme),
            ("ftp://gitlab.example.com", BaseError::Scheme),
            ("file:///etc/passwd", BaseError::Scheme),
            ("https://", BaseError::Host),
            ("https://gitlab example.com", BaseError::Host),
            ("https://me:secret@gitlab.example.com", BaseError::User),
            ("https://gitlab.example.com?x=1", BaseError::Query),
            ("https://gitlab.example.com/#x", BaseError::Query),
        ] {
            assert_eq!(text.parse::<Base>(), Err(error), "{text}");
        }
        for text in
            ["https://gitlab.example.com", "https://gitlab.example.com/", "https://GitLab.example.com:443"]
        {
            assert_eq!(base(text).to_string(), "https://gitlab.example.com", "{text}");
            assert_eq!(base(text).join("/a").as_str(), "https://gitlab.example.com/a");
        }
        let below = base("http://10.0.0.1:8080/gitlab/");
        assert_eq!(below.root(), "/gitlab");
        assert_eq!(below.join("/a/b").as_str(), "http://10.0.0.1:8080/gitlab/a/b");
        assert_eq!(below.at_host("/a/b").as_str(), "http://10.0.0.1:8080/a/b");
    }

    #[test]
    fn only_tls_and_this_host_keep_what_is_sent_to_themselves() {
        for text in [
            "https://x.example",
            "http://127.0.0.1:1",
            "http://127.9.9.9",
            "http://[::1]:1",
            "http://localhost",
        ] {
            assert!(base(text).guarded(), "{text}");
        }
        for text in ["http://x.example", "http://10.0.0.1", "http://[::2]", "http://localhost.x.example"] {
            assert!(!base(text).guarded(), "{text}");
        }
    }

    #[test]
    fn only_the_same_scheme_host_and_port_are_reached() {
        let site = base("https://gitlab.example.com/gitlab");
        let reached = |text: &str| site.reaches(&Url::parse(text).unwrap());
        assert!(reached("https://gitlab.example.com/anything?x=1"));
        assert!(reached("https://GITLAB.example.com:443/"));
        for other in [
            "http://gitlab.example.com/",
            "https://gitlab.example.com:8443/",
            "https://gitlab.example.com.evil.example/",
            "https://gitlab.example.com@evil.example/",
            "https://user@gitlab.example.com/",
            "https://127.0.0.1/",
            "file:///etc/passwd",
        ] {
            assert!(!reached(other), "{other}");
        }
    }

    /// Answers each connection with the same bytes.
    fn server(answer: &'static str) -> Base {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(answer.as_bytes());
                // Open for as long as the client waits.
                let _ = stream.read(&mut [0; 1]);
            }
        });
        base(&format!("http://{address}/v1"))
    }

    async fn asked(answer: &'static str) -> Result<Vec<u8>, OutboundError> {
        let idle = Duration::from_millis(300);
        let outbound = Outbound::new(server(answer), None, Limits { idle, ..limits() })?;
        let url = outbound.base().join("/x");
        outbound.post(url, HeaderMap::new(), Bytes::from_static(b"{}")).await?.bytes().await
    }

    #[tokio::test]
    async fn what_comes_back_has_limits_and_redirects_end_there() {
        let answer = asked("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789").await;
        assert_eq!(answer.unwrap(), b"0123456789");
        for (answer, words) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n0123456789a", "more than 10 bytes"),
            ("HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\n\r\n", "redirects to http://169"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n01", "did not answer in time"),
            ("HTTP/1.1 200", "did not answer in time"),
            ("SSH-2.0-OpenSSH_9.2\r\n", "cannot be reached"),
        ] {
            let error = asked(answer).await.unwrap_err().to_string();
            assert!(error.contains(words), "{answer:?}: {error}");
        }
        let outbound = Outbound::new(server(""), None, limits()).unwrap();
        let elsewhere = Url::parse("http://169.254.169.254/latest?key=secret").unwrap();
        let error = outbound.get(elsewhere).await.unwrap_err().to_string();
        assert!(
            error.starts_with("http://169.254.169.254 is not below") && !error.contains("secret"),
            "{error}"
        );
    }

    fn limits() -> Limits {
        let time = Duration::from_secs(30);
        Limits { connect: time, idle: time, total: Some(time), bytes: 10 }
    }

    #[test]
    fn a_file_of_authorities_must_hold_some() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let site = base("https://gitlab.example.com");
        let error = |path: &Path| Outbound::new(site.clone(), Some(path), limits()).unwrap_err().to_string();
        assert!(error(&path).contains("cannot be read"));
        std::fs::write(&path, "hello").unwrap();
        assert!(error(&path).contains("holds no certificates"));
    }
}
