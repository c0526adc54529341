//! The bytes of a file on their way into the store: hashed as they pass, whole and in chunks.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use aws_lc_rs::digest::{Context, SHA256, digest};

/// Large files have a sum for each piece of this size, so that a part of them can be checked.
pub const CHUNK: u64 = 16 << 20;
const BUFFER: usize = 1 << 20;

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("bug: SHA-256 has 32 bytes")
}

pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().fold(String::new(), |text, b| format!("{text}{b:02x}"))
}

/// The sums of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sums {
    pub bytes: u64,
    pub sha256: String,
    /// Of each chunk, where there are several.
    pub chunks: Vec<String>,
}

/// What passed was not written or not read.
#[derive(Debug)]
pub enum Broken {
    Read(io::Error),
    Write(io::Error),
}

/// Reads to the end; every piece goes to `write` and into the sums.
pub fn pass(read: &mut dyn Read, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> Result<Sums, Broken> {
    let mut whole = Context::new(&SHA256);
    let mut chunk = Context::new(&SHA256);
    let mut chunks = Vec::new();
    let mut bytes = 0u64;
    let mut buffer = vec![0; BUFFER];
    loop {
        // Never across the border of a chunk.
        let room = (CHUNK - bytes % CHUNK).min(BUFFER as u64) as usize;
        let n = match read.read(&mut buffer[..room]) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Broken::Read(e)),
        };
        whole.update(&buffer[..n]);
        chunk.update(&buffer[..n]);
        write(&buffer[..n]).map_err(Broken::Write)?;
        bytes += n as u64;
        if bytes.is_multiple_of(CHUNK) {
            let full = std::mem::replace(&mut chunk, Context::new(&SHA256));
            chunks.push(hex(full.finish()));
        }
    }
    if !bytes.is_multiple_of(CHUNK) {
        chunks.push(hex(chunk.finish()));
    }
    if chunks.len() < 2 {
        chunks.clear();
    }
    Ok(Sums { bytes, sha256: hex(whole.finish()), chunks })
}

/// The sum of one chunk of a file.
pub fn chunk(file: &File, index: u64, length: u64) -> io::Result<String> {
    let start = index * CHUNK;
    let size = CHUNK.min(length.saturating_sub(start)) as usize;
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, start)?;
    Ok(hex(sha256(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_a_file_and_of_its_chunks() {
        let bytes: Vec<u8> = (0..CHUNK as usize * 2 + 7).map(|i| (i % 251) as u8).collect();
        let mut written = Vec::new();
        let sums = pass(&mut &bytes[..], |piece| {
            written.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
        assert!(written == bytes);
        assert_eq!((sums.bytes, sums.chunks.len()), (bytes.len() as u64, 3));
        assert_eq!(sums.sha256, hex(sha256(&bytes)));
        assert_eq!(sums.chunks[1], hex(sha256(&bytes[CHUNK as usize..2 * CHUNK as usize])));
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &bytes).unwrap();
        assert_eq!(chunk(&file, 2, sums.bytes).unwrap(), sums.chunks[2]);
        assert_eq!(hex(sha256(b"")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert!(pass(&mut &b"short"[..], |_| Ok(())).unwrap().chunks.is_empty());
    }
}
