//! `POST /v3/code/completions` and `POST /v4/code/suggestions`: the same body and the same answer, streamed as raw text
//! or as events.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use super::call::Call;
use super::components::{Components, Wanted};
use super::reply::{GENERATIONS, Reply, Shape, Shown};
use super::{completion, generation};
use crate::duo::Gateway;
use crate::duo::body;
use crate::duo::choice::{Feature, Wish};
use crate::duo::error::DuoError;

const REFUSAL: &str = "Unauthorized to access code suggestions";

pub async fn version_3(state: State<Arc<Gateway>>, request: Request) -> Result<Response, DuoError> {
    suggest(state, request, Shape::Components).await
}

pub async fn version_4(state: State<Arc<Gateway>>, request: Request) -> Result<Response, DuoError> {
    suggest(state, request, Shape::Events).await
}

async fn suggest(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
    shape: Shape,
) -> Result<Response, DuoError> {
    let call = Call::of(&request);
    let body = body::read(request).await?;
    let Components { wanted, editor, context, stream } = Components::read(&body, call.language_server)?;
    let choose = |feature| gateway.choose(&body, feature).map_err(|f| DuoError::inference(&f));
    let (written, engine, name) = match wanted {
        Wanted::Completion => {
            call.completes(false, REFUSAL)?;
            let model = choose(Feature::Completion)?;
            let written = completion::write(&gateway, &model, &call, &editor, &context).await?;
            let named = Wish::of(&body);
            let engine = named.provider.unwrap_or_else(|| "openai".to_owned());
            (written, engine, named.family.unwrap_or_else(|| model.family().name().to_owned()))
        }
        Wanted::Generation(wish) => {
            call.generates(REFUSAL)?;
            let model = choose(Feature::Generation)?;
            let written = generation::write(&gateway, &model, &call, &editor, wish).await?;
            (Some(written), "agent".to_owned(), GENERATIONS.to_owned())
        }
    };
    let shown = Shown { engine, name, language: editor.shown() };
    let contexts = context.len();
    let reply = Reply { shape, shown, flags: call.flags, contexts, stream, pieces: gateway.streaming };
    reply.send(written).await
}
