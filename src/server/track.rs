//! What happens to every request: an id, a line in the log when its answer is sent, a limit on the time between the
//! pieces of its body, and an answer even when our own code breaks.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::body::HttpBody;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use futures::FutureExt;
use tokio::sync::Semaphore;
use tracing::Instrument;

use super::accept::Peer;
use super::body::{Shares, Timed, With};
use super::dialect::Dialect;
use super::guard::TokenIssuer;
use super::{Limits, Shared};

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Where callers put the id: GitLab's own services in the first.
const NAMES: [&str; 3] = ["x-request-id", "x-gitlab-correlation-id", "x-correlation-id"];
/// Seconds from the request's headers to the answer's.
const PROCESS_TIME: HeaderName = HeaderName::from_static("x-process-time");

/// The id of a request: the client's own where it is sane, else a new one. In the answer and in every log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub Arc<str>);

impl RequestId {
    /// A new one.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("bug: the system gives no random numbers");
        Self(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>().into())
    }

    fn of(request: &Request) -> Self {
        let given = |name| request.headers().get(name).and_then(|v| v.to_str().ok()).filter(|id| sane(id));
        NAMES.into_iter().find_map(given).map_or_else(Self::random, |id| Self(id.into()))
    }
}

/// Any visible text: correlation ids come in many forms, and no log line can be broken by one.
fn sane(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
}

/// What a caller says of itself, for the log line: under the original gateway's names, cut and free of control
/// characters. Absent headers are absent fields.
#[derive(Default)]
struct Said(Vec<(&'static str, String)>);

impl Said {
    const HEADERS: [(&str, &str); 7] = [
        ("gitlab_version", "x-gitlab-version"),
        ("gitlab_host_name", "x-gitlab-host-name"),
        ("gitlab_instance_id", "x-gitlab-instance-id"),
        ("gitlab_realm", "x-gitlab-realm"),
        ("gitlab_feature_enablement_type", "x-gitlab-feature-enablement-type"),
        ("gitlab_language_server_version", "x-gitlab-language-server-version"),
        ("user_agent", "user-agent"),
    ];

    fn of(headers: &HeaderMap) -> Self {
        let said = Self::HEADERS.iter().filter_map(|(name, header)| {
            let text = headers.get(*header)?.to_str().ok()?;
            Some((*name, text.chars().filter(|c| !c.is_control()).take(100).collect::<String>()))
        });
        let mut said: Vec<_> = said.filter(|(_, text)| !text.is_empty()).collect();
        if let Some(sent) =
            headers.get("x-gitlab-rails-send-start").and_then(|v| v.to_str().ok()?.parse::<f64>().ok())
        {
            let now = std::time::UNIX_EPOCH.elapsed().map_or(0.0, |now| now.as_secs_f64());
            said.push(("duration_request", format!("{:.3}", now - sent)));
        }
        Self(said)
    }
}

impl Said {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, text)| text.as_str())
    }
}

/// A request from its first byte to the last byte of its answer.
struct Flight {
    shared: Shared,
    id: RequestId,
    method: Method,
    /// The row of the table, never the path: paths can hold anything.
    route: String,
    status: StatusCode,
    begin: Instant,
    peer: Option<IpAddr>,
    said: Said,
}

/// A method as a label: a caller may invent others.
fn known(method: &Method) -> &str {
    match *method {
        Method::GET | Method::POST | Method::HEAD | Method::OPTIONS => method.as_str(),
        _ => "other",
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let time = self.begin.elapsed();
        self.shared.health.end();
        self.shared.metrics.request(known(&self.method), &self.route, self.status, time);
        let said = &self.said;
        // A macro's level is fixed where it is written: what failed on our side is a warning.
        macro_rules! told {
            ($level:ident) => {
                tracing::$level!(
                    id = %self.id.0,
                    method = known(&self.method),
                    route = %self.route,
                    status = self.status.as_u16(),
                    ms = time.as_millis() as u64,
                    peer = self.peer.map(tracing::field::display),
                    gitlab_version = said.get("gitlab_version"),
                    gitlab_host_name = said.get("gitlab_host_name"),
                    gitlab_instance_id = said.get("gitlab_instance_id"),
                    gitlab_realm = said.get("gitlab_realm"),
                    gitlab_feature_enablement_type = said.get("gitlab_feature_enablement_type"),
                    gitlab_language_server_version = said.get("gitlab_language_server_version"),
                    user_agent = said.get("user_agent"),
                    duration_request = said.get("duration_request"),
                    token_issuer = said.get("token_issuer"),
                    "request"
                )
            };
        }
        match self.status.is_server_error() {
            true => told!(warn),
            false => told!(info),
        }
    }
}

pub async fn request(State(shared): State<Shared>, mut request: Request, next: Next) -> Response {
    let id = RequestId::of(&request);
    shared.health.begin();
    let mut flight = Flight {
        shared: shared.clone(),
        id: id.clone(),
        method: request.method().clone(),
        route: request.extensions().get::<MatchedPath>().map_or("-", MatchedPath::as_str).to_owned(),
        // What is logged when the client leaves before there is an answer; nginx's code for it.
        status: StatusCode::from_u16(499).expect("bug: 499 is a status"),
        begin: Instant::now(),
        peer: request.extensions().get::<Peer>().map(|peer| peer.0),
        said: Said::of(request.headers()),
    };
    request.extensions_mut().insert(id.clone());
    let span = tracing::info_span!("request", id = %id.0);
    let mut response = next.run(request).instrument(span).await;
    flight.status = response.status();
    let issuer = response.extensions().get::<TokenIssuer>().map_or("", TokenIssuer::name);
    if !issuer.is_empty() {
        flight.said.0.push(("token_issuer", issuer.to_owned()));
    }
    let seconds = format!("{:.6}", flight.begin.elapsed().as_secs_f64());
    if let Ok(value) = HeaderValue::from_str(&seconds) {
        response.headers_mut().insert(PROCESS_TIME, value);
    }
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(HEADER, value);
    }
    if shared.health.draining() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| With::body(body, flight))
}

/// Bodies that say that they are too large are refused unread; the others are counted while they are read. All bodies
/// together have a limit too, of which each takes its share as it comes: as JSON in memory a body may take many times its
/// length, and a valid token must not be enough to fill the memory.
pub async fn body_limit(
    State((limits, bodies, dialect)): State<(Limits, Arc<Semaphore>, Dialect)>,
    request: Request,
    next: Next,
) -> Response {
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let most = limits.body_bytes as u64;
    if length.is_some_and(|length| length > most) {
        let mut response = dialect.too_large(limits.body_bytes);
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    // A body of unknown length may be as long as any.
    let unknown = if request.body().is_end_stream() { 0 } else { most };
    let shares = Shares::new(bodies, limits.bodies, length.unwrap_or(unknown));
    if shares.grow().await.is_err() {
        return dialect.crowded(limits.bodies);
    }
    // Held until there is an answer: what was read is worked on until then.
    let held = shares.clone();
    let response = next.run(request.map(|body| held.body(Timed::new(body, limits.body)))).await;
    drop(shares);
    response
}

/// A panic of ours costs its request and nothing else.
pub async fn panics(State(dialect): State<Dialect>, request: Request, next: Next) -> Response {
    match std::panic::AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => dialect.broken(),
    }
}
