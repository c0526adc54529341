//! Settings that come in lists of tables: the models to serve and the upstreams to serve them from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Value;

use super::keys::{Key, MODEL_KEYS, UPSTREAM_KEYS, size};
use super::layers::{Origin, scalar};
use super::{ConfigError, state};
use crate::nearest::nearest;
use crate::outbound::Base;
use crate::served::family::Family;
use crate::store::Store;

/// One model to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelEntry {
    pub name: String,
    /// `None`: built into the binary.
    pub path: Option<PathBuf>,
    pub quantize: Option<String>,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// `None`: by its checkpoint.
    pub family: Option<Family>,
    /// 0: the checkpoint's own.
    pub context: u32,
    /// Bytes; 0: chosen by the server.
    pub kv: u64,
    /// Keys and values in fp8; else in the checkpoint's type, bf16 on a GPU.
    pub fp8_kv: bool,
    /// 0: one on every GPU, one on the processor.
    pub replicas: u32,
    pub origin: Origin,
}

impl ModelEntry {
    /// The model of this name in the binary, with nothing said about it.
    pub fn built_in(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            path: None,
            quantize: None,
            aliases: Vec::new(),
            family: None,
            context: 0,
            kv: 0,
            fp8_kv: false,
            replicas: 0,
            origin: Origin::Default,
        }
    }

    /// A checkpoint's directory under a name.
    pub fn at(name: String, path: &Path) -> Self {
        let origin = Origin::Flag("--model".to_owned());
        Self { path: Some(path.to_owned()), origin, ..Self::built_in(&name) }
    }

    /// Where it is, for messages.
    pub fn place(&self) -> String {
        self.path.as_ref().map_or("built in".to_owned(), |path| path.display().to_string())
    }
}

/// One OpenAI-compatible server that models are served from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamEntry {
    pub name: String,
    pub url: Base,
    /// Names here and there.
    pub models: Vec<(String, String)>,
    /// Other names of the first model.
    pub aliases: Vec<String>,
    pub key: Option<state::Secret>,
    pub key_file: Option<PathBuf>,
    pub family: Family,
    /// How gaps are asked; empty: by family.
    pub fill: String,
    pub context: u32,
    pub concurrent: usize,
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
    pub timeout: Duration,
    pub ca_file: Option<PathBuf>,
    pub origin: Origin,
}

/// The values of one table, by the rows of `keys`; what is not in it has its default.
struct Values<'a> {
    kind: &'static str,
    values: BTreeMap<&'static str, String>,
    origin: &'a Origin,
}

impl<'a> Values<'a> {
    fn read(
        kind: &'static str,
        keys: &'static [Key],
        value: Value,
        origin: &'a Origin,
    ) -> Result<Self, ConfigError> {
        let Value::Table(table) = value else {
            let what = format!("`{kind}` must be a list of tables");
            return Err(ConfigError::new(origin, what, format!("write [[{kind}]]")));
        };
        let mut values: BTreeMap<&str, String> =
            keys.iter().map(|k| (k.name, k.default.to_owned())).collect();
        for (name, value) in table {
            let Some(key) = keys.iter().find(|k| k.name == name) else {
                let fix = match nearest(&name, keys.iter().map(|k| k.name)) {
                    Some(known) => format!("did you mean `{known}`?"),
                    None => {
                        let names: Vec<_> = keys.iter().map(|k| k.name).collect();
                        format!("a [[{kind}]] has {}", names.join(", "))
                    }
                };
                let what = format!("unknown setting `{name}` of a [[{kind}]]");
                return Err(ConfigError::new(origin, what, fix));
            };
            let text = scalar(key, &name, value, origin)?;
            key.check(&text).map_err(|expected| {
                let what = format!("`{name}` of a [[{kind}]] is {:?}", key.shown(&text));
                ConfigError::new(origin, what, format!("it must be {expected}"))
            })?;
            values.insert(key.name, text);
        }
        Ok(Self { kind, values, origin })
    }

    fn text(&self, name: &str) -> &str {
        &self.values[name]
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.text(name)).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    fn number<T: std::str::FromStr<Err = std::num::ParseIntError>>(&self, name: &str) -> T {
        self.text(name).parse().expect("bug: checked by its row")
    }

    fn seconds(&self, name: &str) -> Duration {
        Duration::from_secs(self.number(name))
    }

