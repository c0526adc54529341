//! Reading a bundle: nothing is believed before the signature of its sums, and no file before it agrees with its sum.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, BufReader, Read};
use std::path::Path;

use super::parts::Reader;
use super::sign::Trust;
use super::{ABOUT, About, BundleError, LIMIT, MODELS, SIGNATURE, SUMS};
use crate::store::{
    self, Hashed, Import, Imported, Lock, Manifest, Offer, Request, Store, StoreError, Watch, brief, hex,
    sha256,
};

/// A bundle whose signature was good.
#[derive(Clone, Debug)]
pub struct Opened {
    pub about: About,
    /// Whose signature it was.
    pub signed_by: String,
    /// The SHA-256 of its sums.
    pub digest: String,
    pub bytes: u64,
}

/// What is done with its members.
trait Taker {
    /// Once, when the signature was good and before any other member.
    fn begin(&mut self, opened: &Opened) -> Result<(), BundleError>;
    /// A member; what it leaves unread is read for its sum.
    fn member(&mut self, path: &str, offer: Offer<'_>) -> Result<(), BundleError>;
    /// The member before agreed with its sum.
    fn agreed(&mut self, path: &str) -> Result<(), BundleError>;
}

struct Nothing;

impl Taker for Nothing {
    fn begin(&mut self, _: &Opened) -> Result<(), BundleError> {
        Ok(())
    }

    fn member(&mut self, _: &str, _: Offer<'_>) -> Result<(), BundleError> {
        Ok(())
    }

    fn agreed(&mut self, _: &str) -> Result<(), BundleError> {
        Ok(())
    }
}

/// Signature, every sum, nothing missing, nothing more.
pub fn verify(path: &Path, trust: &Trust, watch: &mut dyn Watch) -> Result<Opened, BundleError> {
    read(path, trust, &mut Nothing, watch)
}

/// The state of a reading: its first members have their places.
enum Stage {
    Sums,
    Signature(Vec<u8>),
    About { signed_by: String, digest: String },
    Members,
}

fn read(
    path: &Path,
    trust: &Trust,
    taker: &mut dyn Taker,
    watch: &mut dyn Watch,
) -> Result<Opened, BundleError> {
    let place = path.display().to_string();
    let reader = Reader::open(path)?;
    let total = reader.bytes;
    watch.begin("reading", Some(total));
    let mut stage = Stage::Sums;
    let mut sums: BTreeMap<String, String> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut opened = None;
    let mut done = 0;
    let mut failed = None;
    let read = store::entries(
        BufReader::with_capacity(1 << 20, reader),
        &place,
        // Where a member stands in a file of this name says nothing of whose bundle that is now: its sum does.
        None,
        &mut |member, offer| {
            let bytes = offer.bytes;
            let step = || -> Result<(), BundleError> {
                let content = |reason: String| BundleError::Content { place: place.clone(), reason };
                if let Stage::Sums = stage {
                    if member != SUMS {
                        return Err(content(format!(
                            "it is no bundle: it begins with {} and not with {SUMS}",
                            brief(member)
                        )));
                    }
                    stage = Stage::Signature(small(offer.read, &place)?);
                    return Ok(());
                }
                if let Stage::Signature(listed) = &stage {
                    let signed = member == SIGNATURE;
                    let signature = match signed {
                        true => Some(String::from_utf8_lossy(&small(&mut *offer.read, &place)?).into_owned()),
                        false => None,
                    };
                    let signed_by = trust.check(&place, listed, signature.as_deref())?;
                    let text = String::from_utf8_lossy(listed);
                    let lines = store::parse_sums(&text).map_err(|e| content(format!("its {SUMS}: {e}")))?;
                    let count = lines.len();
                    sums.extend(lines);
                    if sums.len() != count {
                        return Err(content(format!("its {SUMS} names a member twice")));
                    }
                    stage = Stage::About { signed_by, digest: hex(sha256(listed)) };
                    if signed {
                        return Ok(());
                    }
                }
                let Some(sum) = sums.get(member) else {
                    return Err(content(format!("{} is in it and not in its {SUMS}", brief(member))));
                };
                let mut hashed = Hashed::new(offer.read);
                if let Stage::About { signed_by, digest } = &stage {
                    if member != ABOUT {
                        return Err(content(format!("{} is where {ABOUT} must be", brief(member))));
                    }
                    let bytes = small(&mut hashed, &place)?;
                    let about: About =
                        serde_json::from_slice(&bytes).map_err(|e| content(format!("{ABOUT}: {e}")))?;
                    if hashed.sum() != *sum || about.version != 1 {
                        return Err(content(format!(
                            "{ABOUT} is not what its sum says, or of a later version"
                        )));
                    }
                    let (signed_by, digest) = (signed_by.clone(), digest.clone());
                    let of = Opened { about, signed_by, digest, bytes: total };
                    taker.begin(&of)?;
                    opened = Some(of);
                    stage = Stage::Members;
                    seen.insert(member.to_owned());
                    return Ok(());
                }
                taker.member(
                    member,
                    Offer {
                        name: member,
                        bytes: offer.bytes,
                        stamp: None,
                        sum: Some(sum),
                        read: &mut hashed,
                    },
                )?;
                let drained = io::copy(&mut hashed, &mut io::sink());
                drained.map_err(|e| content(format!("{}: {e}", brief(member))))?;
                if hashed.sum() != *sum {
                    return Err(content(format!("{} is not what its sum says", brief(member))));
                }
                seen.insert(member.to_owned());
                taker.agreed(member)
            };
            let stepped = step();
            done += bytes;
            watch.at(done);
            stepped.map_err(|error| {
                failed = Some(error);
                // Only ends the reading: the error itself is kept.
                StoreError::Archive { place: place.clone(), reason: "it is not taken".to_owned() }
            })
        },
    );
    if let Some(error) = failed {
        return Err(error);
    }
    read?;
    let content = |reason: String| BundleError::Content { place: place.clone(), reason };
    let missing: Vec<&str> = sums.keys().filter(|name| !seen.contains(*name)).map(String::as_str).collect();
    if let Some(first) = missing.first() {
        let reason = format!("{} of its members are missing, {} for one", missing.len(), brief(first));
        return Err(content(reason));
    }
    opened.ok_or_else(|| content(format!("it ends before its {ABOUT}")))
}

fn small(read: &mut dyn Read, place: &str) -> Result<Vec<u8>, BundleError> {
    let content = |reason: String| BundleError::Content { place: place.to_owned(), reason };
    let mut bytes = Vec::new();
    read.take(LIMIT + 1).read_to_end(&mut bytes).map_err(|e| content(e.to_string()))?;
    match bytes.len() as u64 > LIMIT {
        false => Ok(bytes),
        true => Err(content(format!("its sums are longer than {LIMIT} bytes"))),
    }
}

/// What installing asks of its caller.
pub trait Host {
    /// The signature was good: whether to go on.
    fn opened(&mut self, opened: &Opened) -> Result<(), BundleError>;
    /// How a model is taken in.
    fn request(&self, name: &str, opened: &Opened) -> Request;
    /// Before a model appears.
    fn record(&self, manifest: &Manifest) -> Result<(), StoreError>;
    fn imported(&mut self, imported: Imported);
}

/// Takes the models of a bundle into the store and puts its other files into a directory, if one is given.
pub fn install(
    path: &Path,
    trust: &Trust,
    store: &Store,
    files: Option<&Path>,
    host: &mut dyn Host,
    watch: &mut dyn Watch,
) -> Result<Opened, BundleError> {
    let lock = store.lock()?;
    if let Some(directory) = files {
        fs::create_dir_all(directory).map_err(StoreError::io(directory, "it cannot be made"))?;
    }
    let mut taker = Installing { store, lock: &lock, files, host, opened: None, current: None };
    let done = read(path, trust, &mut taker, watch).and_then(|opened| {
        taker.end_model()?;
        Ok(opened)
    });
    if let (Err(error), Some((_, import))) = (&done, taker.current.take())
        && is_final(error)
    {
        import.abandon()?;
    }
    done
}

fn is_final(error: &BundleError) -> bool {
    match error {
        BundleError::Store(error) => error.is_final(),
        _ => true,
    }
}

struct Installing<'a> {
    store: &'a Store,
    lock: &'a Lock,
    files: Option<&'a Path>,
    host: &'a mut dyn Host,
    opened: Option<Opened>,
    current: Option<(String, Import<'a>)>,
}

impl Installing<'_> {
    /// The model that was read to its end appears.
    fn end_model(&mut self) -> Result<(), BundleError> {
        let Some((_, import)) = &mut self.current else { return Ok(()) };
        let host = &*self.host;
        let imported = import.finish(&|manifest| host.record(manifest), &mut ())?;
        self.current = None;
        self.host.imported(imported);
        Ok(())
    }
}

