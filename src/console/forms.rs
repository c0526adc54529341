//! What the console's buttons do. Each ends where it began, and the page says what came of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Redirect;
use tokio::task::spawn_blocking;

use super::sessions::Session;
use crate::admin::endpoints::{blocking, whole};
use crate::admin::status::minutes;
use crate::admin::{Admin, AdminError};
use crate::audit::Who;

type At = State<Arc<Admin>>;
type By = (Extension<Arc<Session>>, Extension<Who>);

/// The fields of a form.
pub async fn fields(request: Request) -> Result<HashMap<String, String>, AdminError> {
    let body = whole(request.into_body()).await?;
    Ok(url::form_urlencoded::parse(&body).into_owned().collect())
}

pub async fn reload(State(admin): At, (session, Extension(who)): By) -> Redirect {
    match spawn_blocking(move || admin.reload(&who)).await {
        Ok(Ok(parts)) if parts.is_empty() => session.tell(true, "Reloaded: the settings are valid."),
        Ok(Ok(parts)) => session.tell(true, format!("Reloaded: {}.", parts.join(", "))),
        Ok(Err(e)) => {
            session.tell(false, format!("Nothing has changed: {e} ({}). Fix: {}.", e.origin, e.fix));
        }
        Err(_) => session.tell(false, "The reload broke; what it had not swapped is as before. See the log."),
    }
    Redirect::to("/")
}

pub async fn drain(State(admin): At, (session, Extension(who)): By) -> Redirect {
    let left = blocking(move || admin.drain(&who)).await;
    session.tell(true, format!("Draining: readiness says no; {left} requests in flight."));
    Redirect::to("/")
}

/// `minutes` from 1 on, or 0 for off.
pub async fn prompts(
    State(admin): At,
    (session, Extension(who)): By,
    request: Request,
) -> Result<Redirect, AdminError> {
    let fields = fields(request).await?;
    match fields.get("minutes").and_then(|text| text.parse::<u64>().ok()).filter(|n| *n <= 1440) {
        Some(0) => {
            blocking(move || admin.stop_logging_prompts(&who)).await;
            session.tell(true, "Prompts and answers no longer go into the log.");
        }
        Some(number) => {
            let time = Duration::from_secs(60 * number);
            match blocking(move || admin.log_prompts(&who, time)).await {
                Ok(()) => {
                    let text = format!("Prompts and answers go into the log for {}.", minutes(60 * number));
                    session.tell(true, text);
                }
                Err(e) => session.tell(false, format!("Nothing has changed: {e}. Fix: {}.", e.fix())),
            }
        }
        None => session.tell(false, "For how long? From 1 to 1440 minutes."),
    }
    Ok(Redirect::to("/"))
}
