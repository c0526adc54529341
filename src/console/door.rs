//! Coming in and going out: a link that works once, or a key.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use maud::html;

use super::sessions::COOKIE;
use super::{forms, guard, layout};
use crate::access::{Class, Known, Refusal};
use crate::admin::Admin;
use crate::admin::endpoints::{blocking, parameter};
use crate::audit::{Event, Who};
use crate::server::accept::Peer;

/// `/login`, and with `?t=` the link. A good link opens however often others were wrong: nobody guesses 256 bits, and
/// who runs this server must not be shut out by whoever else is on its host.
pub async fn page(State(admin): State<Arc<Admin>>, request: Request) -> Response {
    let (peer, access) = (peer(&request), &admin.shared.access);
    match parameter(&request, "t") {
        Some(_) if sent_by_another_site(&request) => elsewhere(),
        Some(token) => match admin.sessions.take(&token) {
            Some((who, key)) if access.still(&key, peer, Class::Admin).is_ok() => {
                enter(&admin, who, key, "link", peer).await
            }
            _ => {
                let why = "That link is used up or older than 10 minutes.";
                refused(&admin, "link", peer, why, access.failed_at_console(peer)).await
            }
        },
        None if guard::session(&admin, request.headers(), peer).is_some() => {
            Redirect::to("/").into_response()
        }
        None => form(None).into_response(),
    }
}

pub async fn login(State(admin): State<Arc<Admin>>, request: Request) -> Response {
    if sent_by_another_site(&request) {
        return elsewhere();
    }
    let peer = peer(&request);
    let fields = match forms::fields(request).await {
        Ok(fields) => fields,
        Err(unread) => return unread.into_response(),
    };
    let key = fields.get("key").map_or("", |key| key.trim());
    match admin.admin_key(key, peer) {
        Ok(holder) => enter(&admin, holder.who(), holder.known(), "key", peer).await,
        Err(refusal) => {
            let wait = match refusal {
                Refusal::Stranger { retry_after } => Some(retry_after),
                // Counted where it was compared.
                Refusal::None | Refusal::Wrong => None,
                _ => admin.shared.access.failed_at_console(peer),
            };
            let why = match refusal {
                Refusal::Class { .. } => "That key has not the scope admin.",
                _ => "That is not a key of this server that may be used here and now.",
            };
            refused(&admin, "key", peer, why, wait).await
        }
    }
}

/// Whether a page of another site made the browser ask. It may show the form; what is tried there counts for nobody.
fn sent_by_another_site(request: &Request) -> bool {
    request.headers().get("sec-fetch-site").is_some_and(|site| site == "cross-site")
}

fn elsewhere() -> Response {
    let why = "Another site sent your browser here. Copy the link into the address bar, or sign in below.";
    (StatusCode::FORBIDDEN, form(Some(why))).into_response()
}

fn peer(request: &Request) -> Option<IpAddr> {
    request.extensions().get::<Peer>().map(|peer| peer.0)
}

fn address(peer: Option<IpAddr>) -> String {
    peer.map(|peer| peer.to_string()).unwrap_or_default()
}

/// Somebody tried. What comes while the address must wait is not written down: the logs must not grow with it.
async fn refused(admin: &Admin, by: &str, peer: Option<IpAddr>, why: &str, wait: Option<u32>) -> Response {
    if let Some(wait) = wait {
        let why = format!("Too many wrong keys and links came from this address; wait {wait} s.");
        let retry = [(header::RETRY_AFTER, wait.to_string())];
        return (StatusCode::TOO_MANY_REQUESTS, retry, form(Some(&why))).into_response();
    }
    let peer = address(peer);
    tracing::warn!(by, peer, "refused at the console");
    let (audit, event) = (admin.audit.clone(), Event::AdminLoginRefused { by: by.to_owned(), peer });
    blocking(move || audit.note(&Who::Console, &event)).await;
    (StatusCode::UNAUTHORIZED, form(Some(why))).into_response()
}

/// The next page is asked for by this one, not by a redirect: a browser that followed a link from elsewhere would not
/// send a strict cookie along with it.
async fn enter(admin: &Admin, who: Who, key: Known, by: &str, peer: Option<IpAddr>) -> Response {
    let cookie = admin.sessions.open(who.clone(), key);
    let event = Event::AdminLogin { by: by.to_owned(), peer: address(peer) };
    let audit = admin.audit.clone();
    blocking(move || audit.note(&who, &event)).await;
    let cookie = format!("{COOKIE}={cookie}; Path=/; HttpOnly; SameSite=Strict");
    let body = html! {
        meta http-equiv="refresh" content="0; url=/";
        p { "You are in. " a href="/" { "Continue" } }
    };
    ([(header::SET_COOKIE, cookie)], layout::bare("Signed in", body)).into_response()
}

pub async fn logout(
    State(admin): State<Arc<Admin>>,
    Extension(who): Extension<Who>,
    request: Request,
) -> Response {
    if let Some(cookie) = guard::cookie(request.headers()) {
        admin.sessions.close(cookie);
    }
    tracing::info!(by = %who, "signed out at the console");
    let gone = format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
    ([(header::SET_COOKIE, gone)], Redirect::to("/login")).into_response()
}

fn form(why: Option<&str>) -> Html<String> {
    let body = html! {
        div.door {
            h1 { img src="/mark.svg" alt="" width="28" height="28"; "hearth" }
            @if let Some(why) = why { p.told.fail role="alert" { (why) } }
            form method="post" action="/login" {
                label for="key" { "Key" }
                input #key name="key" type="password" autocomplete="current-password" required autofocus;
                button.primary { "Sign in" }
            }
            p.hint { "Or run " code { "hearth console" } " on the server: it prints a link that works once." }
        }
    };
    layout::bare("Sign in", body)
}
