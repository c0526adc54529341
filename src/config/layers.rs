//! The layers of settings, one over the other, each value with its origin.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::ConfigError;
use super::aliases::{self, Meaning};
use super::entries::{ModelEntry, UpstreamEntry};
use super::keys::{KEYS, Key, Kind, list};
use crate::nearest::nearest;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File(PathBuf),
    Environment(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Environment(name) => write!(f, "environment variable {name}"),
            Origin::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// The settings with their origins.
#[derive(Clone, Debug)]
pub struct Layers {
    values: BTreeMap<&'static str, (String, Origin)>,
    models: Vec<ModelEntry>,
    upstreams: Vec<UpstreamEntry>,
    unused: Vec<String>,
}

/// Where the file is looked for when none is named.
pub const FILE: &str = "/etc/hearth/hearth.toml";

impl Layers {
    /// Defaults only.
    pub fn new() -> Self {
        let values = KEYS.iter().map(|k| (k.name, (k.default.to_owned(), Origin::Default))).collect();
        Self { values, models: Vec::new(), upstreams: Vec::new(), unused: Vec::new() }
    }

    /// Defaults, the file (a named one must exist), the `conf.d` beside it in the order of names, the environment.
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Self::new();
        let path = file.unwrap_or(Path::new(FILE));
        if file.is_some() || path.exists() {
            layers.file(path)?;
            let mut parts: Vec<PathBuf> = match std::fs::read_dir(path.with_file_name("conf.d")) {
                Ok(entries) => entries.filter_map(|e| Some(e.ok()?.path())).collect(),
                Err(_) => Vec::new(),
            };
            parts.retain(|p| p.extension().is_some_and(|e| e == "toml"));
            parts.sort();
            for part in parts {
                layers.file(&part)?;
            }
        }
        layers.environment(environment)?;
        Ok(layers)
    }

    fn file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let origin = Origin::File(path.to_owned());
        let text = std::fs::read_to_string(path).map_err(|e| {
            ConfigError::new(&origin, format!("it cannot be read: {e}"), "check the path and its rights")
        })?;
        self.toml(&text, &origin)
    }

    /// One file's text.
    pub fn toml(&mut self, text: &str, origin: &Origin) -> Result<(), ConfigError> {
        let table: Table = text.parse().map_err(|e: toml::de::Error| {
            ConfigError::new(
                origin,
                // Without the line itself, which may hold the key.
                format!("it is not valid TOML{}: {}", line_of(text, e.span()), e.message()),
                "correct that line",
            )
        })?;
        for (section, value) in table {
            match (section.as_str(), value) {
                ("model", Value::Array(models)) => {
                    for model in models {
                        self.model(ModelEntry::read(model, origin)?);
                    }
                }
                ("upstream", Value::Array(upstreams)) => {
                    for upstream in upstreams {
                        self.upstream(UpstreamEntry::read(upstream, origin)?);
                    }
                }
                ("model" | "upstream", _) => {
                    let what = format!("`{section}` must be a list of tables");
                    return Err(ConfigError::new(origin, what, format!("write [[{section}]]")));
                }
                (_, Value::Table(keys)) => {
                    for (key, value) in keys {
                        let name = format!("{section}.{key}");
                        let known = find(&name, origin)?;
                        let text = scalar(known, &name, value, origin)?;
                        self.set(known, text, origin)?;
                    }
                }
                _ => {
                    let fix = format!("settings are in sections: {}", sections().join(", "));
                    return Err(ConfigError::new(
                        origin,
                        format!("`{section}` stands outside a section"),
                        fix,
                    ));
                }
            }
        }
        Ok(())
    }

    fn environment(&mut self, variables: impl Iterator<Item = (String, String)>) -> Result<(), ConfigError> {
        let mut variables: Vec<_> = variables.collect();
        variables.sort_by(|a, b| (aliases::rank(&a.0), a).cmp(&(aliases::rank(&b.0), b)));
        for (name, value) in &variables {
            if name.starts_with("AIGW_") {
                self.alias(name, value)?;
            }
        }
        for (name, value) in variables {
            let origin = Origin::Environment(name.clone());
            if name == "HEARTH_KEY" {
                self.set(find("server.key", &origin)?, value, &origin)?;
            } else if let Some(path) = name.strip_prefix("HEARTH__") {
                let key = path.to_ascii_lowercase().replacen("__", ".", 1);
                self.set(find(&key, &origin)?, value, &origin)?;
            }
        }
        Ok(())
    }

    /// A variable of GitLab's own gateway.
    fn alias(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        let origin = Origin::Environment(name.to_owned());
        match aliases::meaning(name, value) {
            Ok(Meaning::Set(key, value)) => self.set(find(key, &origin)?, value, &origin),
            Ok(Meaning::Nothing) => Ok(()),
            Ok(Meaning::Unused) => {
                self.unused.push(name.to_owned());
                Ok(())
            }
            Err(expected) => {
                let what = format!("its value is {value:?}");
                Err(ConfigError::new(&origin, what, format!("it must be {expected}")))
            }
        }
    }

    /// Variables of GitLab's own gateway that mean nothing here.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// A flag of the command line.
    pub fn flag(&mut self, flag: &str, name: &'static str, value: String) -> Result<(), ConfigError> {
        let origin = Origin::Flag(flag.to_owned());
        self.set(find(name, &origin)?, value, &origin)
    }

    fn set(&mut self, key: &'static Key, value: String, origin: &Origin) -> Result<(), ConfigError> {
        key.check(&value).map_err(|expected| {
            let what = format!("`{}` is {:?}", key.name, key.shown(&value));
            ConfigError::new(origin, what, format!("it must be {expected}"))
        })?;
        self.values.insert(key.name, (value, origin.clone()));
        Ok(())
    }

    /// Adds a model, or replaces the one of that name.
    pub fn model(&mut self, entry: ModelEntry) {
        match self.models.iter_mut().find(|m| m.name == entry.name) {
            Some(old) => *old = entry,
            None => self.models.push(entry),
        }
    }

    /// Adds an upstream, or replaces the one of that name.
    pub fn upstream(&mut self, entry: UpstreamEntry) {
        match self.upstreams.iter_mut().find(|u| u.name == entry.name) {
            Some(old) => *old = entry,
            None => self.upstreams.push(entry),
        }
    }

    pub fn upstreams(&self) -> &[UpstreamEntry] {
        &self.upstreams
    }

    /// Flags that name models mean these models and no others.
    pub fn only(&mut self, models: Vec<ModelEntry>) {
        self.models = models;
    }

    pub fn models(&self) -> &[ModelEntry] {
        &self.models
    }

    pub fn models_mut(&mut self) -> &mut [ModelEntry] {
        &mut self.models
    }

    pub fn text(&self, name: &str) -> &str {
        &self.values[name].0
    }

    pub fn origin(&self, name: &str) -> &Origin {
        &self.values[name].1
    }

    /// The items of a list.
    pub fn list(&self, name: &str) -> impl Iterator<Item = &str> {
        list(self.text(name))
    }

    pub fn number(&self, name: &str) -> Result<u64, ConfigError> {
        self.parse(name)
    }

    pub fn parse<T: std::str::FromStr>(&self, name: &str) -> Result<T, ConfigError> {
        let (text, origin) = &self.values[name];
        text.parse().map_err(|_| {
            ConfigError::new(origin, format!("`{name}` is {text:?}"), "see `hearth config show`")
        })
    }
}

