//! The GitLab dialect (steps 2, 3 and 10 in the life of a request): the Duo gateway API that GitLab, Workhorse and the
//! language server call.
//!
//! A request meets [`identity`] (whose token is this), the route's own file (what is asked), [`choice`] (which model
//! answers) and [`stream`] (in which of the formats the answer goes back). Unknown fields are ignored, as GitLab sends
//! more of them with every version; an endpoint in a request is never dialled.

pub mod body;
pub mod chat;
pub mod choice;
pub mod client;
pub mod code;
mod embeddings;
pub mod error;
pub mod figures;
mod fit;
pub mod identity;
mod monitoring;
pub mod prompts;
pub mod search;
pub mod stream;
mod thought;
mod token;

use std::time::Duration;

use crate::served::ask::{Answer, Ask, Failure};
use crate::served::{Model, Models};
use crate::server::routes::Route;
use choice::Defaults;
use figures::Figures;
use identity::Identity;
use search::Docs;

/// What the routes of this dialect share.
pub struct Gateway {
    pub identity: Identity,
    pub models: Models,
    pub defaults: Defaults,
    pub figures: Figures,
    /// What GitLab's chat can search.
    pub docs: Docs,
    /// Off: an answer is sent whole even where a stream was asked for.
    pub streaming: bool,
    /// How long GitLab waits for chat and prompts.
    pub patience: Duration,
}

impl Gateway {
    /// Asks a model and counts what comes of it.
    pub async fn ask(&self, model: &Model, ask: Ask) -> Result<Answer, Failure> {
        self.figures.ask(model, ask).await
    }

    /// Whether requests would be served.
    pub fn ready(&self) -> bool {
        self.models.ready() && self.identity.ready()
    }
}

/// This dialect's rows of the table of routes.
pub fn rows() -> Vec<Route> {
    let parts = [
        monitoring::rows(),
        embeddings::rows(),
        token::rows(),
        code::rows(),
        prompts::rows(),
        chat::rows(),
        search::rows(),
    ];
    parts.into_iter().flatten().collect()
}
