//! The machine on which a benchmark ran: what its reader must know to compare.

use std::fs;
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::gpu;

/// Facts of this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    /// Cores that this process may use.
    pub cores: u64,
    /// What of the processor's vector units matters here.
    pub vectors: String,
    pub memory_bytes: u64,
    /// As each says of itself, with semicolons between several.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gpu: Option<String>,
    pub system: String,
    /// Processes that wanted to run in the minute before, on average: how busy others kept it.
    pub load_before: f64,
}

impl Machine {
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (cpuinfo, meminfo, release) =
            (read("/proc/cpuinfo"), read("/proc/meminfo"), read("/etc/os-release"));
        let name = field(&release, "PRETTY_NAME=").unwrap_or("Linux").trim_matches('"');
        let kernel = read("/proc/sys/kernel/osrelease");
        let kilobytes =
            field(&meminfo, "MemTotal:").and_then(|text| text.trim_end_matches("kB").trim().parse().ok());
        let load = read("/proc/loadavg");
        Self {
            processor: processor(&cpuinfo),
            cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            vectors: vectors(&cpuinfo),
            memory_bytes: kilobytes.unwrap_or(0u64) * 1024,
            gpu: gpu::look().ok().filter(|all| !all.is_empty()).map(|all| all.join("; ")),
            system: format!("{name}, Linux {}", kernel.trim()),
            load_before: load.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0),
        }
    }
}

/// The rest of the first line that begins with `name`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn value<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
    Some(line.split_once(':')?.1.trim())
}

/// Virtual machines often hide the name; family and model say more then.
fn processor(cpuinfo: &str) -> String {
    let name = value(cpuinfo, "model name").unwrap_or("unknown");
    match (value(cpuinfo, "cpu family"), value(cpuinfo, "model")) {
        (Some(family), Some(model)) => format!("{name} (family {family}, model {model})"),
        _ => name.to_owned(),
    }
}

fn vectors(cpuinfo: &str) -> String {
    let flags: Vec<&str> = value(cpuinfo, "flags").unwrap_or_default().split(' ').collect();
    let known = [("avx2", "AVX2"), ("avx512f", "AVX-512"), ("amx_bf16", "AMX")];
    let found: Vec<&str> =
        known.into_iter().filter(|(flag, _)| flags.contains(flag)).map(|(_, name)| name).collect();
    if found.is_empty() { "none".to_owned() } else { found.join(", ") }
}

/// The SHA-256 over names, lengths and hashes of a checkpoint's files: whole files of JSON, of weights the header and a
/// MiB at both ends. It tells checkpoints apart in a moment; that no bit of one has flipped, `hearth models verify` says.
pub fn digest_of(directory: &Path) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    const END: u64 = 1 << 20;
    let mut names: Vec<_> =
        fs::read_dir(directory)?.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
    names.retain(|path| path.extension().is_some_and(|e| e == "json" || e == "safetensors" || e == "jinja"));
    names.sort();
    let mut whole = Context::new(&SHA256);
    for path in names {
        let mut file = fs::File::open(&path)?;
        let length = file.metadata()?.len();
        let mut part = Context::new(&SHA256);
        let mut add = |from: u64, bytes: u64| -> std::io::Result<()> {
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
    Ok(hex(whole.finish().as_ref()))
}

/// The SHA-256 of bytes at hand.
pub fn digest(bytes: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_processor_and_memory() {
        let machine = Machine::this();
        assert!(machine.cores > 0 && machine.memory_bytes > 1 << 28, "{machine:?}");
        assert!(machine.system.contains("Linux"), "{machine:?}");
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\ncpu family\t: 6\nmodel\t\t: 143\nflags\t\t: fpu avx2 avx512f\n";
        assert_eq!(processor(text), "Some CPU @ 2.00GHz (family 6, model 143)");
        assert_eq!((vectors(text).as_str(), vectors("").as_str()), ("AVX2, AVX-512", "none"));
    }

    #[test]
    fn another_byte_at_either_end_or_another_name_is_another_digest() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut weights = vec![7u8; 5 << 20];
        let of = |weights: &[u8], name: &str| {
            fs::write(path("config.json"), "{}").unwrap();
            fs::write(path("notes.txt"), name).unwrap();
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
}