impl Taker for Installing<'_> {
    fn begin(&mut self, opened: &Opened) -> Result<(), BundleError> {
        self.opened = Some(opened.clone());
        self.host.opened(opened)
    }

    fn member(&mut self, path: &str, offer: Offer<'_>) -> Result<(), BundleError> {
        let model = path
            .strip_prefix(MODELS)
            .and_then(|rest| rest.strip_prefix('/'))
            .and_then(|rest| rest.split_once('/'));
        let Some((name, file)) = model else {
            self.end_model()?;
            return match self.files {
                Some(directory) if store::flat(path) => write(&directory.join(path), offer),
                _ => Ok(()),
            };
        };
        if self.current.as_ref().is_none_or(|(current, _)| current != name) {
            self.end_model()?;
            let opened = self.opened.as_ref().expect("bug: members come after what is in the bundle");
            let import = Import::begin(self.store, self.lock, self.host.request(name, opened))?;
            self.current = Some((name.to_owned(), import));
        }
        let (_, import) = self.current.as_mut().expect("bug: the model was begun a moment ago");
        Ok(import.offer(offer.named(file), &mut ())?)
    }

    fn agreed(&mut self, path: &str) -> Result<(), BundleError> {
        match self.files {
            Some(directory) if store::flat(path) => {
                let path = directory.join(path);
                let placed = fs::rename(aside(&path), &path);
                Ok(placed.map_err(StoreError::io(&path, "it cannot be put in place"))?)
            }
            _ => Ok(()),
        }
    }
}

fn aside(path: &Path) -> std::path::PathBuf {
    format!("{}.part", path.display()).into()
}

/// Under another name until its sum is known to be right.
fn write(path: &Path, offer: Offer<'_>) -> Result<(), BundleError> {
    let aside = aside(path);
    let mut write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&aside)?;
        io::copy(offer.read, &mut file)?;
        file.sync_all()
    };
    Ok(write().map_err(StoreError::io(&aside, "it cannot be written"))?)
}
