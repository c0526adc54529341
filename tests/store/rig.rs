//! A store of its own for a test, a checkpoint to put into it, and the binary.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hearth_models::ember;
use tempfile::TempDir;

pub const LICENCE: &str = "MIT License\n\nPermission is hereby granted, free of charge\n";

/// The files of a checkpoint as a publisher lays them out: ember's, which are small and real.
pub fn files() -> Vec<(&'static str, Vec<u8>)> {
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember/model.safetensors");
    vec![
        ("LICENSE", LICENCE.into()),
        ("config.json", ember::CONFIG.to_vec()),
        ("generation_config.json", ember::GENERATION_CONFIG.to_vec()),
        ("model.safetensors", fs::read(weights).unwrap()),
        ("tokenizer.json", ember::TOKENIZER.to_vec()),
        ("tokenizer_config.json", ember::TOKENIZER_CONFIG.to_vec()),
    ]
}

pub struct Rig {
    pub dir: TempDir,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub said: String,
}

impl Ran {
    pub fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), said: text(output.stderr) }
    }

    /// Its standard output, of a success.
    #[track_caller]
    pub fn well(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.said);
        self.out
    }

    /// Its message, of a failure with this code and these words.
    #[track_caller]
    pub fn failed(self, code: i32, words: &[&str]) -> String {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.said);
        for word in words {
            assert!(self.said.contains(word), "no {word:?} in\n{}", self.said);
        }
        assert!(self.said.contains("  fix: "), "no way out in\n{}", self.said);
        self.said
    }
}

impl Rig {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn models(&self) -> PathBuf {
        self.path("state/models")
    }

    /// The checkpoint in a directory of this name.
    pub fn checkpoint(&self, name: &str) -> String {
        let directory = self.path(name);
        fs::create_dir_all(&directory).unwrap();
        for (file, bytes) in files() {
            fs::write(directory.join(file), bytes).unwrap();
        }
        directory.display().to_string()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
        command
            .args(arguments)
            .env_clear()
            .env("HEARTH__SERVER__STATE_DIR", self.path("state"))
            .env("HEARTH__ENGINE__DEVICE", "cpu")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
    }

    /// With something on standard input.
    pub fn feed(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that refused it does not read it to its end.
        let _ = stdin.write_all(input);
        drop(stdin);
        Ran::of(child.wait_with_output().unwrap())
    }

    pub fn import(&self, from: &str, more: &[&str]) -> Ran {
        self.run(&[&["models", "import", from, "--accept-license"], more].concat())
    }

    /// Everything in the store but its lock and its empty directories.
    pub fn stored(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut open = vec![self.models()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => open.push(entry.path()),
                    false => {
                        names.push(entry.path().strip_prefix(self.models()).unwrap().display().to_string())
                    }
                }
            }
        }
        names.retain(|name| name != ".lock");
        names.sort();
        names
    }

    pub fn audited(&self) -> String {
        fs::read_to_string(self.path("state/audit.jsonl")).unwrap_or_default()
    }
}

/// A tar archive of plain files.
pub fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        append(&mut archive, name, tar::EntryType::Regular, bytes);
    }
    archive.into_inner().unwrap()
}

/// The checkpoint as an archive, below a directory unless its name is empty.
pub fn tar_of_checkpoint(directory: &str) -> Vec<u8> {
    let files = files();
    let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
    let named: Vec<(String, &[u8])> =
        files.iter().map(|(n, b)| (format!("{prefix}{n}"), b.as_slice())).collect();
    tar(&named.iter().map(|(n, b)| (n.as_str(), *b)).collect::<Vec<_>>())
}

/// Any entry, also one that no decent program would write: the name goes in as it is.
pub fn append(archive: &mut tar::Builder<Vec<u8>>, name: &str, kind: tar::EntryType, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    header.set_cksum();
    archive.append(&header, bytes).unwrap();
}

pub fn zst(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
