//! The models that requests can name: how each reads and writes, and what runs it.

pub mod ask;
pub mod family;
mod local;

use std::sync::Arc;

use ask::{Answer, Ask, Failure};
use family::Family;

use crate::engine::replicas::Replicas;
use crate::store::Papers;
use crate::text::Text;
use crate::upstream;

/// One model, ready to serve.
pub struct Served {
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// Whose prompts it takes.
    pub family: Family,
    pub text: Arc<Text>,
    pub engine: Replicas,
    /// Seconds since 1970 at which it was loaded.
    pub created: u64,
    /// Said wherever the model is listed; the embedded model says here that it is for trying things out.
    pub notice: Option<String>,
    pub papers: Papers,
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
    /// A server that the settings list.
    Upstream(Arc<upstream::Model>),
}

impl Model {
    pub fn name(&self) -> &str {
        match self {
            Model::Local(served) => &served.name,
            Model::Upstream(model) => &model.name,
        }
    }

    pub fn aliases(&self) -> &[String] {
        match self {
            Model::Local(served) => &served.aliases,
            Model::Upstream(model) => &model.aliases,
        }
    }

    pub fn family(&self) -> Family {
        match self {
            Model::Local(served) => served.family,
            Model::Upstream(model) => model.family,
        }
    }

    /// Whether it was trained to fill gaps.
    pub fn fills(&self) -> bool {
        match self {
            Model::Local(served) => served.text.fim.is_some(),
            Model::Upstream(model) => model.fills(),
        }
    }

    /// Whether it was trained for conversations.
    pub fn chats(&self) -> bool {
        match self {
            Model::Local(served) => served.text.chat.is_some(),
            Model::Upstream(_) => true,
        }
    }

    /// Prompt and answer together at most, in tokens.
    pub fn context(&self) -> u32 {
        match self {
            Model::Local(served) => served.context(),
            Model::Upstream(model) => model.context,
        }
    }

    pub async fn ask(&self, ask: Ask) -> Result<Answer, Failure> {
        match self {
            Model::Local(served) => served.ask(ask).await,
            Model::Upstream(model) => model.ask(ask).await,
        }
    }

    /// How many tokens a text has; a third of its bytes where the tokenizer is elsewhere.
    pub async fn count(&self, text: String) -> Result<u32, Failure> {
        match self {
            Model::Local(served) => served.count(text).await,
            Model::Upstream(model) => Ok(model.count(&text)),
        }
    }
}

/// All models of the process, in the order in which they were configured. Cheap to clone.
#[derive(Clone, Default)]
pub struct Models {
    local: Arc<[Arc<Served>]>,
    upstream: Arc<[Arc<upstream::Model>]>,
}

impl Models {
    pub fn new(models: Vec<Served>) -> Self {
        Self { local: models.into_iter().map(Arc::new).collect(), upstream: Arc::default() }
    }

    /// With models of upstreams beside those of this process.
    pub fn with_upstreams(self, models: Vec<upstream::Model>) -> Self {
        Self { upstream: models.into_iter().map(Arc::new).collect(), ..self }
    }

    /// The model of that name, or the one that has it as an alias.
    pub fn get(&self, name: &str) -> Option<Model> {
        let alias = || self.all().find(|m| m.aliases().iter().any(|alias| alias == name));
        self.all().find(|m| m.name() == name).or_else(alias)
    }

    /// The models of this process.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.local.iter()
    }

    /// The models of upstreams.
    pub fn upstream(&self) -> impl Iterator<Item = &Arc<upstream::Model>> {
        self.upstream.iter()
    }

    /// Every model, local ones first.
    pub fn all(&self) -> impl Iterator<Item = Model> {
        let local = self.local.iter().cloned().map(Model::Local);
        local.chain(self.upstream.iter().cloned().map(Model::Upstream))
    }

    pub fn names(&self) -> Vec<&str> {
        let local = self.local.iter().map(|m| m.name.as_str());
        local.chain(self.upstream.iter().map(|m| m.name.as_str())).collect()
    }

    /// Whether there is a model, and every engine is there and takes requests. An upstream that is away makes its own
    /// requests fail and not this server.
    pub fn ready(&self) -> bool {
        let any = !self.local.is_empty() || !self.upstream.is_empty();
        any && self.iter().map(|m| m.engine.status()).all(|s| s.alive && !s.stopping)
    }
}
