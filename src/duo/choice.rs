//! Which model answers (between steps 3 and 4 in the life of a request): GitLab names one in `model_metadata` or in
//! flat fields, or none. An endpoint and a key that come with the name are not used.

use crate::served::{Model, Models};

/// What the request wants done: each has a default model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    Completion,
    Generation,
    Chat,
}

/// The names of the default models; an empty one is the first model.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    pub completion: String,
    pub generation: String,
    pub chat: String,
}

impl Defaults {
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
        models.all().find(|model| name.is_empty() || model.name() == name)
    }
}
