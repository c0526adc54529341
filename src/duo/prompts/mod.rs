//! The prompts that GitLab knows by name (step 3 in the life of a request): which inputs each takes, whose scope opens
//! it, what the model is told, and in which form it must answer.
//!
//! A prompt is a folder of data files: `base.toml` is complete, and a file named after a family says only what differs
//! for that family; one that is `like` another family's says what differs from that one. The texts are
//! templates; what GitLab sends is only ever a value in them.

mod files;
pub mod form;
mod route;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::served::ask::{Ask, Input, Message};
use crate::served::family::Family;
use form::Form;

pub use route::{rows, usage};

/// A data file. All of it is optional in a family's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    like: Option<String>,
    version: Option<String>,
    scopes: Option<Vec<String>>,
    forbidden: Option<String>,
    routed: Option<bool>,
    required: Option<Vec<String>>,
    optional: Option<Vec<String>>,
    whole: Option<Vec<String>>,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    stops: Option<Vec<String>>,
    patience: Option<u64>,
    form: Option<Form>,
    message: Option<Vec<Part>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    role: String,
    text: String,
}

impl File {
    /// What this file says, and what another says where this one is silent.
    fn over(self, other: Self) -> Self {
        Self {
            like: None,
            version: self.version.or(other.version),
            scopes: self.scopes.or(other.scopes),
            forbidden: self.forbidden.or(other.forbidden),
            routed: self.routed.or(other.routed),
            required: self.required.or(other.required),
            optional: self.optional.or(other.optional),
            whole: self.whole.or(other.whole),
            max_tokens: self.max_tokens.or(other.max_tokens),
            temperature: self.temperature.or(other.temperature),
            stops: self.stops.or(other.stops),
            patience: self.patience.or(other.patience),
            form: self.form.or(other.form),
            message: self.message.or(other.message),
        }
    }
}

/// A prompt as one family takes it.
#[derive(Debug)]
pub struct Prompt {
    pub id: &'static str,
    pub version: String,
    /// Any one of them opens it.
    pub scopes: Vec<String>,
    /// What a caller without a scope reads.
    pub forbidden: String,
    /// Whether it is asked for by its name. The others belong to routes of their own.
    pub routed: bool,
    pub required: Vec<String>,
    pub optional: Vec<String>,
    /// Inputs that are given as they are or not at all, because the answer is to stand in their place.
    pub whole: Vec<String>,
    pub max_tokens: u32,
    pub temperature: f32,
    pub stops: Vec<String>,
    /// How long GitLab waits where that is not what it waits for every prompt.
    pub patience: Option<Duration>,
    pub form: Option<Form>,
    /// Role and name of the template of each message.
    parts: Vec<(String, String)>,
}

/// Why there is no prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    #[error("Prompt '{0}' is not in this gateway's catalogue")]
    Unknown(String),
    #[error("Prompt '{id}' needs the input '{name}'")]
    Missing { id: &'static str, name: String },
    #[error("Prompt '{id}' cannot be made of these inputs: {reason}")]
    Template { id: &'static str, reason: String },
}

/// What the model is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    pub messages: Vec<Message>,
    /// How the answer begins; not part of what the model writes.
    pub begun: String,
    pub max_tokens: u32,
    pub temperature: f32,
    pub stops: Vec<String>,
    pub form: Option<Form>,
    pub patience: Option<Duration>,
}

impl Rendered {
    /// The same as work for a model.
    pub fn ask(self, id: Arc<str>) -> Ask {
        let input = Input::Chat { messages: self.messages, begun: self.begun };
        Ask {
            temperature: self.temperature,
            stops: self.stops,
            grammar: self.form.map(Form::grammar),
            ..Ask::new(id, input, self.max_tokens)
        }
    }
}

struct Catalogue {
    /// By id, then by family; `None` is the base.
    prompts: BTreeMap<&'static str, BTreeMap<Option<Family>, Prompt>>,
    templates: Environment<'static>,
}

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| Catalogue::read(files::FILES));

/// A prompt as a family takes it: of the family's own file, of one it leans on, or the base.
pub fn find(id: &str, family: Family) -> Option<&'static Prompt> {
    let variants = CATALOGUE.prompts.get(id)?;
    family.folders().iter().find_map(|family| variants.get(&Some(*family))).or_else(|| variants.get(&None))
}

/// The prompt for a model of a family.
pub fn render(id: &str, family: Family, inputs: &Map<String, Value>) -> Result<Rendered, PromptError> {
    find(id, family).ok_or_else(|| PromptError::Unknown(id.to_owned()))?.render(inputs)
}

impl Prompt {
    /// Whether a template may show that input.
    pub fn takes(&self, name: &str) -> bool {
        self.required.iter().chain(&self.optional).any(|known| known == name)
    }

