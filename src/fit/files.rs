//! What a configured model consists of: its checkpoint and the files of its text, from a directory or from the binary.

use hearth_models::checkpoint::Checkpoint;
use hearth_models::spec::Spec;

use super::Unfit;
use crate::config::{ModelEntry, Settings};
use crate::served::family::Family;
use crate::store::{self, Papers, Report, Store};
use crate::text::{Text, TextFiles};

/// The name of the model inside the binary, if there is one.
#[cfg(feature = "ember")]
pub const BUILT_IN: Option<&str> = Some(hearth_models::ember::NAME);
#[cfg(not(feature = "ember"))]
pub const BUILT_IN: Option<&str> = None;

/// A model's files, opened and not read yet.
pub struct Files {
    pub checkpoint: Checkpoint,
    pub text: TextFiles,
    /// What users of the model should know.
    pub notice: Option<String>,
}

impl Files {
    pub fn of(entry: &ModelEntry) -> Result<Self, Unfit> {
        let Some(path) = &entry.path else { return built_in(&entry.name) };
        let failed = |what: String| {
            let place = Some(format!("model {} ({})", entry.name, entry.origin));
            Unfit::Model { what, place, fix: None }
        };
        let checkpoint = Checkpoint::open(path).map_err(|e| failed(e.to_string()))?;
        let text = TextFiles::read(path).map_err(|e| failed(e.to_string()))?;
        Ok(Self { checkpoint, text, notice: None })
    }
}

/// An imported model must be what was imported. What was compared.
pub fn as_imported(entry: &ModelEntry, settings: &Settings) -> Result<Option<Report>, Unfit> {
    let Some(path) = &entry.path else { return Ok(None) };
    Ok(store::at_load(&Store::at(&settings.models_dir), path, settings.verify)?)
}

/// What is known of a model beside how it computes.
pub fn papers(entry: &ModelEntry, settings: &Settings, spec: &Spec, compared: Option<&Report>) -> Papers {
    let Some(path) = &entry.path else { return built_in_papers() };
    Papers::of(&Store::at(&settings.models_dir), path, &entry.name, spec, settings.verify, compared)
}

#[cfg(feature = "ember")]
pub fn built_in_papers() -> Papers {
    use hearth_models::ember;
    Papers::built_in(&[ember::CONFIG, ember::TOKENIZER, ember::weights()])
}

#[cfg(not(feature = "ember"))]
pub fn built_in_papers() -> Papers {
    Papers::default()
}

#[cfg(feature = "ember")]
fn built_in(name: &str) -> Result<Files, Unfit> {
    use hearth_models::ember;
    if name != ember::NAME {
        return Err(not_built_in(name));
    }
    let checkpoint = ember::checkpoint().map_err(|e| Unfit::model(e.to_string()))?;
    let text = TextFiles {
        tokenizer: ember::TOKENIZER.to_vec(),
        tokenizer_config: Some(ember::TOKENIZER_CONFIG.to_vec()),
        chat_template: None,
    };
    let notice = "ember-demo is the small built-in model: it finishes code-like text for trying things out and is not \
                  useful for work; serve a real one with --model DIR";
    Ok(Files { checkpoint, text, notice: Some(notice.to_owned()) })
}

#[cfg(not(feature = "ember"))]
fn built_in(name: &str) -> Result<Files, Unfit> {
    Err(not_built_in(name))
}

fn not_built_in(name: &str) -> Unfit {
    Unfit::Model {
        what: format!("no model named {name} is built in"),
        place: None,
        fix: Some(format!(
            "give it a `path`, or import it: hearth models import DIR --name {name} --accept-license"
        )),
    }
}

/// The family of a model, of which nothing but the small files is read. `None`: they cannot be.
pub fn family(entry: &ModelEntry) -> Option<Family> {
    let of_checkpoint = || {
        let files = Files::of(entry).ok()?;
        let spec = files.checkpoint.spec();
        let text = Text::new(&files.text, spec.vocab as u32, spec.context as u32, &spec.eos).ok()?;
        Some(Family::of(spec.family, &text, entry.path.is_none()))
    };
    entry.family.or_else(of_checkpoint)
}
