//! The catalogue: what is known of the checkpoints that sites run, before one of them is at hand.
//!
//! A file each in `models/catalog/`: where it is published, its licence, what GitLab says it is good for, the formats of its
//! prompts, its shape and hardware. A checkpoint is recognised by its shape, and which of several of one shape by its name.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::spec::Spec;

const FILES: &[&str] = &[
    include_str!("../catalog/codegemma-2b.toml"),
    include_str!("../catalog/codegemma-7b-it.toml"),
    include_str!("../catalog/codegemma-7b.toml"),
    include_str!("../catalog/codellama-13b-instruct.toml"),
    include_str!("../catalog/codellama-13b.toml"),
    include_str!("../catalog/codestral-22b-v0.1.toml"),
    include_str!("../catalog/deepseek-coder-33b-base.toml"),
    include_str!("../catalog/deepseek-coder-33b-instruct.toml"),
    include_str!("../catalog/devstral-2-123b.toml"),
    include_str!("../catalog/gemma-4-31b-it.toml"),
    include_str!("../catalog/glm-5.1-fp8.toml"),
    include_str!("../catalog/gpt-oss-120b.toml"),
    include_str!("../catalog/gpt-oss-20b.toml"),
    include_str!("../catalog/kimi-k2.5.toml"),
    include_str!("../catalog/kimi-k2.6.toml"),
    include_str!("../catalog/llama-3-70b-instruct.toml"),
    include_str!("../catalog/llama-3-8b-instruct.toml"),
    include_str!("../catalog/llama-3.1-70b-instruct.toml"),
    include_str!("../catalog/llama-3.1-8b-instruct.toml"),
    include_str!("../catalog/llama-3.3-70b-instruct.toml"),
    include_str!("../catalog/minimax-m2.7.toml"),
    include_str!("../catalog/mistral-7b-instruct-v0.2.toml"),
    include_str!("../catalog/mistral-7b-instruct-v0.3.toml"),
    include_str!("../catalog/mistral-7b-v0.1.toml"),
    include_str!("../catalog/mistral-medium-3.5-128b.toml"),
    include_str!("../catalog/mistral-small-24b-2506.toml"),
    include_str!("../catalog/mixtral-8x22b-instruct-v0.1.toml"),
    include_str!("../catalog/mixtral-8x22b-v0.1.toml"),
    include_str!("../catalog/mixtral-8x7b-instruct-v0.1.toml"),
    include_str!("../catalog/mixtral-8x7b-v0.1.toml"),
    include_str!("../catalog/qwen2.5-coder-7b-instruct.toml"),
    include_str!("../catalog/qwen3.6-35b-a3b.toml"),
];

/// One checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// `publisher/model` on the hub.
    pub id: String,
    /// What to call it here.
    pub name: String,
    pub title: String,
    /// What to take: a branch, a tag or a commit. An import writes down the commit it got.
    pub revision: String,
    /// Whether the publisher wants an agreement before it is downloaded.
    pub gated: bool,
    /// The family to choose in GitLab.
    pub family: String,
    /// Why this version does not serve it; absent: it does.
    pub not_served: Option<String>,
    pub note: Option<String>,
    pub parameters: Option<u64>,
    pub licence: Licence,
    pub features: Features,
    pub formats: Formats,
    pub shape: Option<Shape>,
    pub hardware: Option<Hardware>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Licence {
    pub name: String,
    pub title: String,
    pub url: Option<String>,
    /// Whether it allows production; absent: with conditions, to be read.
    pub production: Option<bool>,
    pub note: Option<String>,
}

/// What GitLab's tables say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Features {
    pub completion: String,
    pub generation: String,
    pub chat: String,
    pub agents: String,
    /// The version of GitLab whose table it is.
    pub table: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Formats {
    /// How gaps are asked for in tokens; `none`: in words.
    pub fill: String,
    pub chat: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    pub architecture: String,
    pub hidden: usize,
    pub layers: usize,
    pub ffn: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub context: usize,
    #[serde(default)]
    pub experts: usize,
    #[serde(default)]
    pub tied: bool,
}

/// The minimum that GitLab publishes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    pub gpus: String,
    pub vram_gb: u64,
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let read = |text: &&str| toml::from_str(text).expect("bug: a file of the catalogue does not parse");
    FILES.iter().map(read).collect()
});

/// Every checkpoint, by file name.
pub fn all() -> &'static [Entry] {
    &ENTRIES
}

/// The checkpoint of that id or name, in any case.
pub fn find(name: &str) -> Option<&'static Entry> {
    all()
        .iter()
        .find(|entry| [&entry.id, &entry.name].into_iter().any(|known| known.eq_ignore_ascii_case(name)))
}

/// A checkpoint that looks like one of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recognised {
    pub entry: &'static Entry,
    /// Its name says so too. Else it has the shape, as a site's own training of it has.
    pub named: bool,
}

/// The checkpoint of this shape, and of several the one that a hint (a directory's name, say) names.
pub fn recognise(spec: &Spec, hints: &[&str]) -> Option<Recognised> {
    let shape = |entry: &'static Entry| entry.shape.as_ref().filter(|shape| shape.is(spec));
    let mut alike: Vec<&'static Entry> = all().iter().filter(|entry| shape(entry).is_some()).collect();
    // A site may have made the context shorter; where it has not, it tells Llama 3 from 3.1.
    let same_context =
        |entry: &&Entry| entry.shape.as_ref().is_some_and(|shape| shape.context == spec.context);
    if alike.iter().any(same_context) {
        alike.retain(same_context);
    }
    let hints: Vec<String> = hints.iter().map(|hint| plain(hint)).collect();
    let named = |entry: &&&Entry| {
        let last = plain(entry.id.rsplit('/').next().unwrap_or_default());
        hints.iter().any(|hint| hint.ends_with(&last) || *hint == plain(&entry.name))
    };
    let by_name = alike.iter().find(named).map(|entry| Recognised { entry, named: true });
    by_name.or_else(|| alike.first().map(|entry| Recognised { entry, named: false }))
}

fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

impl Shape {
    /// Whether a checkpoint has it, whatever its context.
    fn is(&self, spec: &Spec) -> bool {
        let of =
            (spec.family.name(), spec.hidden, spec.layers, spec.ffn, spec.heads, spec.kv_heads, spec.vocab);
        let own =
            (&*self.architecture, self.hidden, self.layers, self.ffn, self.heads, self.kv_heads, self.vocab);
        own == of && spec.experts.map_or(0, |experts| experts.count) == self.experts
    }
}

impl Licence {
    /// One line for a person.
    pub fn about(&self) -> String {
        let Self { title, url, production, note, .. } = self;
        let word = if *production == Some(false) { ", NOT for production" } else { "" };
        let note = note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
        let url = url.as_ref().map(|url| format!(" ({url})")).unwrap_or_default();
        format!("{title}{word}{note}{url}")
    }
}

impl Entry {
    /// Bytes of its weights as they are published, two for each parameter.
    pub fn weight_bytes(&self) -> Option<u64> {
        self.parameters.map(|n| 2 * n)
    }
}
