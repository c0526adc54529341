//! The licence of a checkpoint: its text among the files, what it is called, whether it allows production.

use std::collections::BTreeMap;
use std::path::Path;

use hearth_models::catalog;
use hearth_models::spec::Spec;

use super::error::{StoreError, brief};
use super::source::Source;
use super::{bounded, policy};

/// What is known of a licence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// The checkpoint of the catalogue that it is, if it is known.
    pub id: Option<String>,
    /// As it is called; empty: not known.
    pub name: String,
    /// The file with its text.
    pub file: Option<String>,
    pub text: Option<String>,
    pub production: Option<bool>,
    /// What the catalogue says about it.
    pub about: Option<String>,
}

const LIMIT: u64 = 4 << 20;
/// How the texts of licences can be told, and whether they allow production.
const KNOWN: &[(&str, &str, Option<bool>)] = &[
    ("Mistral AI Non-Production License", "MNPL-0.1", Some(false)),
    ("MISTRAL AI NON-PRODUCTION LICENSE", "MNPL-0.1", Some(false)),
    ("Mistral AI Research License", "MRL-0.1", Some(false)),
    ("LLAMA 3.3 COMMUNITY LICENSE AGREEMENT", "llama3.3", None),
    ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT", "llama3.1", None),
    ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT", "llama3", None),
    ("LLAMA 2 COMMUNITY LICENSE AGREEMENT", "llama2", None),
    ("Gemma Terms of Use", "gemma", None),
    ("DEEPSEEK LICENSE AGREEMENT", "deepseek", None),
    ("Apache License", "apache-2.0", Some(true)),
    ("MIT License", "mit", Some(true)),
];

/// Names of licences on the hub that allow production without more ado.
const FREE: &[&str] = &["apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0", "unlicense"];

/// The terms of a checkpoint whose files lie in a directory.
pub fn of(directory: &Path, spec: &Spec, hints: &[&str]) -> Terms {
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let text = |name: String| {
        let bytes = bounded(&directory.join(&name), LIMIT).ok()?;
        Some((name, String::from_utf8_lossy(&bytes).into_owned()))
    };
    let texts = names.filter(|name| telling(name)).filter_map(text).collect();
    terms(&texts, Some(spec), hints)
}

/// The terms of a checkpoint before it is imported. Standard input can be read only once, so not for this.
pub fn before(source: &Source, hints: &[&str]) -> Result<Terms, StoreError> {
    let mut texts = BTreeMap::new();
    let mut config = None;
    if *source != Source::Stdin {
        source.each(&mut |offer| {
            let wanted = telling(offer.name) || offer.name == "config.json";
            if wanted && offer.bytes <= LIMIT {
                let mut text = String::new();
                let read =
                    std::io::Read::read_to_string(&mut std::io::Read::take(offer.read, LIMIT), &mut text);
                let place = source.place();
                read.map_err(|e| StoreError::Archive {
                    place,
                    reason: format!("{}: {e}", brief(offer.name)),
                })?;
                match offer.name {
                    "config.json" => config = serde_json::from_str(&text).ok(),
                    name => _ = texts.insert(name.to_owned(), text),
                }
            }
            Ok(())
        })?;
    }
    let spec = config.and_then(|config| Spec::from_config(&config).ok());
    Ok(terms(&texts, spec.as_ref(), hints))
}

fn telling(name: &str) -> bool {
    policy::is_licence(name) || name == "README.md"
}

fn terms(texts: &BTreeMap<String, String>, spec: Option<&Spec>, hints: &[&str]) -> Terms {
    let recognised = spec.and_then(|spec| catalog::recognise(spec, hints));
    let known = recognised.map(|of| of.entry);
    // A notice is no licence, where there is both.
    let mut files: Vec<&String> = texts.keys().filter(|name| policy::is_licence(name)).collect();
    files.sort_by_key(|name| !name.to_ascii_lowercase().starts_with("licen"));
    let file = files.first().map(|name| (*name).clone());
    let text = file.as_ref().map(|name| texts[name].clone());
    let by_text = text.as_ref().and_then(|text| KNOWN.iter().find(|(begin, ..)| text.contains(begin)));
    let by_card = texts.get("README.md").and_then(|card| of_card(card));
    let (name, production) = match (by_text, known, by_card) {
        (Some((_, name, production)), ..) => ((*name).to_owned(), *production),
        (None, _, Some(name)) => {
            let production = FREE.contains(&name.as_str()).then_some(true);
            (name, production)
        }
        (None, Some(entry), None) => (entry.licence.name.clone(), entry.licence.production),
        (None, None, None) => (String::new(), None),
    };
    // The catalogue's word counts where the files say less: an archive without its licence is not a licence.
    let production = match known.and_then(|entry| entry.licence.production) {
        Some(false) => Some(false),
        _ => production,
    };
    let like = if recognised.is_some_and(|of| of.named) { "it is" } else { "it has the shape of" };
    let about = known.map(|entry| format!("{like} {}: {}", entry.title, entry.licence.about()));
    let id = recognised.filter(|of| of.named).map(|of| of.entry.id.clone());
    Terms { id, name, file, text, production, about }
}

/// `license: apache-2.0` in the head of a model card.
fn of_card(card: &str) -> Option<String> {
    let head = card.strip_prefix("---")?.split("\n---").next()?;
    let line = |key: &str| head.lines().find_map(|line| Some(line.strip_prefix(key)?.trim().to_owned()));
    let name = line("license:")?;
    let name = if name == "other" { line("license_name:").unwrap_or(name) } else { name };
    Some(brief(&name)).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(files: &[(&str, &str)]) -> Terms {
        terms(&files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect(), None, &[])
    }

    #[test]
    fn a_licence_is_told_by_its_text_and_else_by_the_card() {
        let card = "---\nlicense: apache-2.0\nlanguage: en\n---\n# A model";
        let terms = told(&[("LICENSE", "Mistral AI Non-Production License\n…"), ("README.md", card)]);
        assert_eq!((terms.name.as_str(), terms.production), ("MNPL-0.1", Some(false)));
        assert_eq!(terms.file.as_deref(), Some("LICENSE"));
        let terms = told(&[("README.md", card)]);
        assert_eq!((terms.name.as_str(), terms.production, terms.file), ("apache-2.0", Some(true), None));
        let card = "---\nlicense: other\nlicense_name: mnpl\n---\n";
        assert_eq!(told(&[("README.md", card)]).name, "mnpl");
        assert_eq!(told(&[("NOTICE", "x"), ("LICENSE.txt", "y")]).file.as_deref(), Some("LICENSE.txt"));
        assert_eq!(told(&[]), Terms::default());
    }
}
