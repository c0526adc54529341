//! What is recorded, and of whom.

use std::fmt;

use serde::Serialize;

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// The server by itself.
    Server,
    /// Somebody who sent the server a signal, or the service manager.
    Signal,
    /// A user of this host: at the command line, or on the admin socket, where the kernel says who it is.
    User { uid: u32, name: Option<String> },
    /// The holder of an API key: its public number and its name.
    Key { id: String, name: String },
    /// Somebody at the console who could not say who they are.
    Console,
    /// A session of the console that a one-time link opened: who asked for the link.
    Link(Box<Who>),
}

impl Who {
    /// The user who runs this process; behind sudo, the one who called it.
    pub fn caller() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let uid = nix::unistd::getuid().as_raw();
        if uid == 0
            && let Some(sudo) = variable("SUDO_UID").and_then(|uid| uid.parse().ok())
        {
            return Self::user(sudo);
        }
        Self::user(uid)
    }

    /// A user of this host.
    pub fn user(uid: u32) -> Self {
        let name = nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|user| user.name);
        Self::User { uid, name }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Server => f.write_str("server"),
            Who::Signal => f.write_str("signal"),
            Who::User { uid, name: Some(name) } => write!(f, "user {name} ({uid})"),
            Who::User { uid, name: None } => write!(f, "user {uid}"),
            Who::Key { id, name } => write!(f, "key {id} ({name})"),
            Who::Console => f.write_str("console"),
            Who::Link(who) => write!(f, "{who}, console"),
        }
    }
}

/// What happened. Names and numbers, never a secret: there is no field for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Started {
        version: &'static str,
        listen: String,
    },
    Stopped {
        version: &'static str,
    },
    /// The names of the parts that were swapped.
    Reloaded {
        parts: Vec<String>,
    },
    ReloadRefused {
        origin: String,
        what: String,
    },
    DrainBegun,
    KeyCreated {
        id: String,
        name: String,
        owner: String,
        /// What it opens and how much, in words.
        grants: String,
        /// RFC 3339, or empty.
        expires: String,
    },
    KeyRevoked {
        /// Several, with commas, where all keys of a name were.
        id: String,
        name: String,
    },
    KeyRotated {
        id: String,
        name: String,
        /// The key that takes its place.
        successor: String,
        /// Until when the old one is still good; RFC 3339, or empty for not at all.
        until: String,
    },
    /// The key of the state directory that the server made at its first start.
    FirstKeyRotated,
    /// The gateway's own key for editors' tokens.
    SigningKeyRotated {
        /// Whether tokens of the one before are refused at once.
        revoked: bool,
    },
    ModelImported {
        name: String,
        /// Of its manifest.
        sha256: String,
        bytes: u64,
        licence: String,
    },
    ModelRemoved {
        name: String,
        sha256: String,
    },
    BundleInstalled {
        name: String,
        sha256: String,
        /// The public key that its signature was checked with.
        signed_by: String,
    },
    PromptLogging {
        on: bool,
        /// RFC 3339; empty when it is switched off.
        until: String,
    },
    AdminLogin {
        /// `link`, `key` or `socket`.
        by: String,
        peer: String,
    },
    AdminLoginRefused {
        by: String,
        peer: String,
    },
    /// A change that is in the log already and then was not made.
    ChangeFailed {
        of: String,
        what: String,
    },
    /// The last record of a file that is full.
    FileClosed,
    /// The first record of the file after it.
    FileOpened {
        after: String,
        /// Older files that were taken away, as `audit.keep` says.
        removed: Vec<String>,
    },
    /// A crash left half a record; it was taken away before the next one.
    TornEntryRemoved {
        bytes: u64,
    },
}

impl Event {
    /// Its name in the log.
    pub fn name(&self) -> String {
        let value = serde_json::to_value(self).expect("bug: an event is JSON");
        value["event"].as_str().expect("bug: an event has a name").to_owned()
    }
}
