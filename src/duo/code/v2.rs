//! `POST /v2/code/completions`, its other name `/v2/completions` under which editors know it, and
//! `POST /v2/code/generations` of GitLab 17.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::Map;

use super::call::Call;
use super::completion;
use super::editor::{Editor, NAME};
use super::generation::{self, INSTRUCTION, Prompt, Wish};
use super::reply::{GENERATIONS, Reply, Shape, Shown};
use crate::duo::Gateway;
use crate::duo::body::{self, Object};
use crate::duo::choice::Feature;
use crate::duo::error::DuoError;
use crate::served::Model;
use crate::served::family::Family;

/// Characters of names and languages in telemetry, and of a model's family.
const SHORT: usize = 50;
/// Entries and characters of the context.
const CONTEXTS: usize = 100;
const CONTEXT_NAME: usize = 1024;
const CONTEXT: usize = 500_000;
const TELEMETRY: usize = 10;

const PROVIDERS: &[&str] =
    &["anthropic", "vertex-ai", "litellm", "codestral", "fireworks_ai", "amazon_q", "gitlab"];

/// What both routes read.
struct Base {
    version: i64,
    editor: Editor,
    provider: Option<String>,
    family: Option<String>,
    stream: bool,
    context: Vec<String>,
}

impl Base {
    fn read(body: &Object) -> Result<Self, DuoError> {
        let version = body.integer("prompt_version")?;
        let version = version.ok_or_else(|| body.wrong("prompt_version", "is missing"))?;
        if !(1..=3).contains(&version) {
            return Err(body.wrong("prompt_version", "must be 1, 2 or 3"));
        }
        let editor = Editor::read(&body.required_object("current_file")?)?;
        body.string("project_path", NAME)?;
        body.integer("project_id")?;
        body.integer("choices_count")?;
        for entry in body.objects("telemetry", TELEMETRY)? {
            for name in ["model_engine", "model_name", "lang"] {
                entry.string(name, SHORT)?;
            }
            for name in ["requests", "accepts", "errors"] {
                entry.integer(name)?.ok_or_else(|| entry.wrong(name, "is missing"))?;
            }
        }
        let mut context = Vec::new();
        for entry in body.objects("context", CONTEXTS)? {
            entry.required_string("type", CONTEXT_NAME)?;
            entry.required_string("name", CONTEXT_NAME)?;
            context.push(entry.required_string("content", CONTEXT)?);
        }
        let (provider, family) = model_fields(body)?;
        Ok(Self { version, editor, provider, family, stream: body.bool("stream")?.unwrap_or(false), context })
    }

    fn shown(&self, model: &Model) -> Shown {
        let family = self.family.clone().unwrap_or_else(|| model.family().name().to_owned());
        let engine = self.provider.clone().unwrap_or_else(|| "litellm".to_owned());
        Shown { engine, name: family, language: self.editor.shown() }
    }

    fn reply(&self, shape: Shape, shown: Shown, call: Call, gateway: &Gateway) -> Reply {
        let contexts = self.context.len();
        Reply { shape, shown, flags: call.flags, contexts, stream: self.stream, pieces: gateway.streaming }
    }
}

/// Provider and family, where they are named: a family of a provider must be one that is known.
fn model_fields(body: &Object) -> Result<(Option<String>, Option<String>), DuoError> {
    let provider = body.string("model_provider", NAME)?;
    if provider.as_deref().is_some_and(|provider| !PROVIDERS.contains(&provider)) {
        return Err(body.wrong("model_provider", "is no provider that GitLab names"));
    }
    let family = body.string("model_name", SHORT)?.map(|name| name.trim().to_owned());
    let unknown = family.as_deref().is_some_and(|name| Family::parse(name).is_none());
    if unknown && provider.as_deref() == Some("litellm") {
        return Err(body.wrong("model_name", "is no family that GitLab names"));
    }
    Ok((provider, family))
}

pub async fn completions(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, DuoError> {
    let call = Call::of(&request);
    let body = body::read(request).await?;
    let base = Base::read(&body)?;
    // The gap is what is asked for; a prompt that comes along is read for its shape only.
    match base.version {
        2 => drop(Prompt::text(&body)?),
        3 => drop(Prompt::messages(&body)?),
        _ => {}
    }
    call.completes(true, "Unauthorized to access code completions")?;
    let model = gateway.choose(&body, Feature::Completion).map_err(|f| DuoError::inference(&f))?;
    let written = completion::write(&gateway, &model, &call, &base.editor, &base.context).await?;
    base.reply(Shape::Completion, base.shown(&model), call, &gateway).send(written).await
}

pub async fn generations(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, DuoError> {
    let call = Call::of(&request);
    let body = body::read(request).await?;
    let base = Base::read(&body)?;
    let missing = || body.wrong("prompt", "is missing");
    let prompt = match base.version {
        1 => Prompt::none(),
        2 => Prompt::text(&body)?.ok_or_else(missing)?,
        _ => Prompt::messages(&body)?.ok_or_else(missing)?,
    };
    let user_instruction = body.string("user_instruction", INSTRUCTION)?;
    let named = body.string("prompt_id", NAME)?.is_some();
    call.generates("Unauthorized to access code generations")?;
    let model = gateway.choose(&body, Feature::Generation).map_err(|f| DuoError::inference(&f))?;
    let shown = match (base.shown(&model), named) {
        (shown, true) => Shown { engine: "agent".into(), name: GENERATIONS.into(), ..shown },
        (shown, false) => Shown { name: format!("custom_openai/{}", shown.name), ..shown },
    };
    let wish = Wish { prompt, user_instruction, enhancer: Map::new(), context: base.context.clone() };
    let written = generation::write(&gateway, &model, &call, &base.editor, wish).await?;
    base.reply(Shape::Generation, shown, call, &gateway).send(Some(written)).await
}
