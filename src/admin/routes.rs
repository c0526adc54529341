//! The table of the admin API and of the console. Both doors are built from it and from nothing else, and a row without
//! an [`Access`] does not compile; tests walk the same table.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state, map_request};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, delete, get, post};

use super::endpoints as at;
use super::{Admin, AdminError};
use crate::console;
use crate::server::body::Timed;
use std::sync::Arc;

/// Who may ask for a row. Where it changes something a session must also bring its token, so that no other page can
/// send a browser here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whoever opens the socket, which the file system guards; not at the console.
    Socket,
    /// The same, and at the console a session or a key with the scope `admin`.
    Operator,
    /// A session at the console; who has none is sent to the door.
    Page,
    /// Whoever reaches the console's listener: its door, style and script.
    Anyone,
}

/// Which way a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Socket,
    Console,
}

/// One row; one that shows a form also takes it.
pub struct Row {
    pub method: &'static str,
    pub path: &'static str,
    pub access: Access,
    pub endpoint: MethodRouter<Arc<Admin>>,
}

pub fn row(
    method: &'static str,
    path: &'static str,
    access: Access,
    endpoint: MethodRouter<Arc<Admin>>,
) -> Row {
    Row { method, path, access, endpoint }
}

/// Every path of both doors.
pub fn table(admin: &Arc<Admin>) -> Vec<Row> {
    use Access::{Operator, Socket};
    let mut table = vec![
        row("GET", "/admin/status", Operator, get(at::status)),
        row("GET", "/admin/status/stream", Operator, get(at::stream)),
        row("GET", "/admin/history", Operator, get(at::history)),
        row("GET", "/admin/log", Operator, get(at::log)),
        row("GET", "/admin/metrics", Operator, get(at::metrics)),
        row("GET", "/admin/keys", Operator, get(at::keys)),
        row("POST", "/admin/doctor", Operator, post(at::doctor)),
        row("POST", "/admin/reload", Operator, post(at::reload)),
        row("POST", "/admin/drain", Operator, post(at::drain)),
        row("GET", "/admin/prompts", Operator, get(at::prompts)),
        row("POST", "/admin/prompts", Operator, post(at::prompts_on)),
        row("DELETE", "/admin/prompts", Operator, delete(at::prompts_off)),
        row("POST", "/admin/link", Socket, post(at::link)),
    ];
    table.extend(console::rows(admin));
    table
}

impl Door {
    fn opens(self, access: Access) -> bool {
        match self {
            Door::Socket => matches!(access, Access::Socket | Access::Operator),
            Door::Console => access != Access::Socket,
        }
    }
}

/// What stands behind a door.
pub fn router(admin: &Arc<Admin>, door: Door) -> Router {
    let mut router = Router::new();
    for row in table(admin).into_iter().filter(|row| door.opens(row.access)) {
        let guarded = match door {
            // The socket's own loop has said who it is.
            Door::Socket => row.endpoint,
            Door::Console => {
                row.endpoint.layer(from_fn_with_state((admin.clone(), row.access), console::guard::check))
            }
        };
        router = router.route(row.path, guarded);
    }
    // A body that is announced and does not come must not keep its place: at the console nobody has said who they are.
    let limit = admin.settings.front.limits.body;
    let timed = move |request: Request| async move { request.map(|body| Body::new(Timed::new(body, limit))) };
    let router = router.fallback(elsewhere).with_state(admin.clone()).layer(map_request(timed));
    match door {
        Door::Socket => router,
        Door::Console => {
            router.layer(from_fn_with_state(admin.clone(), console::guard::host)).layer(from_fn(
                |request: Request, next: Next| async { console::guard::headers(next.run(request).await) },
            ))
        }
    }
}

async fn elsewhere(request: Request) -> impl IntoResponse {
    let path: String = request.uri().path().chars().take(100).collect();
    AdminError::new(StatusCode::NOT_FOUND, format!("there is no {path} here"), "see `hearth --help`")
}
