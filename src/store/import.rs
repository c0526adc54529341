//! An import: files in, one by one; then the whole is looked at as a server would, and appears under its name.
//!
//! Every finished file is a blob and a line of the journal, so that an import that was killed goes on where it was: files
//! whose source has not changed are not read again. Nothing is visible under the model's name before everything was
//! written out and checked.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use hearth_models::checkpoint::Checkpoint;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::{Deserialize, Serialize};

use super::blob::{self, Broken, hex, sha256};
use super::error::{StoreError, brief};
use super::manifest::{self, FileEntry, Licence, Manifest};
use super::policy::{self, START, Verdict};
use super::source::{Found, Offer};
use super::{Lock, Store, Watch, bounded, clear, licence, make, now, sync_directory, vet};

/// The file that is being written.
pub(super) const PART: &str = "part";
const JOURNAL: &str = "journal";
/// Room that an import leaves on the file system.
const SPARE: u64 = 64 << 20;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    pub name: String,
    /// Where it comes from, for messages.
    pub place: String,
    /// The same without directories, for the manifest.
    pub from: String,
    pub revision: Option<String>,
    /// Who accepts the licence.
    pub accepted_by: String,
    /// Files that are refused are left behind, and the others taken.
    pub leave_out: bool,
    /// Takes the place of a model of that name.
    pub replace: bool,
    /// Bytes of a model at most.
    pub largest: u64,
}

/// What became of it.
#[derive(Clone, Debug)]
pub struct Imported {
    pub manifest: Manifest,
    pub directory: PathBuf,
    /// The same model was there before.
    pub unchanged: bool,
}

/// Before a model is published: whoever keeps a record of such things, and may refuse.
pub type Record<'a> = &'a dyn Fn(&Manifest) -> Result<(), StoreError>;

pub struct Import<'a> {
    store: &'a Store,
    lock: &'a Lock,
    request: Request,
    journal: Journal,
    files: BTreeMap<String, FileEntry>,
    left_out: Vec<String>,
    /// Sums that came with the files, and that of their `manifest.json`.
    sums: Vec<(String, String)>,
    manifest_sum: Option<String>,
    bytes: u64,
}

/// Finished files of an import that was cut off, one JSON object a line.
#[derive(Debug, Default)]
pub(super) struct Journal {
    pub lines: Vec<Line>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Line {
    pub file: FileEntry,
    pub stamp: Option<String>,
}

impl Journal {
    /// What can be read of it: the last line may be half written.
    pub fn read(directory: &Path) -> Self {
        let text = bounded(&directory.join(JOURNAL), manifest::LIMIT).unwrap_or_default();
        let lines = text.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        Self { lines: lines.filter(|line: &Line| manifest::is_sum(&line.file.sha256)).collect() }
    }

    fn add(&mut self, directory: &Path, line: Line) -> Result<(), StoreError> {
        let path = directory.join(JOURNAL);
        let failed = |e| StoreError::io(&path, "it cannot be written")(e);
        let mut text = serde_json::to_string(&line).expect("bug: a line of the journal is JSON");
        // First an end of line: the line before may have been cut off.
        text = format!("\n{text}\n");
        let mut file =
            OpenOptions::new().create(true).append(true).mode(0o644).open(&path).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        self.lines.push(line);
        Ok(())
    }
}

/// Whether a place holds nothing that is refused by its name. All that is, is named at once.
pub fn admissible(place: &str, found: &[Found]) -> Result<(), StoreError> {
    let refused = |file: &Found| match policy::by_name(&file.name) {
        Verdict::Refuse(reason) => Some((file.name.clone(), reason.to_owned())),
        _ => None,
    };
    let files: Vec<_> = found.iter().filter_map(refused).collect();
    match files.is_empty() {
        true => Ok(()),
        false => Err(StoreError::Refused { place: place.to_owned(), files }),
    }
}

impl<'a> Import<'a> {
    pub fn begin(store: &'a Store, lock: &'a Lock, request: Request) -> Result<Self, StoreError> {
        Store::name(&request.name)?;
        let directory = store.importing(&request.name);
        make(&directory).map_err(StoreError::io(&directory, "it cannot be made"))?;
        let journal = Journal::read(&directory);
        Ok(Self {
            store,
            lock,
            request,
            journal,
            files: BTreeMap::new(),
            left_out: Vec::new(),
            sums: Vec::new(),
            manifest_sum: None,
            bytes: 0,
        })
    }

