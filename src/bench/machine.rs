//! The machine on which a benchmark ran: what its reader must know to compare.

use std::fs;

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
}
