//! Who may come in at the console (before any of its pages).
//!
//! A browser can be made to send requests here by any page that is open in it. Three things hold against that: the name
//! it asked for must be one of this console's (a name that was rebound to 127.0.0.1 is not), the cookie is `SameSite=
//! Strict`, and a change must bring the session's own token.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use subtle::ConstantTimeEq;

use super::sessions::{COOKIE, Session};
use crate::access::{Class, Known};
use crate::admin::endpoints::whole;
use crate::admin::routes::Access;
use crate::admin::{Admin, AdminError};
use crate::openai::error::ApiError;
use crate::server::accept::Peer;

/// The session's token in the requests of scripts; forms have it as a field `csrf`.
const CSRF: &str = "x-hearth-csrf";

/// Everything comes from this console, and no other page may hold it in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// On every answer of the console.
pub fn headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Style and script say for themselves how long they may be kept.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Refuses names that are not this console's.
pub async fn host(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = given.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let name = name.map_or(given, |(name, _)| name).trim_matches(['[', ']']).to_ascii_lowercase();
    let own = ["localhost", "127.0.0.1", "::1"].contains(&name.as_str());
    if own || admin.settings.console_hosts.contains(&name) {
        return next.run(request).await;
    }
    AdminError::new(
        StatusCode::MISDIRECTED_REQUEST,
        "this console is not known under that name",
        "use http://127.0.0.1, or add the name to console.hosts",
    )
    .into_response()
}

/// The cookie's value.
pub fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value)
}

/// The key behind a request.
#[derive(Clone)]
pub struct ByKey(pub Known);

/// The session of a request, which is in use by that. A session ends with its key.
pub fn session(admin: &Admin, headers: &HeaderMap, peer: Option<IpAddr>) -> Option<Arc<Session>> {
    let session = admin.sessions.find(cookie(headers)?)?;
    admin.shared.access.still(&session.key, peer, Class::Admin).ok().map(|_| session)
}

/// Who listens to a stream. Nothing is asked for while it runs, so that it does not count as use.
pub struct Listener {
    /// The cookie, where it was a session that let them in.
    cookie: Option<String>,
    /// None at the socket, which was theirs to open.
    key: Option<Known>,
    peer: Option<IpAddr>,
}

impl Listener {
    /// Of a request that was let in.
    pub fn of(request: &Request) -> Self {
        let extensions = request.extensions();
        let session = extensions.get::<Arc<Session>>();
        Self {
            cookie: session.and_then(|_| cookie(request.headers())).map(str::to_owned),
            key: extensions.get::<ByKey>().map(|key| key.0.clone()),
            peer: extensions.get::<Peer>().map(|peer| peer.0),
        }
    }

    /// Whether the session was not closed and the key is still good.
    pub fn may_stay(&self, admin: &Admin) -> bool {
        let access = &admin.shared.access;
        self.cookie.as_ref().is_none_or(|cookie| admin.sessions.lives(cookie))
            && self.key.as_ref().is_none_or(|key| access.lasts(key, self.peer, Class::Admin).is_ok())
    }
}

/// Lets a request through to its row, or not.
pub async fn check(
    State((admin, access)): State<(Arc<Admin>, Access)>,
    mut request: Request,
    next: Next,
) -> Response {
    if access == Access::Anyone {
        return next.run(request).await;
    }
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    if let Some(session) = session(&admin, request.headers(), peer) {
        let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
        if changes {
            request = match with_token(request, &session).await {
                Ok(request) => request,
                Err(refused) => return refused.into_response(),
            };
        }
        request.extensions_mut().insert(session.who.clone());
        request.extensions_mut().insert(ByKey(session.key.clone()));
        request.extensions_mut().insert(session);
        return next.run(request).await;
    }
    if access == Access::Operator && request.headers().contains_key(header::AUTHORIZATION) {
        let bearer =
            |value: &HeaderValue| Some(value.to_str().ok()?.strip_prefix("Bearer ")?.trim().to_owned());
        let key = request.headers().get(header::AUTHORIZATION).and_then(bearer);
        match admin.admin_key(&key.unwrap_or_default(), peer) {
            Ok(holder) => {
                request.extensions_mut().insert(holder.who());
                request.extensions_mut().insert(ByKey(holder.known()));
                return next.run(request).await;
            }
            Err(refusal) => return ApiError::from(refusal).into_response(),
        }
    }
    match access {
        Access::Page => Redirect::to("/login").into_response(),
        _ => AdminError::new(
            StatusCode::UNAUTHORIZED,
            "no session and no key",
            "run `hearth console` for a link, or send a key with the scope `admin` as a bearer token",
        )
        .into_response(),
    }
}

/// A change of a session's with the session's token in it.
async fn with_token(request: Request, session: &Session) -> Result<Request, AdminError> {
    let is = |given: &str| bool::from(given.as_bytes().ct_eq(session.csrf.as_bytes()));
    if request.headers().get(CSRF).and_then(|value| value.to_str().ok()).is_some_and(is) {
        return Ok(request);
    }
    let (parts, body) = request.into_parts();
    let body = whole(body).await?;
    if url::form_urlencoded::parse(&body).any(|(name, value)| name == "csrf" && is(&value)) {
        return Ok(Request::from_parts(parts, Body::from(body)));
    }
    Err(AdminError::new(
        StatusCode::FORBIDDEN,
        "the request does not come from a page of this console",
        "load the page again, and repeat what you did",
    ))
}
