//! `POST /tokenize` and `POST /detokenize`: the model's own view of a text, as other engines offer it.

use std::sync::Arc;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::asked::model;
use super::completions::token_list;
use super::error::ApiError;
use super::fields::{Fields, wrong};
use crate::access::Permitted;
use crate::served::{Model, Served};

/// The model that a request names, if its tokenizer is here.
fn local(fields: &mut Fields, models: &Permitted) -> Result<Arc<Served>, ApiError> {
    match model(fields, models)? {
        Model::Local(model) => Ok(model),
        Model::Upstream(model) => {
            let message = format!(
                "The model `{}` is served by the upstream `{}`, and its tokenizer is not here; ask that server.",
                model.name, model.upstream.name
            );
            Err(ApiError::unsupported("model", message))
        }
    }
}

/// The text is users' text: control tokens are only those that the server itself puts around it.
pub async fn tokenize(models: Permitted, request: Request) -> Result<Response, ApiError> {
    let mut fields = super::body(request).await?;
    let model = local(&mut fields, &models)?;
    let prompt = fields
        .string("prompt")?
        .ok_or_else(|| ApiError::missing("prompt", "`prompt` is missing; send the text as a string."))?;
    let begin = fields.bool("add_special_tokens")?.unwrap_or(true);
    let names = fields.bool("return_token_strs")?.unwrap_or(false);
    fields.finish()?;
    let tokens = model.text.encode(prompt, begin).await.map_err(|e| ApiError::text(e, "prompt"))?;
    let mut answer = json!({"count": tokens.len(), "max_model_len": model.context(), "tokens": tokens});
    if names {
        answer["token_strs"] =
            tokens.iter().map(|t| model.text.tokenizer.name(*t).unwrap_or_default()).collect();
    }
    Ok(axum::Json(answer).into_response())
}

pub async fn detokenize(models: Permitted, request: Request) -> Result<Response, ApiError> {
    let mut fields = super::body(request).await?;
    let model = local(&mut fields, &models)?;
    let tokens = match fields.take("tokens") {
        None => return Err(ApiError::missing("tokens", "`tokens` is missing; send a list of tokens.")),
        Some(Value::Array(list)) => token_list("tokens", &list, model.context())?,
        Some(other) => return Err(wrong("tokens", "a list of tokens", &other)),
    };
    fields.finish()?;
    for token in &tokens {
        model.text.tokenizer.check(*token).map_err(|e| ApiError::text(e, "tokens"))?;
    }
    Ok(axum::Json(json!({"prompt": model.text.tokenizer.decode(&tokens, false)})).into_response())
}
