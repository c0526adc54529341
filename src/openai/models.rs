//! `GET /v1/models` and `GET /v1/models/{id}`: what can be asked, and what it can do.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::error::ApiError;
use crate::served::{Model, Models};

pub async fn list(State(models): State<Models>) -> Response {
    let data: Vec<Value> = models.all().map(|m| object(&m)).collect();
    axum::Json(json!({"object": "list", "data": data})).into_response()
}

pub async fn get(State(models): State<Models>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let shown: String = name.chars().take(100).collect();
    let model = models.get(&name).ok_or_else(|| ApiError::no_such_model(&shown, &models.names()))?;
    Ok(axum::Json(object(&model)).into_response())
}

fn object(model: &Model) -> Value {
    let (created, owner, notice) = match model {
        Model::Local(model) => (model.created, "hearth", model.notice.as_ref()),
        Model::Upstream(model) => (model.created, model.upstream.name.as_str(), None),
    };
    let mut object = json!({
        "id": model.name(),
        "object": "model",
        "created": created,
        "owned_by": owner,
        "max_model_len": model.context(),
        "capabilities": {
            "completion": true,
            "fill_in_the_middle": model.fills(),
            "chat": model.chats(),
        },
    });
    if let Some(notice) = notice {
        object["notice"] = json!(notice);
    }
    object
}
