//! Making a bundle, on the connected side, of files that are there: it downloads nothing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::parts::Writer;
use super::{ABOUT, About, BundleError, MODELS, Model, SIGNATURE, SUMS, sign};
use crate::store::{
    self, Broken, Hashed, Store, StoreError, Stored, Watch, append_bytes, append_model, hex, pass, sha256,
    tar_header,
};

/// What goes into a bundle.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Files, and directories whose files are meant.
    pub files: Vec<PathBuf>,
    /// Imported models.
    pub models: Vec<String>,
    /// The secret key; `None`: not signed.
    pub key: Option<PathBuf>,
    /// Bytes of a part; `None`: one file.
    pub parts: Option<u64>,
}

/// A file and its sum.
struct Plain {
    name: String,
    path: PathBuf,
    bytes: u64,
    sum: String,
}

/// Writes the bundle; what files there are then.
pub fn create(
    store: &Store,
    contents: &Contents,
    output: &Path,
    watch: &mut dyn Watch,
) -> Result<(Vec<PathBuf>, About), BundleError> {
    let place = output.display().to_string();
    let plain = plain_files(&contents.files, &place, watch)?;
    let mut models = Vec::new();
    for name in &contents.models {
        models.push((name.clone(), store.get(name)?));
    }
    if plain.is_empty() && models.is_empty() {
        let reason = "nothing was named to put into it".to_owned();
        return Err(BundleError::Content { place, reason });
    }
    let about = About {
        version: 1,
        created: store::now(),
        hearth: env!("CARGO_PKG_VERSION").to_owned(),
        files: plain.iter().map(|file| file.name.clone()).collect(),
        models: models.iter().map(|(name, stored)| model(name, stored)).collect(),
    };
    let json = serde_json::to_vec_pretty(&about).expect("bug: what is in a bundle is JSON");
    let sums = sums(&json, &plain, &models)?;
    let signature = match &contents.key {
        Some(key) => Some(sign::sign(key, sums.as_bytes(), &format!("hearth bundle of {}", about.created))?),
        None => None,
    };
    let total =
        plain.iter().map(|f| f.bytes).sum::<u64>() + about.models.iter().map(|m| m.bytes).sum::<u64>();
    watch.begin("writing", Some(total));
    let failed = |e| StoreError::io(output, "it cannot be written")(e);
    let mut archive = tar::Builder::new(Writer::new(output, contents.parts)?);
    append_bytes(&mut archive, SUMS, sums.as_bytes(), output)?;
    if let Some(signature) = &signature {
        append_bytes(&mut archive, SIGNATURE, signature.as_bytes(), output)?;
    }
    append_bytes(&mut archive, ABOUT, &json, output)?;
    let mut done = 0;
    for file in &plain {
        let opened = File::open(&file.path).map_err(StoreError::io(&file.path, "it cannot be opened"))?;
        let mut hashed = Hashed::new(io::Read::take(opened, file.bytes));
        archive.append_data(&mut tar_header(file.bytes), &file.name, &mut hashed).map_err(failed)?;
        if hashed.bytes != file.bytes || hashed.sum() != file.sum {
            let reason = "it changed while it was read".to_owned();
            return Err(BundleError::Content { place: file.path.display().to_string(), reason });
        }
        done += file.bytes;
        watch.at(done);
    }
    for (name, stored) in &models {
        let folder = format!("{MODELS}/{name}");
        let mut at = |model| watch.at(done + model);
        done += append_model(&mut archive, &stored.directory, &stored.manifest, &folder, output, &mut at)?;
    }
    let mut writer = archive.into_inner().map_err(failed)?;
    writer.flush().map_err(failed)?;
    Ok((writer.finish().map_err(failed)?, about))
}

fn model(name: &str, stored: &Stored) -> Model {
    let manifest = &stored.manifest;
    Model {
        name: name.to_owned(),
        bytes: manifest.bytes(),
        digest: format!("sha256:{}", manifest.digest()),
        licence: manifest.licence.name.clone(),
        production: manifest.licence.production,
    }
}

/// The files with their sums; of directories, the plain files in them.
fn plain_files(paths: &[PathBuf], place: &str, watch: &mut dyn Watch) -> Result<Vec<Plain>, BundleError> {
    let mut all = Vec::new();
    for path in paths {
        let failed = |e| StoreError::io(path, "it cannot be read")(e);
        match fs::metadata(path).map_err(failed)?.is_dir() {
            false => all.push(path.clone()),
            true => {
                for entry in fs::read_dir(path).map_err(failed)? {
                    let entry = entry.map_err(failed)?.path();
                    if entry.is_file() {
                        all.push(entry);
                    }
                }
            }
        }
    }
    all.sort();
    watch.begin("reading", None);
    let (mut plain, mut names, mut read) = (Vec::new(), BTreeSet::new(), 0);
    for path in all {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let taken = [SUMS, SIGNATURE, ABOUT, MODELS].contains(&name.as_str());
        if taken || !store::flat(&name) || !names.insert(name.clone()) {
            let reason = format!("{} cannot be in it: its name is taken or no plain one", path.display());
            return Err(BundleError::Content { place: place.to_owned(), reason });
        }
        let failed = |e| StoreError::io(&path, "it cannot be read")(e);
        let mut file = File::open(&path).map_err(failed)?;
        let sums = pass(&mut file, |_| Ok(())).map_err(|(Broken::Read(e) | Broken::Write(e))| failed(e))?;
        read += sums.bytes;
        watch.at(read);
        plain.push(Plain { name, path, bytes: sums.bytes, sum: sums.sha256 });
    }
    Ok(plain)
}

/// The sums of every member but these sums and their signature.
fn sums(about: &[u8], plain: &[Plain], models: &[(String, Stored)]) -> Result<String, BundleError> {
    let mut lines = vec![format!("{}  {ABOUT}\n", hex(sha256(about)))];
    lines.extend(plain.iter().map(|file| format!("{}  {}\n", file.sum, file.name)));
    for (name, stored) in models {
        for own in store::OWN_FILES {
            let path = stored.directory.join(own);
            let bytes = fs::read(&path).map_err(StoreError::io(&path, "it cannot be read"))?;
            lines.push(format!("{}  {MODELS}/{name}/{own}\n", hex(sha256(&bytes))));
        }
        let files = stored.manifest.files.iter();
        lines.extend(files.map(|file| format!("{}  {MODELS}/{name}/{}\n", file.sha256, file.name)));
    }
    Ok(lines.concat())
}
