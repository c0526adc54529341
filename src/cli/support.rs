//! `hearth support-bundle`: what helps others to help, in one archive, without secrets and prompts.
//!
//! It works with the server running or not: what cannot be had is named in the archive with the reason. Everything is
//! text; `--preview` prints the list first, and `tar -tf` shows it again.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use axum::http::Method;
use clap::Args;

use super::admin::{Line, Which};
use super::{CliError, Common, Exit};
use crate::config::Settings;
use crate::doctor;

/// Lines of the audit log that go with it.
const AUDIT_LINES: usize = 500;
/// And bytes: it grows for as long as the appliance is in use.
const AUDIT_BYTES: u64 = 1 << 20;

#[derive(Args)]
pub struct SupportBundle {
    /// The archive to write [default: hearth-support-TIME.tar.zst]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only list what would go in, with sizes
    #[arg(long)]
    preview: bool,
    #[command(flatten)]
    which: Which,
}

/// One file of the archive.
struct Part {
    name: &'static str,
    about: &'static str,
    text: Result<String, String>,
}

pub fn run(verb: SupportBundle, common: &Common) -> Result<(), CliError> {
    let settings = verb.which.settings(common)?;
    let mut parts = vec![
        part("version.txt", "this binary and this host", Ok(host())),
        part("settings.txt", "the settings and where each came from, secrets as ***", shown(common)),
    ];
    parts.extend(super::runtime()?.block_on(asked(&settings)));
    let audit = end_of(&settings.state_dir.join("audit.jsonl")).map_err(|e| e.to_string());
    parts.push(part("audit.jsonl", "the end of the audit log", audit));
    let mut out = std::io::stdout();
    for part in &parts {
        let size = match &part.text {
            Ok(text) => format!("{} bytes", text.len()),
            Err(reason) => format!("not there: {reason}"),
        };
        writeln!(out, "{:<16} {} ({size})", part.name, part.about)?;
    }
    if verb.preview {
        return Ok(());
    }
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let path = verb.output.unwrap_or_else(|| format!("hearth-support-{stamp}.tar.zst").into());
    write(&path, &stamp, &parts).map_err(|e| {
        CliError::new(Exit::Failed, format!("the archive cannot be written: {e}"))
            .at(path.display().to_string())
            .fix("name another place: --output FILE")
    })?;
    eprintln!(
        "written: {}; it holds no keys and no prompts, and names this host, its models and GitLab's URL",
        path.display()
    );
    Ok(())
}

fn part(name: &'static str, about: &'static str, text: Result<String, String>) -> Part {
    Part { name, about, text }
}

/// What the running server and the doctor say.
async fn asked(settings: &Settings) -> Vec<Part> {
    let line = Line::open(settings).await;
    let line = line.as_ref().map_err(|e| e.to_string().lines().next().unwrap_or_default().to_owned());
    let pretty = async |path: &str| -> Result<String, String> {
        let answer = line.clone()?.ask(Method::GET, path, None).await.map_err(|e| e.to_string())?;
        Ok(format!("{answer:#}\n"))
    };
    let log = async {
        let answer = line.clone()?.ask(Method::GET, "/admin/log", None).await.map_err(|e| e.to_string())?;
        let lines = answer["lines"].as_array().cloned().unwrap_or_default();
        Ok::<_, String>(lines.iter().filter_map(|l| Some(l.as_str()?.to_owned() + "\n")).collect::<String>())
    };
    let findings = doctor::examine(settings).await;
    let findings: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    vec![
        part("doctor.txt", "what hearth doctor finds", Ok(findings)),
        part("status.json", "what the server does", pretty("/admin/status").await),
        part("history.json", "the last 15 minutes by seconds", pretty("/admin/history").await),
        part("log.jsonl", "the last lines of the log", log.await),
        part(
            "metrics.txt",
            "what Prometheus is told",
            match &line {
                Ok(line) => line.text("/admin/metrics").await.map_err(|e| e.to_string()),
                Err(reason) => Err(reason.clone()),
            },
        ),
    ]
}

