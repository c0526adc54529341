//! The machine: what computes and remembers, and the room for the state directory.

use std::fs;
use std::path::Path;

use hearth_kernels::Isa;
use hearth_models::host::Available;
use hearth_models::memory::Size;
use nix::sys::statvfs::statvfs;

use super::Finding;
use crate::config::Settings;

/// Less room than this in the state directory, and the next key or audit entry may not fit.
const LITTLE: u64 = 256 << 20;

/// Connections are file descriptors; so are models, logs and sockets.
const DESCRIPTORS: u64 = 256;

pub fn host(settings: &Settings) -> Vec<Finding> {
    vec![machine(), state(settings), descriptors(settings)]
}

fn machine() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let system = system(&fs::read_to_string("/etc/os-release").unwrap_or_default());
    let what = format!("{system}, {cores} cores ({})", Isa::best().name());
    match Available::now() {
        Some(Available { bytes, limit }) => {
            Finding::ok("host", format!("{what}, {} free: {limit}", Size(bytes)))
        }
        None => Finding::warns(
            "host",
            format!("{what}; how much memory is free cannot be read"),
            "mount /proc or /sys",
        )
        .effect("the server does not start on the CPU: it will not load what may not fit"),
    }
}

/// The name of the system, as it gives it.
fn system(release: &str) -> String {
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or("Linux", |name| name.trim_matches('"')).to_owned()
}

fn state(settings: &Settings) -> Finding {
    const CHECK: &str = "state";
    let directory = &settings.state_dir;
    let shown = directory.display();
    let effect = "keys, the audit log and imported models cannot be kept";
    // Before the first start it is not there; what it will be made in is.
    let existing = directory.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    if let Err(error) = nix::unistd::access(existing, nix::unistd::AccessFlags::W_OK) {
        let user = nix::unistd::geteuid();
        return Finding::fails(
            CHECK,
            format!("{} cannot be written by user {user}: {}", existing.display(), error.desc()),
            format!("run this as the server's user, or give the directory to it: chown -R USER {shown}"),
        )
        .effect(effect);
    }
    let Ok(room) = statvfs(existing) else {
        return Finding::warns(CHECK, format!("the room in {shown} cannot be read"), "check the file system");
    };
    let free = room.blocks_available() * room.fragment_size();
    match free < LITTLE {
        true => Finding::fails(CHECK, format!("{shown} has {} free", Size(free)), "make room there")
            .effect(effect),
        false => Finding::ok(CHECK, format!("{shown}, {} free", Size(free))),
    }
}

fn descriptors(settings: &Settings) -> Finding {
    const CHECK: &str = "files";
    let needed = settings.front.limits.connections as u64 + DESCRIPTORS;
    match nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        // The server raises the soft limit to the hard one.
        Ok((_, hard)) if hard < needed => Finding::warns(
            CHECK,
            format!("this process may open {hard} files; server.connections is {}", settings.front.limits.connections),
            format!("raise the limit to {needed} (LimitNOFILE= of the unit, ulimit -n), or lower server.connections"),
        )
        .effect("connections beyond the limit wait to be accepted"),
        Ok((_, hard)) => Finding::ok(CHECK, format!("{hard} may be open; {needed} are needed at most")),
        Err(error) => Finding::warns(CHECK, format!("the limit cannot be read: {}", error.desc()), "see ulimit -n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_is_named_as_it_names_itself() {
        assert_eq!(
            system("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(system(""), "Linux");
    }
}
