//! The papers of a model (before the life of a request): which bytes it is, where they came from, under what licence, and
//! what was compared before it was served. `hearth status`, the console and `hearth doctor` show them.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use hearth_models::catalog;
use hearth_models::spec::Spec;
use serde::{Deserialize, Serialize};

use super::blob::hex;
use super::verify::{How, Report};
use super::{OWN_FILES, Store, licence, now};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Papers {
    /// `sha256:…`: of an imported model the digest of its manifest, else that of its files ([`digest_of`]). `None`: they
    /// cannot be read.
    pub digest: Option<String>,
    pub origin: Origin,
    /// When it was imported; RFC 3339.
    pub imported: Option<String>,
    /// As its licence is called; empty: not known.
    pub licence: String,
    /// Whether that allows production; `None`: with conditions, or not known.
    pub production: Option<bool>,
    /// Who accepted it, of an imported model.
    pub accepted_by: Option<String>,
    /// The type of its weights, and what they are packed to at load.
    pub format: String,
    pub compared: Option<Compared>,
}

/// Where its bytes are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    #[default]
    BuiltIn,
    /// A directory that nobody imported: there are no sums to compare it with.
    Directory,
    Store,
}

/// What was compared with the sums of the import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    pub how: How,
    pub bytes: u64,
    /// RFC 3339.
    pub at: String,
}

impl Papers {
    /// Of the model in the binary.
    pub fn built_in(files: &[&[u8]]) -> Self {
        Self { digest: Some(digest(files)), ..Self::default() }
    }

    /// Of a checkpoint's directory that is about to be served. `report` is what came of comparing it.
    pub fn of(
        store: &Store,
        directory: &Path,
        name: &str,
        spec: &Spec,
        how: How,
        report: Option<&Report>,
    ) -> Self {
        let stored = store.model_in(directory).and_then(|name| store.get(&name).ok());
        let Some(manifest) = stored.map(|stored| stored.manifest) else {
            let from = directory.file_name().unwrap_or_default().to_string_lossy();
            let terms = licence::of(directory, spec, &[name, &from]);
            return Self {
                digest: digest_of(directory).ok(),
                origin: Origin::Directory,
                licence: terms.name,
                production: terms.production,
                ..Self::default()
            };
        };
        let listed = manifest.id.as_ref().and_then(|id| catalog::find(id));
        let by_catalogue = listed.and_then(|entry| entry.licence.production);
        Self {
            digest: Some(format!("sha256:{}", manifest.digest())),
            origin: Origin::Store,
            imported: Some(manifest.imported),
            licence: manifest.licence.name,
            // The catalogue's word counts where the files said less.
            production: if by_catalogue == Some(false) { by_catalogue } else { manifest.licence.production },
            accepted_by: Some(manifest.licence.accepted_by),
            compared: report.map(|report| Compared { how, bytes: report.bytes, at: now() }),
            ..Self::default()
        }
    }

    /// Where it came from and whether it is still that, for a person.
    pub fn provenance(&self) -> String {
        let imported = self.imported.as_deref().unwrap_or_default();
        match (self.origin, &self.compared) {
            (Origin::BuiltIn, _) => "part of this binary".to_owned(),
            (Origin::Directory, _) => "not imported: there are no sums to compare it with".to_owned(),
            (Origin::Store, None) => format!("imported {imported}, never compared with its sums when loaded"),
            (Origin::Store, Some(Compared { how, at, .. })) => {
                let much = if *how == How::Full { "every byte" } else { "a sample" };
                format!("imported {imported}, {much} compared with its sums {at}")
            }
        }
    }

    /// The licence, for a person.
    pub fn licence(&self) -> String {
        let name = match (self.origin, self.licence.is_empty()) {
            (_, false) => &self.licence,
            (Origin::BuiltIn, true) => "licence of hearth",
            (_, true) => "licence not known",
        };
        let production = if self.production == Some(false) { ", NOT for production" } else { "" };
        format!("{name}{production}")
    }
}

