//! Which model answers (between steps 3 and 4 in the life of a request): GitLab names one in `model_metadata` or in
//! flat fields, or none. An endpoint and a key that come with the name are not used.
//!
//! In this order: the identifier as a name, then as an alias; the family; the default of the feature. An identifier
//! that leads nowhere is a model that is not there, as a model server would say with 404. What cannot be understood is
//! no wish at all.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::Gateway;
use super::body::Object;
use crate::served::ask::Failure;
use crate::served::family::Family;
use crate::served::{Model, Models};

/// What the request wants done: each has a default model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    Completion,
    Generation,
    Chat,
}

/// The names of the default models; an empty one is the first model that suits the feature.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    pub completion: String,
    pub generation: String,
    pub chat: String,
    told: Told,
}

impl Defaults {
    /// Names of the settings: for completion, generation and chat.
    pub fn new([completion, generation, chat]: [&str; 3]) -> Self {
        let [completion, generation, chat] = [completion, generation, chat].map(str::to_owned);
        Self { completion, generation, chat, told: Told::default() }
    }

    fn of(&self, feature: Feature) -> &str {
        match feature {
            Feature::Completion => &self.completion,
            Feature::Generation => &self.generation,
            Feature::Chat => &self.chat,
        }
    }

    /// The model of a feature for a request that names none.
    pub fn model(&self, models: &Models, feature: Feature) -> Option<Model> {
        let name = self.of(feature);
        if !name.is_empty() {
            return models.all().find(|model| named(model, name));
        }
        let suits = |model: &Model| match feature {
            Feature::Completion => model.fills(),
            Feature::Generation | Feature::Chat => model.chats(),
        };
        models.all().find(suits).or_else(|| models.all().next())
    }
}

/// Endpoints of which the log has said that they are not dialled.
#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<BTreeSet<String>>>);

/// More different endpoints than this are not remembered and not told: they come from requests.
const MOST_TOLD: usize = 64;

impl Told {
    fn endpoint(&self, endpoint: &str) {
        // Names and passwords can stand in an address; a path or a query says nothing here.
        let shown = match url::Url::parse(endpoint) {
            Ok(url) => url.origin().ascii_serialization(),
            Err(_) => "(not an address)".to_owned(),
        };
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < MOST_TOLD && told.insert(shown.clone()) {
            tracing::info!(
                endpoint = shown,
                "requests name a model endpoint; it is never dialled, models are served here or by the [[upstream]]s of \
                 the settings"
            );
        }
    }
}

/// What a request says of the model that it wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    pub provider: Option<String>,
    /// GitLab's "model family"; its field is called `name`.
    pub family: Option<String>,
    pub identifier: Option<String>,
    pub endpoint: Option<String>,
}

/// Names of the fields of a [`Wish`] and of the key, which is looked at for its length only.
struct Names {
    provider: &'static str,
    family: &'static str,
    identifier: &'static str,
    endpoint: &'static str,
    key: &'static str,
}

const METADATA: Names = Names {
    provider: "provider",
    family: "name",
    identifier: "identifier",
    endpoint: "endpoint",
    key: "api_key",
};

const FLAT: Names = Names {
    provider: "model_provider",
    family: "model_name",
    identifier: "model_identifier",
    endpoint: "model_endpoint",
    key: "model_api_key",
};

const PAYLOAD: Names = Names { provider: "provider", family: "model", ..FLAT };

impl Wish {
    /// Of a request's body: `model_metadata`, else the flat fields.
    pub fn of(body: &Object) -> Self {
        let metadata = body.object("model_metadata").ok().flatten();
        // The original requires a provider; without one its metadata counts as malformed.
        let metadata =
            metadata.and_then(|fields| Self::read(&fields, &METADATA).filter(|w| w.provider.is_some()));
        metadata.or_else(|| Self::read(body, &FLAT)).unwrap_or_default()
    }

    /// Of the payload of `/v1/chat/{name}`.
    pub fn of_payload(payload: &Object) -> Self {
        Self::read(payload, &PAYLOAD).unwrap_or_default()
    }

    /// `None`: a field is of another type or over its limit.
    fn read(fields: &Object, names: &Names) -> Option<Self> {
        fields.string(names.key, 2000).ok()?;
        Some(Self {
            provider: fields.string(names.provider, 255).ok()?,
            family: fields.string(names.family, 255).ok()?,
            identifier: fields.string(names.identifier, 1000).ok()?,
            endpoint: fields.string(names.endpoint, 255).ok()?,
        })
    }
}

impl Gateway {
    /// The model that a request's body asks for.
    pub fn choose(&self, body: &Object, feature: Feature) -> Result<Model, Failure> {
        self.resolve(&Wish::of(body), feature)
    }

