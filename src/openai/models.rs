//! `GET /v1/models` and `GET /v1/models/{id}`: what can be asked, and what it can do.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::error::ApiError;
use crate::served::{Models, Served};

pub async fn list(State(models): State<Models>) -> Response {
    let data: Vec<Value> = models.iter().map(|m| object(m)).collect();
    axum::Json(json!({"object": "list", "data": data})).into_response()
}

pub async fn get(State(models): State<Models>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let shown: String = name.chars().take(100).collect();
    let model = models.get(&name).ok_or_else(|| ApiError::no_such_model(&shown, &models.names()))?;
    Ok(axum::Json(object(model)).into_response())
}

fn object(model: &Served) -> Value {
    let mut object = json!({
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "hearth",
        "max_model_len": model.context(),
        "capabilities": {
            "completion": true,
            "fill_in_the_middle": model.text.fim.is_some(),
            "chat": model.text.chat.is_some(),
        },
    });
    if let Some(notice) = &model.notice {
        object["notice"] = json!(notice);
    }
    object
}
