//! Disks that are full, out of inodes or read-only, in a namespace of their own. Where a host forbids those (unshare), a
//! line says so and nothing is tested.

use std::process::Command;

use crate::rig::{Ran, Rig};

/// Runs a script as root of its own namespaces, with a fresh tmpfs at `$D` made with these options, and `hearth` at `$H`.
/// `None`: not possible here.
fn on_tmpfs(rig: &Rig, options: &str, script: &str) -> Option<Ran> {
    let disk = rig.path("disk");
    std::fs::create_dir_all(&disk).unwrap();
    let all = format!("mount -t tmpfs -o {options} none \"$D\" || exit 99\n{script}");
    let ran = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &all])
        .env("D", &disk)
        .env("H", env!("CARGO_BIN_EXE_hearth"))
        .env("M", rig.checkpoint("m"))
        .env("HEARTH__SERVER__STATE_DIR", rig.path("state"))
        .env("HEARTH__MODELS__DIR", disk.join("models"))
        .output();
    let ran = ran.ok().map(Ran::of).filter(|ran| ran.code != Some(99) && !ran.said.starts_with("unshare:"));
    if ran.is_none() {
        eprintln!("skipped: this host does not allow a namespace with a tmpfs");
    }
    ran
}

#[test]
fn a_full_disk_is_told_with_its_numbers_before_anything_is_copied() {
    let rig = Rig::new();
    let script = "$H models import $M --accept-license; C=$?; find $D -type f ! -name .lock; exit $C";
    let Some(ran) = on_tmpfs(&rig, "size=16m", script) else { return };
    assert_eq!(ran.out, "", "nothing was written");
    ran.failed(1, &["are needed and 16.0 MiB are free", "hearth models remove"]);
}

#[test]
fn a_disk_that_runs_full_in_the_middle_leaves_what_can_be_taken_up() {
    let rig = Rig::new();
    // Room for the bytes and not for the names.
    let script = "$H models import $M --accept-license; C=$?; $H models list >&2
        mount -o remount,nr_inodes=100 \"$D\" && $H models import $M --accept-license && $H models verify; exit $C";
    let Some(ran) = on_tmpfs(&rig, "size=200m,nr_inodes=9", script) else { return };
    assert!(ran.out.contains("m\tok\t6 files"), "{}{}", ran.out, ran.said);
    assert!(ran.said.contains("m: an import was cut off after"), "{}", ran.said);
    ran.failed(1, &["No space left on device", "is used when the import runs again"]);
}

#[test]
fn a_read_only_store_is_looked_at_and_not_changed() {
    let rig = Rig::new();
    let script = "$H models import $M --accept-license && mount -o remount,ro \"$D\" && $H models verify && $H models list >/dev/null
        $H models import $M --name n --accept-license; echo $?
        $H models remove m; echo $?";
    let Some(ran) = on_tmpfs(&rig, "size=200m", script) else { return };
    assert_eq!(ran.said.matches("it is read-only").count(), 2, "{}", ran.said);
    assert!(ran.out.contains("m\tok\t6 files") && ran.out.ends_with("1\n1\n"), "{}{}", ran.out, ran.said);
}

#[test]
fn without_an_audit_log_nothing_changes() {
    let rig = Rig::new();
    // The log is on the disk without room; the models are elsewhere.
    let script = "export HEARTH__MODELS__DIR=$D/../models HEARTH__SERVER__STATE_DIR=$D
        head -c 1m /dev/zero > $D/full 2>/dev/null
        $H models import $M --accept-license; C=$?; $H models list; exit $C";
    let Some(ran) = on_tmpfs(&rig, "size=64k", script) else { return };
    assert!(!ran.out.contains("m\timported"), "{}", ran.out);
    ran.failed(1, &["the audit log", "nothing was changed"]);
}
