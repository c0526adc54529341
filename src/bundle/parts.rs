//! A bundle in one file, or in parts for carriers that hold less: `BUNDLE.000`, `BUNDLE.001` and so on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::store::{StoreError, hex};

fn part(path: &Path, i: usize) -> PathBuf {
    PathBuf::from(format!("{}.{i:03}", path.display()))
}

fn aside(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.part", path.display()))
}

/// Writes files under other names until all of them are whole. Dropped before that, it leaves nothing.
pub struct Writer {
    path: PathBuf,
    /// Bytes of a part; `None`: one file.
    size: Option<u64>,
    file: File,
    hash: aws_lc_rs::digest::Context,
    room: u64,
    /// Finished names and their sums.
    done: Vec<(PathBuf, String)>,
    current: PathBuf,
    placed: bool,
}

fn new_hash() -> aws_lc_rs::digest::Context {
    aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256)
}

impl Writer {
    pub fn new(path: &Path, size: Option<u64>) -> Result<Self, StoreError> {
        let first = size.map_or_else(|| path.to_owned(), |_| part(path, 0));
        for there in [path, &first] {
            if there.exists() {
                return Err(StoreError::io(there, "it is there already")(
                    io::ErrorKind::AlreadyExists.into(),
                ));
            }
        }
        let file = Self::open(&first).map_err(StoreError::io(&first, "it cannot be written"))?;
        Ok(Self {
            path: path.to_owned(),
            size,
            file,
            hash: new_hash(),
            room: size.unwrap_or(u64::MAX),
            done: Vec::new(),
            current: first,
            placed: false,
        })
    }

    fn open(path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).open(aside(path))
    }

    fn close(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        let sum = hex(std::mem::replace(&mut self.hash, new_hash()).finish());
        self.done.push((self.current.clone(), sum));
        Ok(())
    }

    /// Puts everything in place, and the sums of the parts beside them.
    pub fn finish(mut self) -> io::Result<Vec<PathBuf>> {
        self.close()?;
        for (path, _) in &self.done {
            fs::rename(aside(path), path)?;
        }
        self.placed = true;
        if self.size.is_some() {
            let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let lines = self.done.iter().map(|(path, sum)| format!("{sum}  {}\n", name(path)));
            fs::write(format!("{}.sha256", self.path.display()), lines.collect::<String>())?;
        }
        Ok(self.done.drain(..).map(|(path, _)| path).collect())
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.room == 0 {
            self.close()?;
            self.current = part(&self.path, self.done.len());
            self.file = Self::open(&self.current)?;
            self.room = self.size.unwrap_or(u64::MAX);
        }
        let n =
            self.file.write(&bytes[..bytes.len().min(usize::try_from(self.room).unwrap_or(usize::MAX))])?;
        self.hash.update(&bytes[..n]);
        self.room -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.placed {
            for path in self.done.iter().map(|(path, _)| path).chain([&self.current]) {
                let _ = fs::remove_file(aside(path));
            }
        }
    }
}

/// Reads a bundle, or its parts in their order, as one.
pub struct Reader {
    waiting: std::vec::IntoIter<PathBuf>,
    file: File,
    pub bytes: u64,
}

impl Reader {
    /// `path` is the bundle, what its parts are called without their numbers, or the first of them.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let stem = match path.extension() {
            Some(end) if end == "000" => path.with_extension(""),
            _ => path.to_owned(),
        };
        let paths: Vec<PathBuf> = match path.exists() && stem == path {
            true => vec![path.to_owned()],
            false => (0..).map(|i| part(&stem, i)).take_while(|path| path.exists()).collect(),
        };
        let first = paths.first().cloned().unwrap_or_else(|| path.to_owned());
        let failed = StoreError::io(&first, "it cannot be opened");
        let file = File::open(&first).map_err(failed)?;
        let bytes = paths.iter().filter_map(|path| fs::metadata(path).ok()).map(|of| of.len()).sum();
        let mut waiting = paths.into_iter();
        waiting.next();
        Ok(Self { waiting, file, bytes })
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.file.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            let Some(next) = self.waiting.next() else { return Ok(0) };
            self.file = File::open(next)?;
        }
    }
}
