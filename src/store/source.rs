//! Where a checkpoint comes from: a directory, an archive, standard input. Each is a row of files, offered one by one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::error::{StoreError, brief};
use super::{archive, policy};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Directory(PathBuf),
    Archive(PathBuf),
    Stdin,
}

/// A file as it is offered.
pub struct Offer<'a> {
    pub name: &'a str,
    pub bytes: u64,
    /// The same for the same bytes of the same file, changed when it is written to: what was read need not be read
    /// again. `None`: cannot be said.
    pub stamp: Option<String>,
    /// What its sum must be, where that was signed: then nothing else tells whether it was read before.
    pub sum: Option<&'a str>,
    pub read: &'a mut dyn Read,
}

impl<'a> Offer<'a> {
    /// The same under another name.
    pub fn named<'b>(self, name: &'b str) -> Offer<'b>
    where
        'a: 'b,
    {
        Offer { name, bytes: self.bytes, stamp: self.stamp, sum: self.sum, read: self.read }
    }
}

/// A file of a directory that may be read.
#[derive(Clone, Debug)]
pub struct Found {
    pub name: String,
    /// Where its bytes are; another place than its name says where it is a link of the hub's cache.
    pub path: PathBuf,
    pub bytes: u64,
}

impl Source {
    /// What an argument means.
    pub fn of(argument: &str) -> Result<Self, StoreError> {
        if argument == "-" {
            return Ok(Self::Stdin);
        }
        let path = PathBuf::from(argument);
        let of = fs::metadata(&path).map_err(StoreError::io(&path, "it cannot be read"))?;
        match of.is_dir() {
            true => Ok(Self::Directory(path)),
            false => Ok(Self::Archive(path)),
        }
    }

    /// For messages.
    pub fn place(&self) -> String {
        match self {
            Self::Directory(path) | Self::Archive(path) => path.display().to_string(),
            Self::Stdin => "standard input".to_owned(),
        }
    }

    /// A name for the model, where none is given: the directory's or the archive's. In the hub's cache a directory is
    /// called after the revision, and the model two levels above.
    pub fn default_name(&self) -> Option<String> {
        let (Self::Directory(path) | Self::Archive(path)) = self else { return None };
        let path = path.canonicalize().ok()?;
        let name = path.file_name()?.to_str()?;
        if let Self::Directory(_) = self {
            let cached = || cached_model(&path);
            return cached().or_else(|| Some(name.to_owned()));
        }
        let stem = [".tar.zst", ".tzst", ".tar"].iter().find_map(|end| name.strip_suffix(end));
        Some(stem.unwrap_or(name).to_owned())
    }

    /// The publisher's revision, where the path tells.
    pub fn revision(&self) -> Option<String> {
        let Self::Directory(path) = self else { return None };
        let path = path.canonicalize().ok()?;
        cached_model(&path)?;
        Some(path.file_name()?.to_str()?.to_owned())
    }

    /// Offers every file in turn. An archive's end is checked too.
    pub fn each(&self, take: &mut dyn FnMut(Offer<'_>) -> Result<(), StoreError>) -> Result<(), StoreError> {
        match self {
            Self::Directory(path) => {
                for found in files(path)? {
                    let (mut file, stamp) = found.open()?;
                    take(Offer {
                        name: &found.name,
                        bytes: found.bytes,
                        stamp: Some(stamp),
                        sum: None,
                        read: &mut file,
                    })?;
                }
                Ok(())
            }
            Self::Archive(path) => {
                let file = File::open(path).map_err(StoreError::io(path, "it cannot be opened"))?;
                let of = file.metadata().map_err(StoreError::io(path, "it cannot be read"))?;
                if !of.is_file() {
                    let reason = "neither a directory nor a plain file".to_owned();
                    return Err(StoreError::Archive { place: self.place(), reason });
                }
                archive::each(BufReader::with_capacity(1 << 20, file), &self.place(), Some(&stamp(&of)), take)
            }
            Self::Stdin => archive::each(
                BufReader::with_capacity(1 << 20, io::stdin().lock()),
                &self.place(),
                None,
                take,
            ),
        }
    }
}

/// `mistralai/Codestral` out of `models--mistralai--Codestral/snapshots/REVISION`: its last part.
fn cached_model(path: &Path) -> Option<String> {
    let snapshots = path.parent().filter(|parent| parent.ends_with("snapshots"))?;
    let folder = snapshots.parent()?.file_name()?.to_str()?;
    Some(folder.strip_prefix("models--")?.rsplit("--").next()?.to_owned())
}

fn stamp(of: &fs::Metadata) -> String {
    format!("{}:{}:{}:{}.{:09}", of.dev(), of.ino(), of.len(), of.mtime(), of.mtime_nsec())
}

impl Found {
    /// Opens it and looks again: it must still be a plain file.
    pub fn open(&self) -> Result<(File, String), StoreError> {
        let failed = |e| StoreError::io(&self.path, "it cannot be opened")(e);
        // Neither a link nor a pipe that was put there since.
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&self.path).map_err(failed)?;
        let of = file.metadata().map_err(failed)?;
        if !of.is_file() || of.len() != self.bytes {
            return Err(failed(io::Error::other("it changed while it was imported")));
        }
        Ok((file, stamp(&of)))
    }
}

/// The files of a checkpoint's directory in the order of their names; directories in it are not looked into. A link is
/// followed inside the directory and into the blobs of the hub's cache, and nowhere else: an archive that was unpacked
/// with one to /etc/shadow must not bring that in.
pub fn files(directory: &Path) -> Result<Vec<Found>, StoreError> {
    let failed = |e| StoreError::io(directory, "it cannot be read")(e);
    let root = directory.canonicalize().map_err(failed)?;
    let cache =
        root.parent().filter(|p| p.ends_with("snapshots")).and_then(Path::parent).map(|m| m.join("blobs"));
    let mut found = Vec::new();
    for entry in fs::read_dir(&root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else {
            let reason = format!("the name {} is not text", brief(&entry.file_name().to_string_lossy()));
            return Err(StoreError::Content { place: directory.display().to_string(), reason });
        };
        let path = entry.path();
        let unreadable = |e| StoreError::io(&path, "it cannot be read")(e);
        let kind = entry.file_type().map_err(unreadable)?;
        let place = match kind.is_symlink() {
            false => path.clone(),
            true => {
                let target = path.canonicalize().map_err(unreadable)?;
                let parent = target.parent();
                let store = target.components().rev().nth(2).is_some_and(|c| c.as_os_str() == "blobs");
                let inside = parent == Some(root.as_path()) || parent == cache.as_deref();
                if !(inside || (store && is_sum_file(&target))) {
                    let reason = format!("{} is a link to {}", brief(&name), target.display());
                    return Err(StoreError::Content { place: directory.display().to_string(), reason });
                }
                target
            }
        };
        let of = fs::metadata(&place).map_err(unreadable)?;
        if of.is_dir() {
            continue;
        }
        if !of.is_file() && matches!(policy::by_name(&name), policy::Verdict::Take(_)) {
            let reason = format!("{} is not a plain file", brief(&name));
            return Err(StoreError::Content { place: directory.display().to_string(), reason });
        }
        if of.is_file() {
            found.push(Found { name, path: place, bytes: of.len() });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// `blobs/sha256/HEX`: a file of another store of models.
fn is_sum_file(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(super::manifest::is_sum)
}
