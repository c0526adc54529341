//! Whether the process lives, whether it has started, and whether it should get requests.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::sync::Notify;

use super::Shared;

/// What the probes say and what a shutdown waits for.
#[derive(Default)]
pub struct Health {
    draining: AtomicBool,
    in_flight: AtomicUsize,
    ended: Notify,
}

impl Health {
    /// From now on: not ready, and no new work.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Requests whose answer is not sent yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    pub(super) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn end(&self) {
        if self.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.ended.notify_waiters();
        }
    }

    /// Resolves when nothing is in flight.
    pub async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            if self.in_flight() == 0 {
                return;
            }
            ended.await;
        }
    }
}

/// The process answers and its engines are there. Restart it when this fails.
pub async fn live(State(shared): State<Shared>) -> Response {
    let dead = !shared.health.draining() && shared.models.iter().any(|model| !model.engine.status().alive);
    let (status, word) = match dead {
        true => (StatusCode::SERVICE_UNAVAILABLE, "an engine has died"),
        false => (StatusCode::OK, "live"),
    };
    (status, axum::Json(json!({"status": word}))).into_response()
}

/// Models are loaded, their engines run, and no shutdown has begun.
pub async fn ready(State(shared): State<Shared>) -> Response {
    let (status, word) = match (shared.health.draining(), shared.models.ready()) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "an engine has stopped"),
        (false, true) => (StatusCode::OK, "ready"),
    };
    (status, axum::Json(json!({"status": word}))).into_response()
}

/// The listener opens when all models are loaded: who gets this answer gets a started server.
pub async fn startup() -> Response {
    axum::Json(json!({"status": "started"})).into_response()
}