    /// What can be told of a directory before its gigabytes are read: files that are refused, a name that is taken, room.
    pub fn plan(&self, found: &[Found]) -> Result<u64, StoreError> {
        let verdict = |file: &Found| policy::by_name(&file.name);
        if !self.request.leave_out {
            admissible(&self.request.place, found)?;
        }
        let taken: Vec<&Found> = found.iter().filter(|f| matches!(verdict(f), Verdict::Take(_))).collect();
        if !self.request.replace
            && let Some(_) = self.store.directory(&self.request.name)
        {
            let there = self.store.get(&self.request.name)?.manifest;
            let same = |f: &&Found| there.file(&f.name).is_some_and(|file| file.bytes == f.bytes);
            if taken.len() != there.files.len() || !taken.iter().all(same) {
                return Err(StoreError::Exists { name: self.request.name.clone() });
            }
            return Ok(taken.iter().map(|f| f.bytes).sum());
        }
        let total = taken.iter().map(|f| f.bytes).sum();
        self.fits(total)?;
        let done =
            |f: &&&Found| self.journal.lines.iter().any(|l| l.file.name == f.name && l.file.bytes == f.bytes);
        self.room(total - taken.iter().filter(done).map(|f| f.bytes).sum::<u64>())?;
        Ok(total)
    }

    fn fits(&self, bytes: u64) -> Result<(), StoreError> {
        let largest = self.request.largest;
        match bytes <= largest {
            true => Ok(()),
            false => Err(StoreError::Content {
                place: self.request.place.clone(),
                reason: format!("more than {largest} bytes; --largest says how large a model may be"),
            }),
        }
    }

    fn room(&self, needed: u64) -> Result<(), StoreError> {
        let path = self.store.root();
        let of = nix::sys::statvfs::statvfs(path)
            .map_err(|e| StoreError::io(path, "its file system cannot be asked for room")(e.into()))?;
        let free = (of.blocks_available() as u64).saturating_mul(of.fragment_size() as u64);
        match needed.saturating_add(SPARE) <= free {
            true => Ok(()),
            false => Err(StoreError::Full { path: path.to_owned(), needed: needed + SPARE, free }),
        }
    }

    /// Takes a file in, leaves it behind, or refuses the lot.
    pub fn offer(&mut self, offer: Offer<'_>, watch: &mut dyn Watch) -> Result<(), StoreError> {
        let name = offer.name;
        let refused = |reason: String| StoreError::Refused {
            place: self.request.place.clone(),
            files: vec![(name.to_owned(), reason)],
        };
        let kind = match policy::by_name(name) {
            Verdict::Take(kind) => kind,
            Verdict::Refuse(reason) if !self.request.leave_out => return Err(refused(reason.to_owned())),
            Verdict::Sums => {
                let text = self.small(offer, manifest::LIMIT)?;
                let text = String::from_utf8(text).map_err(|_| refused("is not text".to_owned()))?;
                self.sums.extend(manifest::parse_sums(&text).map_err(refused)?);
                return Ok(());
            }
            Verdict::Leave if name == manifest::JSON => {
                let bytes = self.small(offer, manifest::LIMIT)?;
                self.manifest_sum = Some(hex(sha256(&bytes)));
                // From an export: it knows the publisher's revision. Everything else in it is found anew.
                let known = Manifest::parse(&bytes).ok().and_then(|m| m.revision);
                self.request.revision = self.request.revision.take().or(known);
                return Ok(());
            }
            Verdict::Leave | Verdict::Refuse(_) => {
                self.left_out.push(brief(name));
                return Ok(());
            }
        };
        self.fits(self.bytes.saturating_add(offer.bytes))?;
        let before = self.bytes;
        let file = match self.known(&offer) {
            Some(file) => file,
            None => self.write(offer, kind, &mut |done| watch.at(before + done))?,
        };
        self.bytes += file.bytes;
        watch.at(self.bytes);
        self.files.insert(file.name.clone(), file);
        Ok(())
    }

