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
use crate::access::{FIRST, Refusal};
use crate::admin::Admin;
use crate::admin::endpoints::{blocking, parameter};
use crate::audit::{Event, Who};
use crate::server::accept::Peer;

/// `/login`, and with `?t=` the link.
pub async fn page(State(admin): State<Arc<Admin>>, request: Request) -> Response {
    match parameter(&request, "t") {
        Some(token) if admin.sessions.take(&token) => {
            enter(&admin, (Who::Console, FIRST), "link", peer(&request)).await
        }
        Some(_) => {
            refused(&admin, "link", peer(&request)).await;
            let why = "That link is used up or older than 10 minutes.";
            (StatusCode::UNAUTHORIZED, form(Some(why))).into_response()
        }
        None if guard::cookie(request.headers()).is_some_and(|c| admin.sessions.find(c).is_some()) => {
            Redirect::to("/").into_response()
        }
        None => form(None).into_response(),
    }
}

pub async fn login(State(admin): State<Arc<Admin>>, request: Request) -> Response {
    let peer = peer(&request);
    let fields = forms::fields(request).await;
    let key = fields.get("key").map_or("", |key| key.trim());
    match admin.admin_key(key, peer) {
        Ok(holder) => enter(&admin, (holder.who(), &holder.id), "key", peer).await,
        Err(refusal) => {
            refused(&admin, "key", peer).await;
            let why = match refusal {
                Refusal::Class { .. } => "That key has not the scope admin.",
                Refusal::Stranger { .. } => "Too many wrong keys came from this address; wait a minute.",
                _ => "That is not a key of this server that may be used here and now.",
            };
            (StatusCode::UNAUTHORIZED, form(Some(why))).into_response()
        }
    }
}

fn peer(request: &Request) -> Option<IpAddr> {
    request.extensions().get::<Peer>().map(|peer| peer.0)
}

fn address(peer: Option<IpAddr>) -> String {
    peer.map(|peer| peer.to_string()).unwrap_or_default()
}

/// Somebody tried.
async fn refused(admin: &Admin, by: &str, peer: Option<IpAddr>) {
    let peer = address(peer);
    tracing::warn!(by, peer, "refused at the console");
    let (audit, event) = (admin.audit.clone(), Event::AdminLoginRefused { by: by.to_owned(), peer });
    blocking(move || audit.note(&Who::Console, &event)).await;
}

/// The next page is asked for by this one, not by a redirect: a browser that followed a link from elsewhere would not
/// send a strict cookie along with it.
async fn enter(admin: &Admin, (who, key): (Who, &str), by: &str, peer: Option<IpAddr>) -> Response {
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
