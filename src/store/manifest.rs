//! What is written down about an imported model: its files with their SHA-256, where it came from, its licence.
//!
//! Two files stand beside the model's own. `manifest.json` is what Hearth reads; `MANIFEST` is the same sums in the form
//! of coreutils, `manifest.json` among them, so that `sha256sum -c MANIFEST` checks a model without Hearth.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::blob::{hex, sha256};
use super::policy;

/// The form that this version writes. A later one that adds fields keeps the number; readers pass over what they do
/// not know.
pub const VERSION: u32 = 1;
pub const JSON: &str = "manifest.json";
pub const SUMS: &str = "MANIFEST";
/// A sum for each chunk of a large model is some hundred kilobytes.
pub const LIMIT: u64 = 64 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub version: u32,
    pub name: String,
    /// When, in UTC.
    pub imported: String,
    /// The version that imported it.
    pub hearth: String,
    /// The name of the directory or archive it came from.
    pub from: String,
    /// The checkpoint of the catalogue that it is, if it is known.
    #[serde(default)]
    pub id: Option<String>,
    /// The publisher's revision, where the source said.
    #[serde(default)]
    pub revision: Option<String>,
    pub licence: Licence,
    /// What lay beside these files and was not taken.
    #[serde(default)]
    pub left_out: Vec<String>,
    pub files: Vec<FileEntry>,
}

/// The licence that was accepted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Licence {
    /// As it is called; empty: not known.
    #[serde(default)]
    pub name: String,
    /// Its text among the files.
    #[serde(default)]
    pub file: Option<String>,
    /// Whether it allows production; absent: read it.
    #[serde(default)]
    pub production: Option<bool>,
    /// The user who accepted it.
    pub accepted_by: String,
    pub accepted: String,
}

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
    /// Sums of its chunks of [`super::blob::CHUNK`] bytes, where there are several: to check a part of a large file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunks: Vec<String>,
}

impl Manifest {
    /// Reads and checks one: it names paths that will be opened.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| format!("it cannot be read: {e}"))?;
        if manifest.version != VERSION {
            let version = manifest.version;
            return Err(format!("its form is {version}; this version reads {VERSION}"));
        }
        let mut names = BTreeSet::new();
        for file in &manifest.files {
            if !policy::flat(&file.name) || !names.insert(&file.name) {
                return Err(format!("it names {:?}", file.name));
            }
            let sums = std::iter::once(&file.sha256).chain(&file.chunks);
            if sums.into_iter().any(|sum| !is_sum(sum)) {
                return Err(format!("a sum of {} is not one", file.name));
            }
        }
        Ok(manifest)
    }

    pub fn to_json(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("bug: a manifest is JSON");
        bytes.push(b'\n');
        bytes
    }

    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    pub fn file(&self, name: &str) -> Option<&FileEntry> {
        self.files.iter().find(|file| file.name == name)
    }

    /// One sum for what the model is, whenever and from wherever it was imported.
    pub fn digest(&self) -> String {
        hex(sha256(lines(&self.files).as_bytes()))
    }

    /// The sums in the form of coreutils, `manifest.json` with the others.
    pub fn sums(&self) -> String {
        format!("{}{}  {JSON}\n", lines(&self.files), hex(sha256(&self.to_json())))
    }
}

fn lines(files: &[FileEntry]) -> String {
    let mut files: Vec<&FileEntry> = files.iter().collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files.iter().map(|file| format!("{}  {}\n", file.sha256, file.name)).collect()
}

pub fn is_sum(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Sums and names in the form of coreutils, as they come with an archive.
pub fn parse_sums(text: &str) -> Result<Vec<(String, String)>, String> {
    let line = |(i, line): (usize, &str)| {
        let (sum, name) = line.split_once("  ").or_else(|| line.split_once(" *"))?;
        let name = name.strip_prefix("./").unwrap_or(name);
        (is_sum(sum) && !name.is_empty()).then(|| (name.to_owned(), sum.to_owned())).ok_or(i).ok()
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(i, l)| line((i, l)).ok_or(format!("line {} is no sum and name", i + 1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> FileEntry {
        FileEntry { name: name.into(), bytes: 3, sha256: hex(sha256(b"abc")), chunks: Vec::new() }
    }

    fn manifest(names: &[&str]) -> Manifest {
        Manifest {
            version: VERSION,
            name: "m".into(),
            imported: "2026-01-01T00:00:00Z".into(),
            hearth: "0".into(),
            from: "d".into(),
            id: None,
            revision: None,
            licence: Licence::default(),
            left_out: Vec::new(),
            files: names.iter().map(|name| entry(name)).collect(),
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_its_sums_are_coreutils() {
        let written = manifest(&["b", "a"]);
        assert_eq!(Manifest::parse(&written.to_json()).unwrap(), written);
        let sums = parse_sums(&written.sums()).unwrap();
        let names: Vec<&str> = sums.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b", JSON]);
        assert_eq!(written.digest(), manifest(&["a", "b"]).digest(), "the order of files is not the model");
        assert_ne!(written.digest(), manifest(&["a", "c"]).digest());
    }

    #[test]
    fn a_manifest_that_names_paths_or_other_sums_is_refused() {
        for names in [&["../x"][..], &["a", "a"], &["a/b"], &[".hidden"], &[""]] {
            assert!(Manifest::parse(&manifest(names).to_json()).is_err(), "{names:?}");
        }
        let mut wrong = manifest(&["a"]);
        wrong.files[0].sha256 = "../../etc/passwd".into();
        assert!(Manifest::parse(&wrong.to_json()).unwrap_err().contains("a sum of a is not one"));
        wrong = manifest(&["a"]);
        wrong.version = 2;
        assert!(Manifest::parse(&wrong.to_json()).unwrap_err().contains("this version reads 1"));
        assert!(parse_sums("abc  x").unwrap_err().contains("line 1"));
    }
}