    /// A small file's bytes.
    fn small(&self, offer: Offer<'_>, limit: u64) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        let failed = |e: io::Error| self.unreadable(offer.name, &e);
        offer.read.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
        match bytes.len() as u64 > limit {
            false => Ok(bytes),
            true => Err(self.unreadable(offer.name, &io::Error::other(format!("longer than {limit} bytes")))),
        }
    }

    fn unreadable(&self, name: &str, error: &io::Error) -> StoreError {
        StoreError::Archive { place: self.request.place.clone(), reason: format!("{}: {error}", brief(name)) }
    }

    /// The file, if an import before read it and it has not changed since.
    fn known(&self, offer: &Offer<'_>) -> Option<FileEntry> {
        let same = |line: &&Line| {
            line.file.name == offer.name
                && match offer.sum {
                    Some(sum) => line.file.sha256 == sum,
                    None => offer.stamp.is_some() && line.stamp == offer.stamp,
                }
        };
        let file = &self.journal.lines.iter().rev().find(same)?.file;
        let there = fs::metadata(self.store.blob(&file.sha256)).ok()?;
        (there.len() == file.bytes && file.bytes == offer.bytes).then(|| file.clone())
    }

    /// Writes a file into the store under its sum.
    fn write(
        &mut self,
        offer: Offer<'_>,
        kind: policy::Kind,
        at: &mut dyn FnMut(u64),
    ) -> Result<FileEntry, StoreError> {
        let Offer { name, bytes, stamp, read, .. } = offer;
        let mut start = Vec::new();
        (&mut *read).take(START as u64).read_to_end(&mut start).map_err(|e| self.unreadable(name, &e))?;
        policy::by_start(kind, &start, bytes).map_err(|reason| StoreError::Refused {
            place: self.request.place.clone(),
            files: vec![(name.to_owned(), reason)],
        })?;
        self.room(bytes)?;
        let directory = self.store.importing(&self.request.name);
        let path = directory.join(PART);
        let failed = |e| StoreError::io(&path, "it cannot be written")(e);
        let _ = fs::remove_file(&path);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path).map_err(failed)?;
        let mut done = 0;
        let passed = blob::pass(&mut start.chain(read), |piece| {
            done += piece.len() as u64;
            at(done);
            file.write_all(piece)
        });
        let sums = passed.and_then(|sums| file.sync_all().map(|()| sums).map_err(Broken::Write));
        let sums = sums.map_err(|broken| {
            // Half a file is of no use, and its room may be what is missing.
            let _ = fs::remove_file(&path);
            match broken {
                Broken::Read(e) => self.unreadable(name, &e),
                Broken::Write(e) => failed(e),
            }
        })?;
        if sums.bytes != bytes {
            let changed = io::Error::other(format!("{bytes} bytes were announced and {} came", sums.bytes));
            return Err(self.unreadable(name, &changed));
        }
        file.set_permissions(fs::Permissions::from_mode(0o444)).map_err(failed)?;
        // Over a blob that is there: if that one was damaged, it is whole again.
        fs::rename(&path, self.store.blob(&sums.sha256)).map_err(failed)?;
        let blob::Sums { bytes, sha256, chunks } = sums;
        let file = FileEntry { name: name.to_owned(), bytes, sha256, chunks };
        self.journal.add(&directory, Line { file: file.clone(), stamp })?;
        Ok(file)
    }

    /// Nothing of it stays: for what will never become a model.
    pub fn abandon(self) -> Result<(), StoreError> {
        clear(&self.store.importing(&self.request.name))?;
        clear(&self.store.ready(&self.request.name))?;
        self.store.sweep(self.lock).map(|_| ())
    }

