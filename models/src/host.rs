//! How much memory this host can give: the machine's and the control group's, whichever is less.

use std::fs;
use std::path::{Path, PathBuf};

/// Memory that can be taken now, and what limits it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Available {
    pub bytes: u64,
    /// In words, for messages.
    pub limit: String,
}

/// Larger "limits" are the old control groups' way of saying none.
const UNLIMITED: u64 = 1 << 60;

impl Available {
    /// Reads /proc and /sys. `None` where there is neither.
    pub fn now() -> Option<Available> {
        let sys = Path::new("/sys");
        Available::below(Path::new("/proc"), &sys.join("fs/cgroup"), &sys.join("devices/system/node"))
    }

    fn below(proc: &Path, groups: &Path, nodes: &Path) -> Option<Available> {
        let meminfo = fs::read_to_string(proc.join("meminfo")).unwrap_or_default();
        let machine = match kilobytes(&meminfo, "MemAvailable:") {
            Some(bytes) => Available { bytes, limit: "MemAvailable of this machine".into() },
            // A hardened service (ProcSubset=pid) is not shown the file.
            None => Available { bytes: of_nodes(nodes)?, limit: "free memory of this machine".into() },
        };
        let own = fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
        let limits = own.lines().flat_map(|line| group_limits(line, groups));
        limits.chain([machine]).min_by_key(|limit| limit.bytes)
    }
}

fn kilobytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the nodes' own files say is free, or could be: pages of files are the kernel's to drop.
fn of_nodes(nodes: &Path) -> Option<u64> {
    let entries = fs::read_dir(nodes).ok()?.filter_map(|entry| Some(entry.ok()?.path().join("meminfo")));
    let texts: Vec<String> = entries.filter_map(|file| fs::read_to_string(file).ok()).collect();
    // Lines are `Node 0 MemFree:  1234 kB`.
    let sum = |key: &str| -> u64 {
        let value = |line: &str| kilobytes(line.split_once(&format!(" {key}:"))?.1, "");
        texts.iter().flat_map(|text| text.lines()).filter_map(value).sum()
    };
    Some(sum("MemFree") + sum("Active(file)") + sum("Inactive(file)")).filter(|bytes| *bytes > 0)
}

/// What the control group of a line of /proc/self/cgroup and those above it leave: limit minus use, where file pages
/// that nobody used lately do not count.
fn group_limits(line: &str, groups: &Path) -> Vec<Available> {
    let mut fields = line.splitn(3, ':');
    let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
        return Vec::new();
    };
    let (root, max, current, inactive) = match controllers {
        "" => (groups.to_path_buf(), "memory.max", "memory.current", "inactive_file "),
        list if list.split(',').any(|name| name == "memory") => {
            (groups.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        }
        _ => return Vec::new(),
    };
    let path = PathBuf::from(path.trim_start_matches('/'));
    path.ancestors()
        .filter_map(|group| {
            let dir = root.join(group);
            let number = |file: &str| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
            let limit = number(max).filter(|limit| *limit < UNLIMITED)?;
            let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
            let idle = stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse().ok());
            let used = number(current).unwrap_or(0).saturating_sub(idle.unwrap_or(0));
            Some(Available {
                bytes: limit.saturating_sub(used),
                limit: format!("the limit of control group /{}", group.display()),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(cgroup: &str, files: &[(&str, &str)]) -> Available {
        let dir = tempfile::tempdir().unwrap();
        let (proc, groups) = (dir.path().join("proc"), dir.path().join("groups"));
        fs::create_dir_all(proc.join("self")).unwrap();
        fs::write(proc.join("meminfo"), "MemTotal:  9000 kB\nMemAvailable:    4000 kB\n").unwrap();
        fs::write(proc.join("self/cgroup"), cgroup).unwrap();
        for (path, text) in files {
            let path = groups.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Available::below(&proc, &groups, &dir.path().join("nodes")).unwrap()
    }

    #[test]
    fn without_a_limit_the_machine_counts() {
        let got = host("0::/user.slice\n", &[("user.slice/memory.max", "max\n")]);
        assert_eq!(got, Available { bytes: 4_096_000, limit: "MemAvailable of this machine".into() });
    }

    #[test]
    fn a_limit_of_a_group_above_counts_and_idle_file_pages_do_not() {
        let files = [
            ("a/memory.max", "2000000\n"),
            ("a/memory.current", "900000\n"),
            ("a/memory.stat", "anon 5\ninactive_file 400000\nactive_file 7\n"),
            ("a/b/memory.max", "max\n"),
        ];
        let got = host("0::/a/b\n", &files);
        assert_eq!(got, Available { bytes: 1_500_000, limit: "the limit of control group /a".into() });
    }

    #[test]
    fn old_control_groups_are_read_too() {
        let files = [
            ("memory/docker/x/memory.limit_in_bytes", "1000000\n"),
            ("memory/docker/x/memory.usage_in_bytes", "200000\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        let got = host("5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n", &files);
        assert_eq!(got.bytes, 800_000);
    }

    #[test]
    fn a_service_that_is_not_shown_meminfo_asks_the_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let node = |name: &str, free: u64| {
            let of = dir.path().join("nodes").join(name);
            fs::create_dir_all(&of).unwrap();
            let text = format!(
                "Node 0 MemTotal:  9000 kB\nNode 0 MemFree:   {free} kB\nNode 0 Active(file):  30 kB\nNode 0 \
                 Inactive(file): 20 kB\n"
            );
            fs::write(of.join("meminfo"), text).unwrap();
        };
        let below = || Available::below(&dir.path().join("proc"), dir.path(), &dir.path().join("nodes"));
        assert_eq!(below(), None);
        node("node0", 1000);
        node("node1", 500);
        assert_eq!(below().unwrap().bytes, (1500 + 2 * 50) * 1024);
    }

    #[test]
    fn this_host_has_some() {
        assert!(Available::now().is_some_and(|available| available.bytes > 1 << 20));
    }
}
