//! `GET /v1/models` and `GET /v1/models/{id}`: what can be asked, and what it can do.

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::error::ApiError;
use crate::access::Permitted;
use crate::served::Model;

pub async fn list(models: Permitted) -> Response {
    let data: Vec<Value> = models.all().map(|m| object(&m)).collect();
    axum::Json(json!({"object": "list", "data": data})).into_response()
}

pub async fn get(models: Permitted, Path(name): Path<String>) -> Result<Response, ApiError> {
    Ok(axum::Json(object(&models.get(&name)?)).into_response())
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