/// `hearth config show --origin`, which shows no secret.
fn shown(common: &Common) -> Result<String, String> {
    let mut text = Vec::new();
    super::config::show(&mut text, common, true).map_err(|e| e.to_string())?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The last lines of a log. A link in its place would let whoever can write there choose what root sends away.
fn end_of(path: &Path) -> io::Result<String> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let of = file.metadata()?;
    if !of.is_file() {
        return Err(io::Error::other("it is no plain file"));
    }
    let before = of.len().saturating_sub(AUDIT_BYTES);
    file.seek(SeekFrom::Start(before))?;
    let mut bytes = Vec::new();
    file.take(AUDIT_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let whole = match before {
        0 => &*text,
        // The first line was cut.
        _ => text.split_once('\n').map_or("", |(_, rest)| rest),
    };
    let lines: Vec<&str> = whole.lines().collect();
    Ok(lines[lines.len().saturating_sub(AUDIT_LINES)..].join("\n") + "\n")
}

/// What matters of a machine, as far as it may be read.
fn host() -> String {
    let mut text = format!("hearth {}\n", env!("CARGO_PKG_VERSION"));
    for (name, path) in [
        ("kernel", "/proc/sys/kernel/osrelease"),
        ("system", "/etc/os-release"),
        ("memory", "/proc/meminfo"),
        ("memory limit", "/sys/fs/cgroup/memory.max"),
        ("load", "/proc/loadavg"),
        ("uptime", "/proc/uptime"),
    ] {
        let found = fs::read_to_string(path).unwrap_or_else(|e| format!("{e}\n"));
        let found: Vec<&str> = found.lines().take(8).collect();
        text += &format!("\n{name}\n  {}\n", found.join("\n  "));
    }
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find(|line| line.starts_with("model name")).unwrap_or("unknown");
    let flags = cpu.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let known: Vec<&str> = flags
        .split_whitespace()
        .filter(|flag| flag.starts_with("avx") || flag.starts_with("amx") || *flag == "fma")
        .collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    text + &format!("\nprocessor\n  {model}\n  {cores} cores for this process\n  {}\n", known.join(" "))
}

/// For its owner alone: it names the host and who did what on it.
fn write(path: &Path, stamp: &str, parts: &[Part]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut archive = tar::Builder::new(zstd::Encoder::new(file, 3)?.auto_finish());
    for part in parts {
        let (name, text) = match &part.text {
            Ok(text) => (part.name.to_owned(), text.clone()),
            Err(reason) => (format!("{}.missing", part.name), format!("{reason}\n")),
        };
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(jiff::Timestamp::now().as_second().max(0) as u64);
        archive.append_data(&mut header, format!("hearth-support-{stamp}/{name}"), text.as_bytes())?;
    }
    archive.finish()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn the_archive_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bundle");
        write(&path, "now", &[part("version.txt", "", Ok("1\n".to_owned()))]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write(&path, "now", &[]).is_err(), "what is there is not written over");
    }

    #[test]
    fn of_the_audit_log_it_takes_the_end_and_of_a_link_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("audit.jsonl");
        fs::write(&log, "one\ntwo\n").unwrap();
        assert_eq!(end_of(&log).unwrap(), "one\ntwo\n");
        let long: String = (0..400_000).map(|i| format!("line {i:06}\n")).collect();
        fs::write(&log, long).unwrap();
        let end = end_of(&log).unwrap();
        assert!(end.starts_with("line 399500\n") && end.ends_with("line 399999\n"), "{}", end.len());
        // Lines without an end are cut where the bytes end.
        fs::write(&log, "x".repeat(3 << 20) + "\nlast\n").unwrap();
        assert_eq!(end_of(&log).unwrap(), "last\n");
        let link = directory.path().join("link");
        symlink(&log, &link).unwrap();
        assert_eq!(end_of(&link).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        assert!(end_of(directory.path()).is_err());
    }
}
