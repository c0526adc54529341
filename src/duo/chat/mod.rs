//! Chat as GitLab calls it (step 3 in the life of a request): `/v2/chat/agent`, one step of a conversation that GitLab
//! drives, and the older `/v1/chat/{name}`, which administrators' guides use to see whether the model answers.
//!
//! A step of the agent goes from [`turns`] (what GitLab sent) through [`asked`] (what the model is told, fitted into its
//! context) and [`react`] (what the model's words mean) to the events of [`agent`].

mod agent;
mod asked;
mod raw;
pub mod react;
mod tools;
mod turns;

use axum::routing::post;

use crate::server::routes::Route;

pub fn rows() -> Vec<Route> {
    vec![
        Route::gitlab("POST", "/v2/chat/agent", post(agent::post)),
        Route::gitlab("POST", "/v1/chat/{name}", post(raw::post)),
    ]
}