impl Default for Layers {
    fn default() -> Self {
        Self::new()
    }
}

fn line_of(text: &str, span: Option<std::ops::Range<usize>>) -> String {
    let before = span.and_then(|span| text.get(..span.start));
    before.map(|before| format!(" in line {}", before.matches('\n').count() + 1)).unwrap_or_default()
}

fn sections() -> Vec<String> {
    let mut names: Vec<String> =
        KEYS.iter().map(|k| format!("[{}]", k.name.split('.').next().unwrap_or_default())).collect();
    names.dedup();
    names.extend(["[[model]]".to_owned(), "[[upstream]]".to_owned()]);
    names
}

fn find(name: &str, origin: &Origin) -> Result<&'static Key, ConfigError> {
    if let Some(key) = KEYS.iter().find(|k| k.name == name) {
        return Ok(key);
    }
    let fix = match nearest(name, KEYS.iter().map(|k| k.name)) {
        Some(known) => format!("did you mean `{known}`?"),
        None => "see `hearth config show` for all settings".to_owned(),
    };
    Err(ConfigError::new(origin, format!("unknown setting `{name}`"), fix))
}

/// A value of the file as text, if its type is the setting's.
pub(super) fn scalar(key: &Key, name: &str, value: Value, origin: &Origin) -> Result<String, ConfigError> {
    match (key.kind, value) {
        (Kind::Number(..) | Kind::Size | Kind::SizeWithin(..), Value::Integer(n)) => Ok(n.to_string()),
        (Kind::Switch, Value::Boolean(b)) => Ok(b.to_string()),
        (Kind::Number(..) | Kind::Switch, other) => {
            let expected = if key.kind == Kind::Switch { "true or false" } else { "a number without quotes" };
            Err(ConfigError::new(origin, format!("`{name}` is {other}"), format!("it must be {expected}")))
        }
        (Kind::List | Kind::Addresses | Kind::Networks, Value::Array(list)) => {
            let item = |item: &Value| item.as_str().filter(|text| !text.contains(',')).map(str::to_owned);
            let items: Option<Vec<String>> = list.iter().map(item).collect();
            items.map(|items| items.join(",")).ok_or_else(|| {
                let what = format!("`{name}` is {}", Value::Array(list));
                ConfigError::new(origin, what, "it must be a list of texts without commas")
            })
        }
        (_, Value::String(text)) => Ok(text),
        (_, other) => {
            let what = format!("`{name}` is {}", key.shown(&other.to_string()));
            Err(ConfigError::new(origin, what, "it must be text in quotes"))
        }
    }
}
