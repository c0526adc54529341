//! The server of a benchmark that names none: this very binary in a process of its own, on a free port of the loopback, with
//! a key and a state directory that nobody else has.
//!
//! A process and not a thread: what is measured is what is installed, accept loop and all, and it does not share its
//! async threads with those who ask. Models and `engine.*` are as the settings say; everything else has its default, so
//! that no port, certificate or GitLab of the real server is touched.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::config::Origin;
use crate::config::keys::{KEYS, Key, Kind};
use crate::config::state::Secret;
use crate::outbound::Base;

/// What it said last, kept for errors.
const LAST: usize = 20;

/// A running server. Ends with this value, and with this process.
pub struct Own {
    child: Child,
    said: Arc<Mutex<VecDeque<String>>>,
    pub url: Base,
    pub key: Secret,
    directory: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum OwnError {
    #[error("the server for the benchmark cannot be started: {0}")]
    Start(std::io::Error),
    #[error("the server for the benchmark ended ({status}); it said:\n{said}")]
    Ended { status: ExitStatus, said: String },
}

impl Own {
    /// Starts it and waits until it listens. `arguments` are the flags of `hearth serve` that name models; `show` is given
    /// every line that it says while it loads; `models` is where imported models are. Must be called on a thread that lives as long as the server shall: Linux
    /// ends it with that thread.
    pub fn start(
        arguments: &[OsString],
        models: &Path,
        show: impl Fn(&str) + Send + 'static,
    ) -> Result<Self, OwnError> {
        let binary = std::env::current_exe().map_err(OwnError::Start)?;
        let directory = private_directory().map_err(OwnError::Start)?;
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("bug: the system gives no random numbers");
        let key = bytes.iter().fold("bench_".to_owned(), |text, byte| format!("{text}{byte:02x}"));
        let key = Secret::checked(&key, &Origin::Default).expect("bug: 64 digits are a key");
        let mut command = Command::new(binary);
        // A group of its own: Ctrl-C is for this process, which then ends its server itself.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.arg("serve").args(arguments).arg("--with-parent");
        command.args(["--listen", "127.0.0.1:0", "--metrics", "", "--state-dir"]).arg(&directory);
        for (name, _) in std::env::vars_os() {
            let foreign = ["HEARTH__", "AIGW_"]
                .iter()
                .any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()));
            let systemd = [
                "NOTIFY_SOCKET",
                "LISTEN_FDS",
                "LISTEN_PID",
                "LISTEN_FDNAMES",
                "WATCHDOG_USEC",
                "WATCHDOG_PID",
            ];
            let places = ["STATE_DIRECTORY", "RUNTIME_DIRECTORY"];
            let name = name.as_os_str();
            let kept =
                name.to_str().is_some_and(|name| name.to_ascii_uppercase().starts_with("HEARTH__ENGINE__"));
            if (foreign && !kept) || systemd.iter().chain(&places).any(|other| name == *other) {
                command.env_remove(name);
            }
        }
        for (name, value) in defaults() {
            command.env(name, value);
        }
        command.env("HEARTH__MODELS__DIR", models).env("HEARTH_KEY", key.expose());
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(OwnError::Start)?;
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let lines = BufReader::new(child.stderr.take().expect("bug: standard error is piped"));
        let (listens, url) = std::sync::mpsc::channel();
        let kept = said.clone();
        std::thread::spawn(move || {
            let mut loading = true;
            for line in lines.lines().map_while(Result::ok) {
                let address = line.strip_prefix("hearth ").and_then(|line| Some(line.rsplit_once(" at ")?.1));
                if let Some(url) = address.and_then(|url| url.parse::<Base>().ok()).filter(|_| loading) {
                    loading = false;
                    let _ = listens.send(url);
                }
                if loading {
                    show(&line);
                }
                let mut said = kept.lock().unwrap_or_else(PoisonError::into_inner);
                said.push_back(line);
                if said.len() > LAST {
                    said.pop_front();
                }
            }
        });
        // Loading takes as long as it takes; what ends the wait is the server's end, which closes the channel.
        match url.recv() {
            Ok(url) => Ok(Self { child, said, url, key, directory }),
            Err(_) => {
                let status = child.wait().map_err(OwnError::Start)?;
                let _ = std::fs::remove_dir_all(&directory);
                let said = said.lock().unwrap_or_else(PoisonError::into_inner);
                Err(OwnError::Ended { status, said: told(&said) })
            }
        }
    }

    /// What became of it, when it has ended by itself.
    pub fn ended(&mut self) -> Option<OwnError> {
        // A dead process may still be about to be seen as one.
        for _ in 0..20 {
            if let Ok(Some(status)) = self.child.try_wait() {
                let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
                return Some(OwnError::Ended { status, said: told(&said) });
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        None
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // Nobody is served any more: there is nothing to drain.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn told(said: &VecDeque<String>) -> String {
    said.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// A directory that only this user can read.
fn private_directory() -> std::io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("bug: the system gives no random numbers");
    let path = std::env::temp_dir().join(format!("hearth-bench-{:016x}", u64::from_le_bytes(bytes)));
    std::fs::DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}

/// Every setting but the engine's at its default, and nothing that listens beside the API.
fn defaults() -> Vec<(String, &'static str)> {
    let others = KEYS.iter().filter(|key| !key.name.starts_with("engine.") && key.name != "server.key");
    let value = |key: &Key| match (key.name, key.kind) {
        (_, Kind::OptionalAddress) => "",
        // All requests come from here.
        ("server.connections_per_address" | "server.connections", _) => "16384",
        _ => key.default,
    };
    others
        .map(|key| (format!("HEARTH__{}", key.name.replace('.', "__").to_ascii_uppercase()), value(key)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_engines_settings_reaches_the_server_and_nothing_else_listens() {
        let defaults = defaults();
        let of = |name: &str| defaults.iter().find(|(n, _)| n == name).map(|(_, value)| *value);
        assert_eq!(of("HEARTH__SERVER__METRICS"), Some(""));
        assert_eq!(of("HEARTH__GITLAB__URL"), Some(""));
        assert_eq!(of("HEARTH__ENGINE__SEQUENCES"), None);
        let layers = crate::config::Layers::load(
            Some(Path::new("/dev/null")),
            defaults.iter().map(|(name, value)| (name.clone(), (*value).to_owned())),
        );
        crate::config::Settings::of(&layers.unwrap()).unwrap();
    }
}
