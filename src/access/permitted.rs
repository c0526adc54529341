//! The models that the key of a request opens. Endpoints for keys reach models through this and in no other way, so that
//! none can forget to ask.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::refusal::not_this_model;
use super::{Holder, Meter, Pass};
use crate::openai::error::ApiError;
use crate::served::{Model, Models};
use crate::server::Shared;

/// Whose request it is, for what comes after the guard; an extension of every request that came in with a key.
#[derive(Clone)]
pub struct Held {
    pub holder: Arc<Holder>,
    pub meter: Meter,
}

impl From<&Pass> for Held {
    fn from(pass: &Pass) -> Self {
        Self { holder: pass.holder.clone(), meter: pass.meter() }
    }
}

/// The models of the process, as far as the key opens them.
#[derive(Clone)]
pub struct Permitted {
    models: Models,
    held: Held,
}

impl FromRequestParts<Shared> for Permitted {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, ApiError> {
        // A row that reaches models and lets requests in without a key fails here, and opens nothing.
        let held = parts.extensions.get::<Held>().cloned().ok_or_else(ApiError::no_key)?;
        Ok(Self { models: shared.models.clone(), held })
    }
}

impl Permitted {
    fn open(&self, model: &Model) -> bool {
        let names = [model.name()].into_iter().chain(model.aliases().iter().map(String::as_str));
        self.held.holder.grant.opens(names)
    }

    /// The model of that name: 404 if there is none, 403 if the key does not open it.
    pub fn get(&self, name: &str) -> Result<Model, ApiError> {
        let shown: String = name.chars().take(100).collect();
        let names: Vec<String> = self.all().map(|model| model.name().to_owned()).collect();
        match self.models.get(name) {
            Some(model) if self.open(&model) => Ok(model),
            Some(_) => Err(not_this_model(&self.held.holder.id, &shown, &names)),
            None => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                Err(ApiError::no_such_model(&shown, &names))
            }
        }
    }

    /// Every model that is open, in the order in which they were configured.
    pub fn all(&self) -> impl Iterator<Item = Model> {
        self.models.all().filter(|model| self.open(model))
    }

    /// What counts the tokens of this request.
    pub fn meter(&self) -> &Meter {
        &self.held.meter
    }
}
