//! The binary as a service manager runs it: behind a socket that the manager holds, telling it how it is.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::site::KEY;

/// What outlives the process.
pub struct Manager {
    listener: TcpListener,
    told: Receiver<String>,
    directory: tempfile::TempDir,
}

/// One life of the process.
pub struct Life {
    child: Child,
    /// What it has written to standard error so far.
    pub log: Arc<Mutex<String>>,
}

impl Manager {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        let (heard, told) = channel();
        std::thread::spawn(move || {
            let mut message = [0; 4096];
            while let Ok(length) = socket.recv(&mut message) {
                if heard.send(String::from_utf8_lossy(&message[..length]).into_owned()).is_err() {
                    return;
                }
            }
        });
        Self { listener: TcpListener::bind("127.0.0.1:0").unwrap(), told, directory }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// Starts the server with the socket as its file 3, as systemd does.
    pub fn start(&self, arguments: &[&str]) -> Life {
        let listener = OwnedFd::from(self.listener.try_clone().unwrap());
        let script = "export LISTEN_PID=$$ LISTEN_FDS=1; exec 3<&0 0</dev/null; exec \"$0\" \"$@\"";
        let mut child = Command::new("sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_hearth"), "serve", "--metrics", "", "--state-dir"])
            .arg(self.path("state"))
            .args(arguments)
            .env("HEARTH_KEY", KEY)
            .env("HEARTH__CONSOLE__LISTEN", "")
            .env("NOTIFY_SOCKET", self.path("notify"))
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let kept = log.clone();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = stderr.read(&mut piece) {
                kept.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..length]));
            }
        });
        Life { child, log }
    }

    /// Waits until the server has told this; what it told until then.
    pub fn until(&self, word: &str) -> String {
        let mut all = String::new();
        while !all.contains(word) {
            let message = self.told.recv_timeout(Duration::from_secs(120));
            all += &message.unwrap_or_else(|e| panic!("{e} before {word}: {all}"));
        }
        all
    }
}

impl Life {
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    pub fn said(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits for its end; the exit code.
    pub fn ended(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says that it is over when it is dropped: a test that fails must not leave its load running, and wait for it.
pub struct Over<'a>(pub &'a std::sync::atomic::AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// How often, from the environment: a few times in the gate, many in `.ci/full`.
pub fn times(variable: &str, few: u64) -> u64 {
    std::env::var(variable).ok().and_then(|n| n.parse().ok()).unwrap_or(few)
}

/// TOML's spelling of a path.
pub fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}