    fn list(&self, name: &str) -> Vec<String> {
        self.text(name).split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    fn wrong(&self, what: impl std::fmt::Display, fix: impl Into<String>) -> ConfigError {
        ConfigError::new(self.origin, format!("a [[{}]] {what}", self.kind), fix)
    }
}

impl ModelEntry {
    pub(super) fn read(value: Value, origin: &Origin) -> Result<Self, ConfigError> {
        let values = Values::read("model", MODEL_KEYS, value, origin)?;
        let path = values.path("path");
        let name = match (values.text("name"), &path) {
            ("", Some(path)) => name_of(path),
            (name, _) => name.to_owned(),
        };
        if name.is_empty() {
            return Err(values.wrong("has neither `name` nor `path`", "give it a `path`"));
        }
        Ok(Self {
            name,
            path,
            quantize: Some(values.text("quantize").to_owned()).filter(|q| q != "none"),
            aliases: values.list("aliases"),
            family: Family::parse(values.text("family")),
            context: values.number("context"),
            kv: size(values.text("kv")).expect("bug: checked by its row"),
            fp8_kv: values.text("kv_type") == "fp8",
            replicas: values.number("replicas"),
            origin: origin.clone(),
        })
    }
}

impl ModelEntry {
    /// The same with its directory, where it names an imported model: by its name alone, or as its path.
    pub fn found_in(&self, store: &Store) -> Self {
        let named = match &self.path {
            None => Some(self.name.as_str()),
            // A directory that is there goes before a model of its name.
            Some(path) => path.to_str().filter(|_| !path.is_dir()),
        };
        let found = named.and_then(|name| store.directory(name));
        Self { path: found.or_else(|| self.path.clone()), ..self.clone() }
    }
}

impl UpstreamEntry {
    pub(super) fn read(value: Value, origin: &Origin) -> Result<Self, ConfigError> {
        let values = Values::read("upstream", UPSTREAM_KEYS, value, origin)?;
        let name = values.text("name").to_owned();
        if name.is_empty() {
            return Err(values.wrong("has no `name`", "give it one, like name = \"cluster\""));
        }
        if values.text("url").is_empty() {
            let fix = "give it one, like url = \"https://vllm.example.com/v1\"";
            return Err(values.wrong(format!("{name:?} has no `url`"), fix));
        }
        let url: Base = values.text("url").parse().expect("bug: checked by its row");
        if !url.guarded() && values.text("plain") != "true" {
            let what =
                format!("{name:?} has the `url` {url}: prompts and the key would be readable on the way");
            return Err(values.wrong(what, "use https, or say plain = true where the network is trusted"));
        }
        let model = |entry: &String| match entry.split_once('=') {
            Some((here, there)) => (here.trim().to_owned(), there.trim().to_owned()),
            None => (entry.clone(), entry.clone()),
        };
        let models: Vec<_> = values.list("models").iter().map(model).collect();
        if models.is_empty() {
            return Err(values.wrong(format!("{name:?} has no `models`"), "name what to serve from there"));
        }
        if models.iter().any(|(here, there)| here.is_empty() || there.is_empty()) {
            let fix = "write \"NAME\" or \"NAME=ITS-NAME-THERE\"";
            return Err(values.wrong(format!("{name:?} has a model without a name"), fix));
        }
        let key = values.text("key");
        if !key.is_empty() && !values.text("key_file").is_empty() {
            return Err(values.wrong(format!("{name:?} has `key` and `key_file`"), "leave one of them out"));
        }
        let key = Some(key).filter(|key| !key.is_empty());
        Ok(Self {
            name,
            url,
            models,
            aliases: values.list("aliases"),
            key: key.map(|key| state::Secret::given(key, origin)).transpose()?,
            key_file: values.path("key_file"),
            family: Family::parse(values.text("family")).unwrap_or(Family::General),
            fill: values.text("fill").to_owned(),
            context: values.number("context"),
            concurrent: values.number("concurrent"),
            connect_timeout: values.seconds("connect_timeout"),
            idle_timeout: values.seconds("idle_timeout"),
            timeout: values.seconds("timeout"),
            ca_file: values.path("ca_file"),
            origin: origin.clone(),
        })
    }

    /// The key, from the settings or from its file.
    pub fn secret(&self) -> Result<Option<state::Secret>, ConfigError> {
        let Some(path) = &self.key_file else { return Ok(self.key.clone()) };
        let origin = Origin::File(path.clone());
        let text = std::fs::read_to_string(path).map_err(|e| {
            let what = format!("the key of the upstream {:?} cannot be read: {e}", self.name);
            ConfigError::new(&origin, what, "check the path and its rights")
        })?;
        state::Secret::given(text.trim(), &origin).map(Some)
    }
}

/// A model's name when none is given: the last part of its path.
pub fn name_of(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    full.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}