/// What a model is, for results that are held against each other later: of an imported one the digest of its manifest,
/// which no import changes, else that of its files.
pub fn digest_at(store: &Store, directory: &Path) -> io::Result<String> {
    match store.model_in(directory).and_then(|name| store.get(&name).ok()) {
        Some(stored) => Ok(format!("sha256:{}", stored.manifest.digest())),
        None => digest_of(directory),
    }
}

/// The SHA-256 over names, lengths and hashes of a checkpoint's files: whole files of JSON, of weights the header and a
/// MiB at both ends. It tells checkpoints apart in a moment; that no bit of one has flipped, `hearth models verify` says.
fn digest_of(directory: &Path) -> io::Result<String> {
    const END: u64 = 1 << 20;
    let mut paths: Vec<_> =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    let own = |path: &Path| OWN_FILES.iter().any(|own| path.ends_with(own));
    paths.retain(|path| path.extension().is_some_and(|e| e == "json" || e == "safetensors" || e == "jinja"));
    paths.retain(|path| !own(path));
    paths.sort();
    let mut whole = Context::new(&SHA256);
    for path in paths {
        let mut file = fs::File::open(&path)?;
        let length = file.metadata()?.len();
        let mut part = Context::new(&SHA256);
        let mut add = |from: u64, bytes: u64| -> io::Result<()> {
            let mut read = Vec::new();
            file.seek(SeekFrom::Start(from))?;
            file.by_ref().take(bytes).read_to_end(&mut read)?;
            part.update(&read);
            Ok(())
        };
        match path.extension().is_some_and(|e| e == "safetensors") && length > 2 * END {
            true => {
                add(0, END)?;
                add(length - END, END)?;
            }
            false => add(0, u64::MAX)?,
        }
        whole.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        whole.update(&length.to_le_bytes());
        whole.update(part.finish().as_ref());
    }
    Ok(format!("sha256:{}", hex(whole.finish().as_ref())))
}

/// The SHA-256 of bytes at hand, one after the other.
pub fn digest(files: &[&[u8]]) -> String {
    let mut whole = Context::new(&SHA256);
    files.iter().for_each(|file| whole.update(file));
    format!("sha256:{}", hex(whole.finish().as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_byte_at_either_end_or_another_name_is_another_digest() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut weights = vec![7u8; 5 << 20];
        let of = |weights: &[u8], name: &str| {
            fs::write(path("config.json"), "{}").unwrap();
            fs::write(path("notes.txt"), name).unwrap();
            fs::write(path("manifest.json"), name).unwrap();
            fs::write(path(name), weights).unwrap();
            let digest = digest_of(directory.path()).unwrap();
            fs::remove_file(path(name)).unwrap();
            digest
        };
        let first = of(&weights, "model.safetensors");
        assert_eq!(first, of(&weights, "model.safetensors"));
        assert_ne!(first, of(&weights, "other.safetensors"));
        weights[0] = 8;
        assert_ne!(first, of(&weights, "model.safetensors"));
        weights[0] = 7;
        *weights.last_mut().unwrap() = 8;
        assert_ne!(first, of(&weights, "model.safetensors"));
    }

    #[test]
    fn a_person_is_told_where_a_model_comes_from_and_whether_it_was_looked_at() {
        let compared = |how| Some(Compared { how, bytes: 7, at: "2026-02-02T00:00:00Z".into() });
        let stored = Papers {
            origin: Origin::Store,
            imported: Some("2026-01-01T00:00:00Z".into()),
            licence: "MNPL-0.1".into(),
            production: Some(false),
            ..Papers::default()
        };
        assert!(stored.provenance().ends_with("never compared with its sums when loaded"));
        assert_eq!(stored.licence(), "MNPL-0.1, NOT for production");
        for (how, words) in [(How::Full, "every byte compared"), (How::Sample, "a sample compared")] {
            let said = Papers { compared: compared(how), ..stored.clone() }.provenance();
            assert!(said.contains(words) && said.ends_with("2026-02-02T00:00:00Z"), "{said}");
        }
        let loose = Papers { origin: Origin::Directory, ..Papers::default() };
        assert!(loose.provenance().contains("not imported"));
        assert_eq!(loose.licence(), "licence not known");
    }
}
