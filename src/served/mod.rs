//! The models that requests can name: how each reads and writes, and what runs it.

pub mod ask;
pub mod family;
mod local;

use std::sync::Arc;

use ask::{Answer, Ask, Failure};
use family::Family;

use crate::engine::handle::Handle;
use crate::text::Text;

/// One model, ready to serve.
pub struct Served {
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// Whose prompts it takes.
    pub family: Family,
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

/// Whatever answers under a model's name. Cheap to clone.
#[derive(Clone)]
pub enum Model {
    /// The engine in this process.
    Local(Arc<Served>),
}

impl Model {
    pub fn name(&self) -> &str {
        match self {
            Model::Local(served) => &served.name,
        }
    }

    pub fn aliases(&self) -> &[String] {
        match self {
            Model::Local(served) => &served.aliases,
        }
    }

    pub fn family(&self) -> Family {
        match self {
            Model::Local(served) => served.family,
        }
    }

    /// Whether it was trained to fill gaps.
    pub fn fills(&self) -> bool {
        match self {
            Model::Local(served) => served.text.fim.is_some(),
        }
    }

    /// Whether it was trained for conversations.
    pub fn chats(&self) -> bool {
        match self {
            Model::Local(served) => served.text.chat.is_some(),
        }
    }

    /// Prompt and answer together at most, in tokens.
    pub fn context(&self) -> u32 {
        match self {
            Model::Local(served) => served.context(),
        }
    }

    pub async fn ask(&self, ask: Ask) -> Result<Answer, Failure> {
        match self {
            Model::Local(served) => served.ask(ask).await,
        }
    }

    /// How many tokens a text has.
    pub async fn count(&self, text: String) -> Result<u32, Failure> {
        match self {
            Model::Local(served) => served.count(text).await,
        }
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

    /// Every model, local ones first.
    pub fn all(&self) -> impl Iterator<Item = Model> {
        self.0.iter().cloned().map(Model::Local)
    }

    pub fn names(&self) -> Vec<&str> {
        self.0.iter().map(|m| m.name.as_str()).collect()
    }

    /// Whether there is a model, and every engine is there and takes requests.
    pub fn ready(&self) -> bool {
        !self.0.is_empty() && self.iter().map(|m| m.engine.status()).all(|s| s.alive && !s.stopping)
    }
}
