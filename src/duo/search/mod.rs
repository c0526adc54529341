//! `POST /v1/search/gitlab-docs`: passages of the documentation for a question that was asked in chat. Without
//! documentation there are none, and the model answers from what it knows.

mod index;
mod markdown;

use std::path::Path;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::Gateway;
use super::body::{self, Object};
use super::error::DuoError;
use super::identity::Caller;
use crate::openai::answers::now;
use crate::server::routes::Route;
pub use index::LibraryError;
use index::{Found, Library};

/// Searches at the same time; more wait. Each has a thread of its own for a few milliseconds.
const SEARCHES: usize = 4;
/// Of the results together, estimated by their words: more would push the question out of a small model's context.
const TOKENS: f32 = 8000.0;
const TOKENS_OF_A_WORD: f32 = 1.4;

pub fn rows() -> Vec<Route> {
    vec![Route::gitlab("POST", "/v1/search/gitlab-docs", post(search))]
}

/// The documentation, or none.
#[derive(Clone)]
pub struct Docs {
    library: Option<Arc<Library>>,
    searches: Arc<Semaphore>,
}

impl Default for Docs {
    fn default() -> Self {
        Self { library: None, searches: Arc::new(Semaphore::new(SEARCHES)) }
    }
}

impl Docs {
    /// Reads a directory of Markdown files, which may take seconds.
    pub fn read(directory: &Path) -> Result<Self, LibraryError> {
        let library = Library::read(directory)?;
        tracing::info!(passages = library.passages(), "documentation can be searched");
        Ok(Self { library: Some(Arc::new(library)), ..Self::default() })
    }

    /// The best passages for a question, as GitLab reads them.
    async fn results(&self, question: String, count: usize) -> Vec<Value> {
        let Some(library) = self.library.clone() else { return Vec::new() };
        let search = move || match library.search(&question, count) {
            Ok(found) => results(&found),
            Err(error) => {
                tracing::error!(%error, "a search of the documentation failed");
                Vec::new()
            }
        };
        bounded(&self.searches, search).await.unwrap_or_default()
    }
}

/// Works on a thread of its own when it is its turn. The turn ends with the work, which goes on when nobody waits for it
/// any more. `None` if the work broke down.
async fn bounded<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let turn = turns.clone().acquire_owned().await.expect("bug: the semaphore is never closed");
    let work = move || {
        let _turn = turn;
        work()
    };
    tokio::task::spawn_blocking(work).await.ok()
}

/// As many as a model can read.
fn results(found: &[&Found]) -> Vec<Value> {
    let mut tokens = 0.0;
    let fits = |found: &&&Found| {
        tokens += found.content.split_whitespace().count() as f32 * TOKENS_OF_A_WORD;
        tokens <= TOKENS
    };
    found.iter().take_while(fits).map(|found| result(found)).collect()
}

fn result(found: &Found) -> Value {
    json!({
        "id": found.id,
        "content": found.content,
        "metadata": {
            "filename": found.file,
            "title": found.title,
            "source_url": found.url.as_ref().unwrap_or(&found.file),
        },
    })
}

async fn search(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, DuoError> {
    let body = body::read(request).await?;
    let (question, count) = asked(&body)?;
    // Since 19.3 the tokens for chat carry the second one only.
    caller.require(&["documentation_search", "duo_classic_chat"], "Unauthorized to search documentations")?;
    let results = gateway.docs.results(question, count).await;
    let answer = json!({
        "response": {"results": results},
        "metadata": {"provider": "sqlite", "timestamp": now()},
    });
    Ok(axum::Json(answer).into_response())
}

/// The question, and how many passages GitLab wants.
fn asked(body: &Object) -> Result<(String, usize), DuoError> {
    body.required_string("type", 100)?;
    let metadata = body.required_object("metadata")?;
    metadata.required_string("source", 100)?;
    metadata.required_string("version", 100)?;
    let payload = body.required_object("payload")?;
    let question = payload.required_string("query", 400_000)?;
    match payload.integer("page_size")?.unwrap_or(4) {
        count @ 1..=20 => Ok((question, count as usize)),
        count => Err(payload.wrong("page_size", &format!("must be from 1 to 20, not {count}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_question_that_nobody_waits_for_keeps_its_turn_until_its_search_ends() {
        let turns = Arc::new(Semaphore::new(1));
        let (begun, began) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let work = move || {
            begun.send(()).unwrap();
            let _ = ended.recv();
        };
        let mut asked = Box::pin(bounded(&turns, work));
        assert!(futures::poll!(&mut asked).is_pending());
        began.recv().unwrap();
        drop(asked);
        assert_eq!(turns.available_permits(), 0, "the search still runs");
        end.send(()).unwrap();
        assert_eq!(bounded(&turns, || 7).await, Some(7), "the next one's turn comes");
        assert_eq!(turns.available_permits(), 1);
    }
}