    /// All its messages; the assistant's last one is begun.
    pub fn render(&self, inputs: &Map<String, Value>) -> Result<Rendered, PromptError> {
        if let Some(name) = self.required.iter().find(|name| !inputs.contains_key(name.as_str())) {
            return Err(PromptError::Missing { id: self.id, name: name.clone() });
        }
        let message = |(role, template): &(String, String)| {
            Ok(Message { role: role.clone(), content: self.fill(template, inputs)? })
        };
        let mut messages = self.parts.iter().map(message).collect::<Result<Vec<_>, _>>()?;
        let begun = messages.pop_if(|last| last.role == "assistant").map(|m| m.content).unwrap_or_default();
        Ok(Rendered {
            messages,
            begun,
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            stops: self.stops.clone(),
            form: self.form,
            patience: self.patience,
        })
    }

    /// The first message of a role alone, for conversations that are longer than the prompt.
    pub fn part(&self, role: &str, inputs: &Map<String, Value>) -> Result<String, PromptError> {
        let found = self.parts.iter().find(|(of, _)| of == role);
        let (_, template) =
            found.unwrap_or_else(|| panic!("bug: the prompt {} has no message of the {role}", self.id));
        self.fill(template, inputs)
    }

    fn fill(&self, template: &str, inputs: &Map<String, Value>) -> Result<String, PromptError> {
        let template =
            CATALOGUE.templates.get_template(template).expect("bug: a prompt without its template");
        template
            .render(object(inputs))
            .map(|text| text.trim_end_matches('\n').to_owned())
            .map_err(|e| PromptError::Template { id: self.id, reason: e.detail().unwrap_or("").to_owned() })
    }
}

/// An input as templates take it.
fn value(value: &Value) -> minijinja::Value {
    match value {
        // It would be rendered as a word.
        Value::Null => minijinja::Value::UNDEFINED,
        Value::Bool(b) => (*b).into(),
        Value::Number(n) => match n.as_i64() {
            Some(n) => n.into(),
            None => n.as_f64().unwrap_or_default().into(),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(list) => list.iter().map(self::value).collect(),
        Value::Object(fields) => object(fields),
    }
}

fn object(fields: &Map<String, Value>) -> minijinja::Value {
    minijinja::Value::from_pairs(fields.iter().map(|(name, field)| (name.as_str(), value(field))))
}

impl Catalogue {
    fn read(files: &'static [(&'static str, &'static str)]) -> Self {
        let mut templates = Environment::new();
        // Inputs that GitLab leaves out are empty.
        templates.set_undefined_behavior(UndefinedBehavior::Chainable);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        templates.set_syntax(syntax.expect("bug: the usual delimiters"));
        templates.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        // The engine's own is made for pages and writes quotes and angle brackets as numbers.
        templates.add_filter("tojson", |text: String| Value::String(text).to_string());
        let mut catalogue = Self { prompts: BTreeMap::new(), templates };
        let parse = |path: &str, text: &str| -> File {
            toml::from_str(text).unwrap_or_else(|e| panic!("bug: the prompt {path}: {e}"))
        };
        for (path, text) in files {
            let (id, name) = path.rsplit_once('/').expect("bug: a prompt is a folder");
            let file = |name: &str| {
                let found = files.iter().find(|(path, _)| path.strip_prefix(id) == Some(&format!("/{name}")));
                let (path, text) = found.unwrap_or_else(|| panic!("bug: the prompt {id} has no {name}"));
                parse(path, text)
            };
            let own = parse(path, text);
            let leans = match &own.like {
                Some(name) => file(name).over(file("base")),
                None => file("base"),
            };
            let family = match name {
                "base" => None,
                name => Some(Family::parse(name).unwrap_or_else(|| panic!("bug: no family {name}"))),
            };
            catalogue.add(id, family, path, own.over(leans));
        }
        catalogue
    }

    fn add(&mut self, id: &'static str, family: Option<Family>, path: &str, file: File) {
        let mut parts = Vec::new();
        for (i, part) in file.message.unwrap_or_default().into_iter().enumerate() {
            let name = format!("{path}#{i}");
            let added = self.templates.add_template_owned(name.clone(), part.text);
            added.unwrap_or_else(|e| panic!("bug: the prompt {path}: {e}"));
            parts.push((part.role, name));
        }
        let said = |name: &str| format!("bug: the prompt {path} says nothing of its {name}");
        let prompt = Prompt {
            id,
            version: file.version.unwrap_or_else(|| panic!("{}", said("version"))),
            scopes: file.scopes.unwrap_or_else(|| panic!("{}", said("scopes"))),
            forbidden: file.forbidden.unwrap_or_else(|| format!("Unauthorized to access '{id}'")),
            routed: file.routed.unwrap_or(true),
            required: file.required.unwrap_or_default(),
            optional: file.optional.unwrap_or_default(),
            whole: file.whole.unwrap_or_default(),
            max_tokens: file.max_tokens.unwrap_or(4096),
            temperature: file.temperature.unwrap_or(0.0),
            stops: file.stops.unwrap_or_default(),
            patience: file.patience.map(Duration::from_secs),
            form: file.form,
            parts,
        };
        self.prompts.entry(id).or_default().insert(family, prompt);
    }
}

/// Every prompt with its family; `None` is the base.
pub fn all() -> impl Iterator<Item = (Option<Family>, &'static Prompt)> {
    CATALOGUE.prompts.values().flatten().map(|(family, prompt)| (*family, prompt))
}
