//! The models that requests can name: how each reads and writes, and the engine that runs it.

use std::sync::Arc;

use crate::engine::handle::Handle;
use crate::text::Text;

/// One model, ready to serve.
pub struct Served {
    pub name: String,
    pub text: Arc<Text>,
    pub engine: Handle,
    /// Seconds since 1970 at which it was loaded.
    pub created: u64,
    /// Said wherever the model is listed; the embedded model says here that it is for trying things out.
    pub notice: Option<String>,
}

impl Served {
    /// Prompt and output together at most, in tokens.
    pub fn context(&self) -> u32 {
        self.engine.longest()
    }
}

/// All models of the process, in the order in which they were configured. Cheap to clone.
#[derive(Clone, Default)]
pub struct Models(Arc<[Arc<Served>]>);

impl Models {
    pub fn new(models: Vec<Served>) -> Self {
        Self(models.into_iter().map(Arc::new).collect())
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Served>> {
        self.0.iter().find(|m| m.name == name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.0.iter()
    }

    pub fn names(&self) -> Vec<&str> {
        self.0.iter().map(|m| m.name.as_str()).collect()
    }

    /// Whether there is a model, and every engine is there and takes requests.
    pub fn ready(&self) -> bool {
        !self.0.is_empty() && self.iter().map(|m| m.engine.status()).all(|s| s.alive && !s.stopping)
    }
}
