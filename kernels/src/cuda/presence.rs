//! Whether there is an NVIDIA GPU in this host, told from files alone: what the driver's library says is not enough to
//! tell a host without one from a host whose GPU this process may not use.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// NVIDIA's number among makers of PCI devices, and the classes of display and 3D controllers.
const VENDOR: &str = "0x10de";
const CLASSES: [&str; 2] = ["0x0300", "0x0302"];

/// What the host shows of GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// NVIDIA controllers on the PCI bus.
    pub controllers: usize,
    /// Version of the driver's kernel module, where it is loaded.
    pub module: Option<String>,
    pub node: Node,
}

/// The device node that every use of the driver begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    Missing,
    /// This user may not open it.
    Denied,
    Open,
}

impl Presence {
    pub fn now() -> Self {
        Self::below(Path::new("/"))
    }

    fn below(root: &Path) -> Self {
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let buses = root.join("sys/bus/pci/devices").read_dir();
        let devices = buses.into_iter().flatten().flatten().map(|entry| entry.path());
        let controller = |device: &Path| {
            let class = read(&device.join("class"));
            read(&device.join("vendor")).trim() == VENDOR && CLASSES.iter().any(|c| class.starts_with(c))
        };
        let version = read(&root.join("proc/driver/nvidia/version"));
        let node = fs::OpenOptions::new().read(true).write(true).open(root.join("dev/nvidiactl"));
        Self {
            controllers: devices.filter(|device| controller(device)).count(),
            module: version.split_whitespace().find(|word| is_version(word)).map(str::to_owned),
            node: match node {
                Ok(_) => Node::Open,
                Err(error) if error.kind() == ErrorKind::PermissionDenied => Node::Denied,
                Err(_) => Node::Missing,
            },
        }
    }

    /// Whether this host has a GPU, be it one that cannot be used.
    pub fn is_here(&self) -> bool {
        self.controllers > 0 || self.module.is_some()
    }

    /// Why a GPU that is here cannot be used, and what to do.
    pub fn obstacle(&self) -> String {
        match (&self.module, self.node) {
            (None, _) => "the driver's kernel module is not loaded; install the NVIDIA driver, 580 or newer".into(),
            (Some(_), Node::Denied) => {
                "this user may not open /dev/nvidiactl; give it the group of the /dev/nvidia* nodes".into()
            }
            (Some(_), Node::Missing) => {
                "/dev/nvidiactl is not there; in a container ask for the GPU (--gpus all, or the device plugin's \
                 resource), elsewhere run nvidia-modprobe"
                    .into()
            }
            (Some(module), Node::Open) => {
                format!("the kernel module is {module}; the libraries beside it are of another version or not visible")
            }
        }
    }
}

/// Like 580.65.06.
fn is_version(word: &str) -> bool {
    let mut parts = word.split('.');
    parts.clone().count() >= 2
        && parts.all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> Presence {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Presence::below(root.path())
    }

    const CARD: [(&str, &str); 2] = [
        ("sys/bus/pci/devices/0000:17:00.0/vendor", "0x10de\n"),
        ("sys/bus/pci/devices/0000:17:00.0/class", "0x030200\n"),
    ];
    const MODULE: (&str, &str) = (
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version:  12.2.0\n",
    );

    #[test]
    fn a_host_without_a_card_has_none() {
        let presence = host(&[
            ("sys/bus/pci/devices/0000:00:02.0/vendor", "0x8086\n"),
            ("sys/bus/pci/devices/0000:00:02.0/class", "0x030000\n"),
            // NVIDIA's sound on a card, say.
            ("sys/bus/pci/devices/0000:17:00.1/vendor", "0x10de\n"),
            ("sys/bus/pci/devices/0000:17:00.1/class", "0x040300\n"),
        ]);
        assert_eq!(presence, Presence { controllers: 0, module: None, node: Node::Missing });
        assert!(!presence.is_here());
    }

    #[test]
    fn what_keeps_a_card_from_being_used_is_named() {
        let bare = host(&CARD);
        assert!(bare.is_here() && bare.obstacle().contains("kernel module is not loaded"), "{bare:?}");
        let boxed = host(&[CARD[0], CARD[1], MODULE]);
        assert_eq!(boxed.module.as_deref(), Some("580.65.06"));
        assert!(boxed.obstacle().contains("--gpus"), "{}", boxed.obstacle());
        let whole = host(&[CARD[0], CARD[1], MODULE, ("dev/nvidiactl", "")]);
        assert_eq!((whole.controllers, whole.node), (1, Node::Open));
        assert!(whole.obstacle().contains("580.65.06"), "{}", whole.obstacle());
        let denied = Presence { node: Node::Denied, ..whole };
        assert!(denied.obstacle().contains("may not open /dev/nvidiactl"), "{}", denied.obstacle());
    }
}