    /// The model that a wish leads to.
    pub fn resolve(&self, wish: &Wish, feature: Feature) -> Result<Model, Failure> {
        if let Some(endpoint) = wish.endpoint.as_deref().filter(|e| !e.is_empty()) {
            self.defaults.told.endpoint(endpoint);
        }
        // GitLab leaves the choice to the gateway: its `feature_setting` is ours already.
        let ours = wish.provider.as_deref() == Some("gitlab");
        let identifier = wish.identifier.as_deref().map(str::trim).filter(|i| !i.is_empty() && !ours);
        if let Some(model) = identifier.and_then(|identifier| by_identifier(&self.models, identifier)) {
            return Ok(model);
        }
        let family = wish.family.as_deref().filter(|_| !ours).and_then(Family::parse);
        // "General" is no likeness: a name that leads nowhere is not made good by it.
        let family = family.filter(|family| identifier.is_none() || *family != Family::General);
        if let Some(model) = family.and_then(|f| self.models.all().find(|model| model.family() == f)) {
            if let Some(identifier) = identifier {
                tracing::debug!(
                    identifier,
                    model = model.name(),
                    "no model of that name; one of its family answers"
                );
            }
            return Ok(model);
        }
        let there = self.identifiers().join(", ");
        match identifier {
            Some(identifier) => {
                let shown: String = identifier.chars().take(100).collect();
                Err(Failure::Unknown(format!("there is no model {shown:?} here; there are {there}")))
            }
            None => self.defaults.model(&self.models, feature).ok_or_else(|| {
                Failure::Unknown(format!("the default model of this feature is not here; there are {there}"))
            }),
        }
    }

    /// What administrators can enter in GitLab as a model's identifier.
    pub fn identifiers(&self) -> Vec<String> {
        self.models.all().map(|model| format!("custom_openai/{}", model.name())).collect()
    }
}

/// `provider/model` in any of its readings: model names may hold slashes themselves.
fn by_identifier(models: &Models, identifier: &str) -> Option<Model> {
    let mut reading = Some(identifier);
    while let Some(name) = reading {
        let exact = models.all().find(|model| named(model, name));
        let found = exact.or_else(|| models.all().find(|model| alike(model, name)));
        if found.is_some() {
            return found;
        }
        reading = name.split_once('/').map(|(_, rest)| rest).filter(|rest| !rest.is_empty());
    }
    None
}

/// Whether a model has that name, or an alias of it.
fn named(model: &Model, name: &str) -> bool {
    model.name() == name || model.aliases().iter().any(|alias| alias == name)
}

/// The same, whatever the case of its letters.
fn alike(model: &Model, name: &str) -> bool {
    model.name().eq_ignore_ascii_case(name) || model.aliases().iter().any(|a| a.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn wish(body: Value) -> Wish {
        Wish::of(&Object::new(body.as_object().cloned().unwrap()))
    }

    #[test]
    fn metadata_comes_before_flat_fields_and_malformed_metadata_is_none() {
        let metadata = json!({"provider": "openai", "name": "mistral", "identifier": "custom_openai/a", "api_key": null});
        let flat = json!({"model_provider": "litellm", "model_name": "gpt", "model_identifier": "b"});
        let both = |metadata: Value| {
            let mut body = flat.clone();
            body["model_metadata"] = metadata;
            wish(body)
        };
        assert_eq!(both(metadata.clone()).identifier.as_deref(), Some("custom_openai/a"));
        let flat_family = Some("gpt".to_owned());
        for (name, malformed) in [
            ("provider", json!(null)),
            ("provider", json!(3)),
            ("name", json!("n".repeat(256))),
            ("identifier", json!(["a"])),
            ("identifier", json!("i".repeat(1001))),
            ("api_key", json!("k".repeat(2001))),
            ("endpoint", json!("e".repeat(256))),
        ] {
            let mut changed = metadata.clone();
            changed[name] = malformed;
            assert_eq!(both(changed).family, flat_family, "{name}");
        }
        assert_eq!(both(json!("mistral")).family, flat_family);
        assert_eq!(wish(json!({"model_metadata": []})), Wish::default());
        assert_eq!(wish(json!({"model_name": 3, "model_identifier": "a"})), Wish::default());
    }

    #[test]
    fn the_payload_of_raw_chat_has_names_of_its_own() {
        let payload =
            json!({"provider": "litellm", "model": "mistral", "model_endpoint": "http://x", "name": "y"});
        let wish = Wish::of_payload(&Object::new(payload.as_object().cloned().unwrap()));
        assert_eq!(wish.family.as_deref(), Some("mistral"));
        assert_eq!((wish.provider.as_deref(), wish.endpoint.as_deref()), (Some("litellm"), Some("http://x")));
    }
}
