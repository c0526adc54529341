//! The playground: chat and fill-in-the-middle from the browser, with the time of every token. Its requests are those
//! of the OpenAI dialect, answered by the same code, and counted like all others.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use maud::html;
use tokio::sync::Semaphore;

use super::guard::ByKey;
use super::layout;
use super::sessions::Session;
use crate::access::Class;
use crate::access::permitted::Held;
use crate::admin::Admin;
use crate::admin::routes::{Access, Row, row};
use crate::openai::{self, error::ApiError};
use crate::server::accept::Peer;
use crate::server::body::With;
use crate::server::dialect::Dialect;
use crate::server::{Limits, Shared, track};

/// Bytes of bodies from browsers at the same time.
const BODIES: usize = 16 << 20;

/// The two endpoints that the page asks.
pub fn rows(admin: &Arc<Admin>) -> Vec<Row> {
    let shared = admin.shared.clone();
    let limits = Limits { bodies: BODIES, ..Limits::default() };
    let bodies = Arc::new(Semaphore::new(BODIES));
    let around = |endpoint: MethodRouter<Shared>| {
        endpoint
            .layer(from_fn_with_state(shared.clone(), admit))
            .layer(from_fn_with_state((limits, bodies.clone(), Dialect::OpenAi), track::body_limit))
            .layer(from_fn_with_state(Dialect::OpenAi, track::panics))
            .layer(from_fn_with_state(shared.clone(), track::request))
            .with_state(shared.clone())
    };
    let chat = around(post(openai::chat::post));
    let fill = around(post(openai::completions::post));
    vec![row("POST", "/play/chat", Access::Operator, chat), row("POST", "/play/fill", Access::Operator, fill)]
}

/// Lets a request in by the limits of the key behind the session, as if it had brought that key to the API.
async fn admit(State(shared): State<Shared>, mut request: Request, next: Next) -> Response {
    if shared.health.ending() {
        return Dialect::OpenAi.draining();
    }
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    let key = request.extensions().get::<ByKey>().expect("bug: the console's guard has passed").0.clone();
    match shared.access.admit_still(&key, peer, Class::OpenAi) {
        Ok(pass) => {
            request.extensions_mut().insert(Held::from(&pass));
            next.run(request).await.map(|body| With::body(body, pass))
        }
        Err(refusal) => ApiError::from(refusal).into_response(),
    }
}

pub async fn page(
    State(admin): State<Arc<Admin>>,
    Extension(session): Extension<Arc<Session>>,
) -> Html<String> {
    let models: Vec<_> = admin.shared.models.all().collect();
    let body = html! {
        div.head {
            h1 { "Playground" }
            div.tabs role="tablist" {
                button role="tab" #tab-chat aria-controls="chat" aria-selected="true" { "Chat" }
                button role="tab" #tab-fill aria-controls="fill" aria-selected="false" { "Fill in the middle" }
            }
        }
        noscript { p.banner.warn { "The playground needs JavaScript." } }
        div.knobs {
            label { "Model"
                select #model {
                    @for model in &models {
                        option value=(model.name()) data-chats=(model.chats()) data-fills=(model.fills()) { (model.name()) }
                    }
                }
            }
            label { "Temperature" input #temperature type="number" min="0" max="2" step="0.1" value="0.2"; }
            label { "Tokens at most" input #most type="number" min="1" max="4096" value="128"; }
            label { "Seed" input #seed type="number" placeholder="random"; }
        }
        p.banner.note #cannot hidden {}
        section.card #chat role="tabpanel" aria-labelledby="tab-chat" {
            ol.turns #turns aria-live="polite" { li.empty { "Ask something. The conversation stays in this page alone." } }
            form #ask {
                textarea #question rows="3" placeholder="Message" aria-label="Message" {}
                div.send {
                    span.hint { kbd { "Ctrl" } "+" kbd { "Enter" } " sends" }
                    button.quiet type="button" #clear { "New conversation" }
                    button.primary { "Send" }
                }
            }
        }
        section.card #fill role="tabpanel" aria-labelledby="tab-fill" hidden {
            form #gap {
                label { "Before the gap"
                    textarea #prefix.code rows="7" spellcheck="false" { "def add(a, b):\n    return " }
                }
                div.filled { span.label { "The gap" } pre #middle aria-live="polite" {} }
                label { "After the gap"
                    textarea #suffix.code rows="4" spellcheck="false" { "\n\nprint(add(1, 2))\n" }
                }
                div.send {
                    span.hint { kbd { "Ctrl" } "+" kbd { "Enter" } " fills" }
                    button.primary { "Fill the gap" }
                }
            }
        }
        section.card.timings #timings hidden aria-label="Timings" {
            div.send { h2 { "Token timings" } button.danger type="button" #stop hidden { "Stop" } }
            p.more #sums {}
            div.bars #bars role="img" aria-label="Milliseconds before each token" {}
        }
    };
    layout::page(&admin, &session, "/playground", Some("/playground.js"), body)
}