    /// Looks at the whole, writes down what it is and publishes it.
    pub fn finish(&mut self, record: Record<'_>, watch: &mut dyn Watch) -> Result<Imported, StoreError> {
        let name = self.request.name.clone();
        let ready = self.store.ready(&name);
        watch.begin("checking", None);
        self.against_sums()?;
        self.make_up(&ready)?;
        let content = |reason: String| StoreError::Content {
            place: self.request.place.clone(),
            reason: reason
                .replace(&format!("{}/", ready.display()), "")
                .replace(&*ready.to_string_lossy(), "it"),
        };
        let checkpoint = Checkpoint::open(&ready).map_err(|e| content(e.to_string()))?;
        vet::checkpoint(&ready)?;
        let found = licence::of(&ready, checkpoint.spec(), &[&name, &self.request.from]);
        drop(checkpoint);
        self.left_out.sort();
        let manifest = Manifest {
            version: manifest::VERSION,
            name: name.clone(),
            imported: now(),
            hearth: env!("CARGO_PKG_VERSION").to_owned(),
            from: self.request.from.clone(),
            id: found.id,
            revision: self.request.revision.clone(),
            licence: Licence {
                name: found.name,
                file: found.file,
                production: found.production,
                accepted_by: self.request.accepted_by.clone(),
                accepted: now(),
            },
            left_out: self.left_out.clone(),
            files: self.files.values().cloned().collect(),
        };
        let directory = self.store.root().join(&name);
        if self.store.directory(&name).is_some() {
            let there = self.store.get(&name);
            if let Ok(there) = &there
                && there.manifest.digest() == manifest.digest()
                && !self.request.replace
            {
                let manifest = there.manifest.clone();
                clear(&ready)?;
                clear(&self.store.importing(&name))?;
                return Ok(Imported { manifest, directory, unchanged: true });
            }
            if !self.request.replace {
                return Err(StoreError::Exists { name });
            }
        }
        for (file, bytes) in
            [(manifest::JSON, manifest.to_json()), (manifest::SUMS, manifest.sums().into_bytes())]
        {
            write_out(&ready.join(file), &bytes)?;
        }
        sync_directory(&self.store.blobs())?;
        sync_directory(&ready)?;
        record(&manifest)?;
        publish(&ready, &directory)?;
        sync_directory(self.store.root())?;
        clear(&self.store.importing(&name))?;
        // The model that was replaced.
        clear(&ready)?;
        // The model is there; bytes that nothing needs go the next time.
        if let Err(e) = self.store.sweep(self.lock) {
            watch.note(&format!("bytes that nothing needs may be left: {e}"));
        }
        Ok(Imported { manifest, directory, unchanged: false })
    }

    /// The files against the sums that came with them.
    fn against_sums(&self) -> Result<(), StoreError> {
        let mut wrong = Vec::new();
        for (name, sum) in &self.sums {
            let found = match name.as_str() {
                manifest::JSON => self.manifest_sum.as_ref(),
                name => self.files.get(name).map(|file| &file.sha256),
            };
            match found {
                Some(found) if found == sum => {}
                Some(_) => wrong.push((name.clone(), "is not what its sum says".to_owned())),
                None if self.left_out.contains(&brief(name)) => {}
                None => wrong.push((name.clone(), "has a sum and is not there".to_owned())),
            }
        }
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(StoreError::Sums { place: self.request.place.clone(), files: wrong }),
        }
    }

    /// The model's directory, beside where it will be: the links are right in both places.
    fn make_up(&self, ready: &Path) -> Result<(), StoreError> {
        clear(ready)?;
        make(ready).map_err(StoreError::io(ready, "it cannot be made"))?;
        for file in self.files.values() {
            let link = ready.join(&file.name);
            symlink(Path::new("../blobs/sha256").join(&file.sha256), &link)
                .map_err(StoreError::io(&link, "it cannot be made"))?;
        }
        Ok(())
    }
}

fn write_out(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let write = || -> io::Result<()> {
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(0o444))?;
        file.sync_all()
    };
    write().map_err(StoreError::io(path, "it cannot be written"))
}

/// Puts a made-up model in its place in one step; one that is there changes places with it.
fn publish(ready: &Path, directory: &Path) -> Result<(), StoreError> {
    let failed = |e: io::Error| StoreError::io(directory, "it cannot be put in place")(e);
    if !directory.exists() {
        return fs::rename(ready, directory).map_err(failed);
    }
    let exchanged = renameat2(AT_FDCWD, ready, AT_FDCWD, directory, RenameFlags::RENAME_EXCHANGE);
    match exchanged {
        // A file system that cannot: for a moment there is none of that name.
        Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOSYS) => {
            let old = ready.with_extension("old");
            clear(&old)?;
            fs::rename(directory, &old).map_err(failed)?;
            fs::rename(ready, directory).map_err(failed)?;
            clear(&old)
        }
        other => other.map_err(|e| failed(e.into())),
    }
}
