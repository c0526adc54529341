//! The console: a few pages in the binary for who runs this server, on a loopback listener of their own. Everything they
//! load is in the binary; without scripts they still say and do everything but draw charts and play.

mod doctor;
mod door;
mod forms;
pub mod guard;
mod keys;
mod layout;
mod overview;
mod playground;
pub mod sessions;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::admin::Admin;
use crate::admin::routes::{Access, Row, row};
use crate::server::{Door, Limits, Listener, accept};

const STYLE: &str = include_str!("assets/console.css");
const SCRIPT: &str = include_str!("assets/console.js");
const PLAY: &str = include_str!("assets/playground.js");
const MARK: &str = include_str!("assets/mark.svg");

/// The console's part of the table.
pub fn rows(admin: &Arc<Admin>) -> Vec<Row> {
    use Access::{Anyone, Page};
    let asset = |kind: &'static str, text: &'static str| get(move || async move { asset(kind, text) });
    let mut rows = vec![
        row("GET", "/", Page, get(overview::page)),
        row("GET", "/stream", Page, get(overview::stream)),
        row("GET", "/doctor", Page, get(doctor::page).post(doctor::run)),
        row("GET", "/keys", Page, get(keys::page).post(keys::create)),
        row("POST", "/keys/revoke", Page, post(keys::revoke)),
        row("GET", "/playground", Page, get(playground::page)),
        row("POST", "/reload", Page, post(forms::reload)),
        row("POST", "/drain", Page, post(forms::drain)),
        row("POST", "/prompts", Page, post(forms::prompts)),
        row("POST", "/logout", Page, post(door::logout)),
        row("GET", "/login", Anyone, get(door::page).post(door::login)),
        row("GET", "/console.css", Anyone, asset("text/css; charset=utf-8", STYLE)),
        row("GET", "/console.js", Anyone, asset("text/javascript; charset=utf-8", SCRIPT)),
        row("GET", "/playground.js", Anyone, asset("text/javascript; charset=utf-8", PLAY)),
        row("GET", "/mark.svg", Anyone, asset("image/svg+xml", MARK)),
    ];
    rows.extend(playground::rows(admin));
    rows
}

/// The binary's own files change with the binary alone, but a browser cannot know when.
fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}

pub async fn bind(address: SocketAddr) -> std::io::Result<(Listener, SocketAddr)> {
    let listener = Listener::bind(address).await?;
    let bound = listener.address()?;
    Ok((listener, bound))
}

/// Answers for as long as the runtime lives.
pub async fn serve(listener: Listener, router: Router) {
    let limits = Limits { connections: 128, per_address: 128, ..Limits::default() };
    accept::run(vec![listener], Door::default(), router, limits, std::future::pending()).await;
}
