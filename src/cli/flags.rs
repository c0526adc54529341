//! The flags that name models and say how they are run: the last layer of the settings.

use std::ffi::OsString;
use std::path::Path;

use clap::Args;

use super::{CliError, Exit};
use crate::config::entries::name_of;
use crate::config::keys::size as parse_size;
use crate::config::{Layers, ModelEntry, models_dir};
use crate::fit::BUILT_IN;
use crate::store::Store;

/// Which models, and how they are run.
#[derive(Args, Clone, Default)]
pub struct ModelFlags {
    /// A checkpoint's directory, NAME=DIR, or the name of a configured or built-in model; may be repeated
    #[arg(long = "model", value_name = "DIR|NAME")]
    models: Vec<String>,
    /// What computes: cpu, cuda, or auto, the GPU if there is one [default: auto]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Threads that compute [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<String>,
    /// Packs weights at load: q8_0, q6_k or q4_k, on a GPU also int8, fp8 or int4
    #[arg(long, value_name = "TYPE", value_parser = ["none", "q8_0", "q6_k", "q4_k", "int8", "fp8", "int4"])]
    quantize: Option<String>,
    /// Tokens of prompt and answer at most [default: the checkpoint's own]
    #[arg(long, value_name = "TOKENS")]
    context: Option<u32>,
    /// Memory for keys and values, like 2GiB [default: room for several whole contexts]
    #[arg(long, value_name = "SIZE")]
    kv: Option<String>,
}

impl ModelFlags {
    /// The models that are named, as they were typed.
    pub fn named(&self) -> &[String] {
        &self.models
    }

    /// The same flags for another process.
    pub fn arguments(&self) -> Vec<OsString> {
        let context = self.context.map(|tokens| tokens.to_string());
        let models = self.models.iter().map(|model| ("--model", Some(model)));
        let flags = [
            ("--device", self.device.as_ref()),
            ("--threads", self.threads.as_ref()),
            ("--quantize", self.quantize.as_ref()),
            ("--context", context.as_ref()),
            ("--kv", self.kv.as_ref()),
        ];
        let given = models.chain(flags).filter_map(|(flag, value)| Some([flag.into(), value?.into()]));
        given.flatten().collect()
    }

    /// Puts the flags over the other layers. Without any model the built-in one is served.
    pub fn apply(&self, layers: &mut Layers) -> Result<(), CliError> {
        for (flag, name, value) in
            [("--device", "engine.device", &self.device), ("--threads", "engine.threads", &self.threads)]
        {
            if let Some(value) = value {
                layers.flag(flag, name, value.clone())?;
            }
        }
        if !self.models.is_empty() {
            let named = self.models.iter().map(|m| entry(m, layers)).collect::<Result<Vec<_>, _>>()?;
            if let Some(twice) =
                named.iter().enumerate().find(|(i, m)| named[..*i].iter().any(|o| o.name == m.name))
            {
                let what = format!("two models are named {}", twice.1.name);
                return Err(CliError::new(Exit::Usage, what).fix("name one of them: --model NAME=DIR"));
            }
            layers.only(named);
        } else if layers.models().is_empty() && layers.upstreams().is_empty() {
            layers.only(vec![the_built_in()?]);
        }
        let kv = match &self.kv {
            None => None,
            Some(text) => Some(parse_size(text).ok_or_else(|| {
                CliError::new(Exit::Usage, format!("--kv is {text:?}"))
                    .fix("give a size, like 512MiB or 8GiB")
            })?),
        };
        for model in layers.models_mut() {
            if let Some(quantize) = &self.quantize {
                model.quantize = Some(quantize.clone()).filter(|q| q != "none");
            }
            model.context = self.context.unwrap_or(model.context);
            model.kv = kv.unwrap_or(model.kv);
        }
        Ok(())
    }
}

/// The model of somebody who has configured none.
pub fn the_built_in() -> Result<ModelEntry, CliError> {
    BUILT_IN.map(ModelEntry::built_in).ok_or_else(|| {
        CliError::new(Exit::Model, "no model is configured and none is built in").fix("give --model DIR")
    })
}

/// What a `--model` means.
fn entry(text: &str, layers: &Layers) -> Result<ModelEntry, CliError> {
    if let Some((name, path)) =
        text.split_once('=').filter(|(name, _)| !name.is_empty() && !name.contains('/'))
    {
        return Ok(ModelEntry::at(name.to_owned(), Path::new(path)));
    }
    if let Some(known) = layers.models().iter().find(|m| m.name == text) {
        return Ok(known.clone());
    }
    let path = Path::new(text);
    if path.is_dir() {
        return Ok(ModelEntry::at(name_of(path), path));
    }
    if BUILT_IN == Some(text) {
        return Ok(ModelEntry::built_in(text));
    }
    let store = Store::at(models_dir(layers));
    if let Some(path) = store.directory(text) {
        return Ok(ModelEntry::at(text.to_owned(), &path));
    }
    let imported = store.names().unwrap_or_default();
    let mut known: Vec<&str> = layers.models().iter().map(|m| m.name.as_str()).collect();
    known.extend(imported.iter().map(String::as_str));
    known.extend(BUILT_IN);
    let fix = format!("give a checkpoint's directory, or one of {}", known.join(", "));
    Err(CliError::new(Exit::Model, format!("there is no model {text}")).fix(fix))
}
