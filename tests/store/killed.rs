//! An import that is killed anywhere: what is visible is whole, and the next one finishes.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use hearth::store::{How, Store, verify};

use crate::rig::{Rig, tar_of_checkpoint};

/// Points at which it is killed; `.ci/full` asks for more.
fn points() -> usize {
    std::env::var("HEARTH_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(4)
}

/// A number below `limit`.
fn random(limit: usize) -> usize {
    (getrandom::u64().unwrap() % limit as u64) as usize
}

/// After a kill: nothing is half there, and what is there is whole.
fn sound(rig: &Rig) {
    let store = Store::at(rig.models());
    for name in store.names().unwrap() {
        assert_eq!(
            verify(&store, &name, How::Full, &mut ()).unwrap().wrong,
            [],
            "{name} is visible and not whole"
        );
    }
}

#[test]
fn an_import_killed_in_the_middle_of_its_archive_goes_on_the_next_time() {
    let archive = tar_of_checkpoint("m");
    let rig = Rig::new();
    let arguments = ["models", "import", "-", "--name", "m", "--accept-license"];
    let mut half = 0;
    for _ in 0..points() {
        let cut = random(archive.len());
        let mut command = rig.command(&arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // What it has not read yet lies in the pipe: it is killed somewhere in the last of it.
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&archive[..cut]).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        drop(stdin);
        sound(&rig);
        assert!(!rig.models().join("m").exists(), "it appeared after {cut} of {} bytes", archive.len());
        half += usize::from(rig.run(&["models", "list"]).said.contains("m: an import was cut off after"));
    }
    assert!(half > 0, "every kill came before the import began");
    rig.feed(&arguments, &archive).well();
    rig.run(&["models", "verify", "m"]).well();
    rig.run(&["models", "remove", "m"]).well();
    assert_eq!(rig.stored(), [] as [String; 0]);
}

#[test]
fn an_import_killed_at_any_moment_goes_on_the_next_time() {
    let rig = Rig::new();
    let from = rig.checkpoint("m");
    let arguments = ["models", "import", &from, "--accept-license"];
    // How long a whole one takes here.
    let begin = std::time::Instant::now();
    rig.run(&arguments).well();
    let whole = begin.elapsed();
    rig.run(&["models", "remove", "m"]).well();
    let (mut before, mut after) = (0, 0);
    for _ in 0..points() {
        let mut command = rig.command(&arguments);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(random(1000) as f64 / 1000.0) + Duration::from_millis(1));
        child.kill().unwrap();
        child.wait().unwrap();
        sound(&rig);
        match rig.models().join("m/manifest.json").exists() {
            true => after += 1,
            false => before += 1,
        }
        if random(2) == 0 {
            rig.run(&arguments).well();
            rig.run(&["models", "verify", "m"]).well();
            rig.run(&["models", "remove", "m"]).well();
            assert_eq!(rig.stored(), [] as [String; 0]);
        }
    }
    eprintln!("killed {before} times before the model appeared, {after} times after");
    rig.run(&arguments).well();
    rig.run(&["models", "verify", "m"]).well();
}

#[test]
fn what_was_copied_before_a_kill_is_not_copied_again() {
    let rig = Rig::new();
    let from = rig.checkpoint("m");
    rig.import(&from, &[]).well();
    // As if it had been killed right before the end: everything is copied and nothing is published.
    let store = rig.models();
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(store.join("m/manifest.json")).unwrap()).unwrap();
    fs::create_dir(store.join(".m.import")).unwrap();
    let mut journal = String::new();
    for file in manifest["files"].as_array().unwrap() {
        use std::os::unix::fs::MetadataExt;
        let of = fs::metadata(rig.path("m").join(file["name"].as_str().unwrap())).unwrap();
        let stamp = format!("{}:{}:{}:{}.{:09}", of.dev(), of.ino(), of.len(), of.mtime(), of.mtime_nsec());
        journal += &format!("{}\n", serde_json::json!({"file": file, "stamp": stamp}));
    }
    journal += "{\"half a li";
    fs::write(store.join(".m.import/journal"), journal).unwrap();
    fs::rename(store.join("m"), rig.path("away")).unwrap();
    let inode = |sum: &serde_json::Value| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(store.join("blobs/sha256").join(sum.as_str().unwrap())).unwrap().ino()
    };
    let before: Vec<u64> =
        manifest["files"].as_array().unwrap().iter().map(|f| inode(&f["sha256"])).collect();
    // One of them was written to since.
    fs::write(rig.path("m/LICENSE"), "another\n").unwrap();
    rig.import(&from, &[]).well();
    for (file, before) in manifest["files"].as_array().unwrap().iter().zip(before) {
        if file["name"] == "LICENSE" {
            let licence = fs::read_to_string(store.join("m/LICENSE")).unwrap();
            assert_eq!(licence, "another\n");
        } else {
            assert_eq!(inode(&file["sha256"]), before, "{} was written anew", file["name"]);
        }
    }
    rig.run(&["models", "verify", "m"]).well();
}
