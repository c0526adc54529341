//! Whether the process lives, whether it has started, and whether it should get requests.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::sync::Notify;

use super::Shared;
use crate::served::Models;

/// What the probes say and what a shutdown waits for.
#[derive(Default)]
pub struct Health {
    draining: AtomicBool,
    ending: AtomicBool,
    in_flight: AtomicUsize,
    ended: Notify,
    /// Milliseconds a step may take; 0: as long as it likes.
    step: AtomicU64,
}

impl Health {
    /// From now on: not ready. What comes all the same is served, for whoever sent it could not know yet.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// From now on no work is begun.
    pub fn give_up(&self) {
        self.ending.store(true, Ordering::Release);
    }

    pub fn ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// A step of an engine that takes longer is hung.
    pub fn expect_steps_within(&self, time: Duration) {
        self.step.store(time.as_millis() as u64, Ordering::Release);
    }

    /// What only a new process will mend.
    pub fn sick(&self, models: &Models) -> Option<String> {
        let limit = self.step.load(Ordering::Acquire);
        for model in models.iter() {
            let status = model.engine.status();
            if !status.alive && !self.draining() {
                return Some("an engine has died".to_owned());
            }
            if let Some(step) = status.step.filter(|step| limit > 0 && step.as_millis() as u64 > limit) {
                return Some(format!("an engine has been in one step for {} s", step.as_secs()));
            }
        }
        None
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

/// The process answers, its engines are there and get on. Restart it when this fails.
pub async fn live(State(shared): State<Shared>) -> Response {
    let (status, word) = match shared.health.sick(&shared.models) {
        Some(sick) => (StatusCode::SERVICE_UNAVAILABLE, sick),
        None => (StatusCode::OK, "live".to_owned()),
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
