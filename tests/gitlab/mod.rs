//! A GitLab, as far as the gateway sees one: it publishes its keys, signs tokens as Rails does, and calls the gateway
//! with the headers of its version. A real HTTP server on loopback, which can be down, slow or misled.
//!
//! It stands alone: the tests of the gateway, of `hearth doctor` and the benches use it.

#![allow(dead_code)] // each user takes its part

mod token;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use tokio::sync::oneshot;

#[allow(unused_imports)] // each user takes its part
pub use token::{SCOPES, Token, pem, public};

/// The instance's id.
pub const INSTANCE: &str = "5f2a7c1e-8a55-4d5b-9f5e-0d8c2f1b7a10";
/// A user's id in every instance.
pub const USER: &str = "gJ2Y0yI0W1m4fB8Qn3nQq5p7sB9c0d1e2f3g4h5i6j7=";

/// How it behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    #[default]
    Up,
    /// Connections are accepted and closed.
    Down,
    /// A minute for each answer.
    Slow,
    /// 500 for everything.
    Failing,
    /// A set without keys.
    Empty,
    /// A good set, and a megabyte after it.
    Huge,
    /// To another path, where a good set lies.
    Redirecting,
    /// A page instead of JSON.
    Garbage,
    /// No discovery document, but the newer path for keys.
    WithoutDiscovery,
}

/// What the server and the test share.
struct Inside {
    /// `http://127.0.0.1:port`.
    origin: String,
    /// The relative root, like `/gitlab`, or nothing.
    root: String,
    /// The URL that users know: the issuer.
    external: Mutex<String>,
    behaviour: Mutex<Behaviour>,
    /// Which of the test's keys it signs with, and which it publishes besides.
    key: Mutex<usize>,
    old: Mutex<Vec<usize>>,
    /// Requests by path.
    asked: Mutex<HashMap<String, usize>>,
    /// Requests whose answer nobody waited for.
    abandoned: AtomicUsize,
    /// Seconds added to the time.
    offset: Mutex<f64>,
    gateway: Mutex<String>,
    /// By how many seconds editors are told that their token ends earlier than it does.
    shortened: Mutex<u64>,
}

pub struct GitLab {
    inside: Arc<Inside>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl GitLab {
    pub fn start() -> Self {
        Self::under("", 0)
    }

    /// Another instance, with other keys.
    pub fn another() -> Self {
        Self::under("", 4)
    }

    /// One under a relative root, like `/gitlab`. `key` is the first of the test's keys that it uses.
    pub fn under(root: &str, key: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let inside = Arc::new(Inside {
            external: Mutex::new(format!("{origin}{root}")),
            origin,
            root: root.to_owned(),
            behaviour: Mutex::default(),
            key: Mutex::new(key),
            old: Mutex::default(),
            asked: Mutex::default(),
            abandoned: AtomicUsize::default(),
            offset: Mutex::default(),
            gateway: Mutex::default(),
            shortened: Mutex::default(),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let served = inside.clone();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! { () = accept(listener, served) => {}, _ = stopped => {} }
            });
            runtime.shutdown_background();
        });
        Self { inside, stop: Some(stop), thread: Some(thread) }
    }

    /// The URL to configure.
    pub fn url(&self) -> String {
        format!("{}{}", self.inside.origin, self.inside.root)
    }

    /// Says that users reach it by another URL, which then is its issuer and the host of its keys.
    pub fn known_as(&self, external: &str) {
        *self.inside.external.lock().unwrap() = external.to_owned();
    }

    pub fn issuer(&self) -> String {
        self.inside.external.lock().unwrap().clone()
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.inside.behaviour.lock().unwrap() = behaviour;
    }

    /// Signs with another key from now on; the one before is published for as long as `keep` says.
    pub fn rotate(&self, keep: bool) {
        let mut key = self.inside.key.lock().unwrap();
        let mut old = self.inside.old.lock().unwrap();
        match keep {
            true => old.push(*key),
            false => old.clear(),
        }
        *key += 1;
    }

    /// How often a path was asked for: without it, every path.
    pub fn asked(&self, path: &str) -> usize {
        self.inside.asked.lock().unwrap().iter().filter(|(p, _)| p.ends_with(path)).map(|(_, n)| n).sum()
    }

    /// How often its keys were fetched.
    pub fn fetches(&self) -> usize {
        self.asked("/oauth/discovery/keys") + self.asked("/-/cloud_connector/keys")
    }

    /// How many requests were given up on before their answer was there.
    pub fn abandoned(&self) -> usize {
        self.inside.abandoned.load(Ordering::SeqCst)
    }

    /// Waits until its keys were asked for that often.
    pub fn until_fetched(&self, times: usize) {
        let begin = SystemTime::now();
        while self.asked("/.well-known/openid-configuration") < times {
            assert!(begin.elapsed().unwrap() < Duration::from_secs(60), "nobody fetches keys");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Moves its clock.
    pub fn advance(&self, seconds: f64) {
        *self.inside.offset.lock().unwrap() += seconds;
    }

    /// Seconds since 1970.
    pub fn now(&self) -> f64 {
        self.inside.now()
    }

    /// Where the gateway is, as the administrator entered it.
    pub fn gateway(&self, url: &str) {
        *self.inside.gateway.lock().unwrap() = url.to_owned();
    }

    /// Tells editors that their tokens end earlier than they do.
    pub fn shorten(&self, seconds: u64) {
        *self.inside.shortened.lock().unwrap() = seconds;
    }

    /// A token to change before it is signed: what Rails signs, with every scope.
    pub fn token(&self) -> Token {
        self.inside.token()
    }

    /// The usual headers of the newest version, with a token.
    pub fn rails(&self) -> Vec<(String, String)> {
        self.with(&self.token().sign(), "19.3.0")
    }

    /// The usual headers of a version, with this token.
    pub fn with(&self, token: &str, version: &str) -> Vec<(String, String)> {
        let mut headers = usual(version);
        headers.push(("authorization".to_owned(), format!("Bearer {token}")));
        headers
    }
}

impl Drop for GitLab {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Headers as the tests' client takes them.
pub fn pairs(headers: &[(String, String)]) -> Vec<(&str, &str)> {
    headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// The headers of every call of a version of GitLab, without the token.
pub fn usual(version: &str) -> Vec<(String, String)> {
    let number = |part: usize| version.split('.').nth(part).and_then(|p| p.parse::<u32>().ok()).unwrap_or(0);
    let at_least = |major: u32, minor: u32| (number(0), number(1)) >= (major, minor);
    let mut headers = vec![
        ("X-Gitlab-Authentication-Type", "oidc"),
        ("X-Gitlab-Rails-Send-Start", "1750000000.123"),
        ("x-gitlab-host-name", "gitlab.example.com"),
        ("x-gitlab-instance-id", INSTANCE),
        ("x-gitlab-realm", "self-managed"),
        ("x-gitlab-version", version),
        ("x-gitlab-global-user-id", USER),
    ];
    if at_least(17, 6) {
        headers.push(("x-gitlab-feature-enablement-type", "add_on"));
        headers.push(("x-gitlab-feature-enabled-by-namespace-ids", ""));
        headers.push(("x-gitlab-enabled-feature-flags", ""));
    } else {
        headers.push(("X-Gitlab-Duo-Seat-Count", "100"));
    }
    if at_least(18, 0) {
        headers.push(("x-gitlab-deployment-type", "self-managed"));
        headers.push(("x-gitlab-enabled-instance-verbose-ai-logs", "false"));
        headers.push(("X-Gitlab-Is-Team-Member", "false"));
    }
    if at_least(18, 5) {
        headers.push(("x-gitlab-user-id", "42"));
        headers.push(("x-gitlab-namespace-id", "null"));
    }
    if at_least(19, 3) {
        headers.push(("x-gitlab-unit-primitive", "complete_code"));
        headers.push(("x-gitlab-subject-type", "human"));
        headers.push(("x-gitlab-organization-id", "1"));
    }
    headers.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

impl Inside {
    fn now(&self) -> f64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        now.as_secs_f64() + *self.offset.lock().unwrap()
    }

    fn token(&self) -> Token {
        Token::new(*self.key.lock().unwrap(), &self.external.lock().unwrap(), self.now())
    }

    /// The published set: its own key between others that are not meant for tokens like ours.
    fn keys(&self) -> Value {
        let mut keys = vec![
            json!({"kty": "EC", "kid": "ec", "use": "sig", "crv": "P-256", "x": "AQAB", "y": "AQAB"}),
            json!({"kty": "RSA", "kid": "enc", "use": "enc", "n": "AQAB", "e": "AQAB"}),
        ];
        let current = *self.key.lock().unwrap();
        keys.extend(self.old.lock().unwrap().iter().chain([&current]).map(|i| token::public(*i)));
        json!({"keys": keys})
    }
}

/// The name of a key, as GitLab computes it (RFC 7638).
fn thumbprint(key: &EncodingKey) -> (Jwk, String) {
    let jwk = Jwk::from_encoding_key(key, Algorithm::RS256).unwrap();
    let kid = jwk.thumbprint(ThumbprintHash::SHA256).unwrap();
    (jwk, kid)
}

async fn accept(listener: tokio::net::TcpListener, inside: Arc<Inside>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        if *inside.behaviour.lock().unwrap() == Behaviour::Down {
            *inside.asked.lock().unwrap().entry("/.well-known/openid-configuration".into()).or_default() += 1;
            continue;
        }
        let router = axum::Router::new().fallback(answer).with_state(inside.clone());
        tokio::spawn(async move {
            // A connection an answer, so that a change of behaviour is seen by the next request.
            let mut http = hyper::server::conn::http1::Builder::new();
            let service = TowerToHyperService::new(router);
            let _ = http.keep_alive(false).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(State(inside): State<Arc<Inside>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    *inside.asked.lock().unwrap().entry(path.clone()).or_default() += 1;
    let behaviour = *inside.behaviour.lock().unwrap();
    match behaviour {
        Behaviour::Slow => {
            let waiting = Waiting(Some(&inside.abandoned));
            tokio::time::sleep(Duration::from_secs(60)).await;
            waiting.answered();
        }
        Behaviour::Failing => return (StatusCode::INTERNAL_SERVER_ERROR, "500").into_response(),
        _ => {}
    }
    let not_found = (StatusCode::NOT_FOUND, "<html>404</html>").into_response();
    let Some(path) = path.strip_prefix(inside.root.as_str()) else { return not_found };
    let keys = || axum::Json(inside.keys()).into_response();
    let external = inside.external.lock().unwrap().clone();
    match path {
        "/.well-known/openid-configuration" if behaviour != Behaviour::WithoutDiscovery => {
            let (issuer, uri) = (&external, format!("{external}/oauth/discovery/keys"));
            axum::Json(json!({"issuer": issuer, "jwks_uri": uri, "response_types_supported": ["code"]}))
                .into_response()
        }
        "/oauth/discovery/keys" | "/-/cloud_connector/keys" => match behaviour {
            Behaviour::Empty => axum::Json(json!({"keys": []})).into_response(),
            Behaviour::Garbage => "<html>Sign in</html>".into_response(),
            Behaviour::Huge => {
                Body::from(inside.keys().to_string() + &" ".repeat(1 << 20)).into_response_ok()
            }
            Behaviour::Redirecting => {
                let to = format!("{}{}/lured", inside.origin, inside.root);
                (StatusCode::FOUND, [(header::LOCATION, to)]).into_response()
            }
            _ => keys(),
        },
        "/lured" => keys(),
        "/api/v4/projects" => axum::Json(json!([])).into_response(),
        "/api/v4/code_suggestions/direct_access" if request.method() == "POST" => {
            tokio::task::spawn_blocking(move || direct_access(&inside)).await.unwrap()
        }
        _ => not_found,
    }
}

/// Counts a request whose connection is closed before it is answered.
struct Waiting<'a>(Option<&'a AtomicUsize>);

impl Waiting<'_> {
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(abandoned) = self.0 {
            abandoned.fetch_add(1, Ordering::SeqCst);
        }
    }
}

trait IntoResponseOk {
    fn into_response_ok(self) -> Response;
}

impl IntoResponseOk for Body {
    fn into_response_ok(self) -> Response {
        Response::new(self)
    }
}

/// What Rails does when an editor asks for a way to the gateway: it has the gateway make a token.
fn direct_access(inside: &Inside) -> Response {
    let gateway = inside.gateway.lock().unwrap().clone();
    let mut headers = usual("19.3.0");
    let rails = format!("Bearer {}", inside.token().sign());
    headers.push(("authorization".to_owned(), rails));
    let address: SocketAddr = gateway.trim_start_matches("http://").parse().unwrap();
    let (status, body) = exchange(address, "/v1/code/user_access_token", &headers);
    let made: Value = serde_json::from_str(&body).unwrap_or_default();
    let (200, Some(token), Some(expires_at)) = (status, made["token"].as_str(), made["expires_at"].as_u64())
    else {
        let text = json!({"message": "Token creation failed"});
        return (StatusCode::SERVICE_UNAVAILABLE, axum::Json(text)).into_response();
    };
    let public: serde_json::Map<String, Value> =
        usual("19.3.0").into_iter().map(|(name, value)| (name, value.into())).collect();
    let expires_at = expires_at - *inside.shortened.lock().unwrap();
    let way = json!({"base_url": gateway, "token": token, "expires_at": expires_at, "headers": public});
    (StatusCode::CREATED, axum::Json(way)).into_response()
}

/// A request without a body, and its answer's status and body.
fn exchange(address: SocketAddr, path: &str, headers: &[(String, String)]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut request =
        format!("POST {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\ncontent-length: 0\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    stream.write_all((request + "\r\n").as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let status = reply.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, reply.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}
