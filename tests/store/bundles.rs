//! Bundles: made on one side, carried, checked and taken in on the other.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use crate::rig::{Rig, tar};

/// The members of a bundle.
type Members = Vec<(String, Vec<u8>)>;

/// A side that makes bundles: a model, a release, a pair of keys.
fn maker() -> Rig {
    let rig = Rig::new();
    rig.import(&rig.checkpoint("code"), &[]).well();
    fs::create_dir(rig.path("release")).unwrap();
    for (name, text) in [("hearth_1_amd64.deb", "package"), ("NOTICE", "licences"), ("sbom.cdx.json", "{}")] {
        fs::write(rig.path("release").join(name), text).unwrap();
    }
    rig.run(&["bundle", "key", &at(&rig, "site")]).well();
    rig
}

fn at(rig: &Rig, name: &str) -> String {
    rig.path(name).display().to_string()
}

/// Makes one; the arguments after the usual ones.
fn make(rig: &Rig, output: &str, more: &[&str]) -> String {
    let (output, release, key) = (at(rig, output), at(rig, "release"), at(rig, "site.key"));
    let usual = ["bundle", "create", "-o", &output, "--model", "code", "--with", &release, "--sign", &key];
    rig.run(&[&usual[..], more].concat()).well();
    output
}

#[test]
fn a_bundle_is_made_carried_checked_and_taken_in() {
    let rig = maker();
    let bundle = make(&rig, "hearth.bundle", &[]);
    let key = at(&rig, "site.pub");
    assert!(fs::metadata(rig.path("site.key")).unwrap().permissions().mode_is(0o600));
    let shown = rig.run(&["bundle", "verify", &bundle, "--key", &key]).well();
    for words in ["every sum agrees", "file\thearth_1_amd64.deb", "model\tcode\t7.9 MiB\tmit", "site.pub"] {
        assert!(shown.contains(words), "no {words:?} in\n{shown}");
    }

    // A host without Hearth.
    let script =
        "mkdir plain && tar -xf hearth.bundle -C plain && cd plain && sha256sum --check --quiet MANIFEST";
    assert!(Command::new("sh").args(["-c", script]).current_dir(rig.dir.path()).status().unwrap().success());

    let other = Rig::new();
    let install = ["bundle", "install", &bundle, "--key", &key];
    let said = other.run(&install).failed(1, &["licence of the models", "--accept-license"]);
    assert!(said.contains("model code: 7.9 MiB, licence mit"), "{said}");
    assert_eq!(other.stored(), [] as [String; 0]);
    let files = at(&other, "files");
    let all = [&install[..], &["--accept-license", "--files", &files]].concat();
    assert!(other.run(&all).well().starts_with("code\t7.9 MiB\tsha256:"));
    assert_eq!(fs::read_to_string(other.path("files/hearth_1_amd64.deb")).unwrap(), "package");
    let taken: Vec<_> = fs::read_dir(&files).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(taken.len(), 3, "{taken:?}");
    other.run(&["models", "verify", "code"]).well();
    other.run(&["complete", "--model", "code", "--max-tokens", "1", "x"]).well();
    let audited = other.audited();
    assert!(audited.contains("bundle_installed") && audited.contains("model_imported"), "{audited}");
    // Once more changes nothing.
    assert!(other.run(&all).said.contains("code was there already, unchanged"));
}

#[test]
fn whose_bundle_it_is_matters() {
    let rig = maker();
    let bundle = make(&rig, "signed", &[]);
    let key = at(&rig, "site.pub");
    rig.run(&["bundle", "key", &at(&rig, "stranger")]).well();
    rig.run(&["bundle", "key", &at(&rig, "stranger")]).failed(1, &["stranger.key"]);
    rig.run(&["bundle", "verify", &bundle, "--key", &at(&rig, "stranger.pub")])
        .failed(4, &["it is signed with another key", "ask whoever made the bundle"]);
    rig.run(&["bundle", "verify", &bundle, "--key", &at(&rig, "site.key")])
        .failed(1, &["no public key of minisign"]);
    rig.run(&["bundle", "verify", &bundle, "--unsigned"]).well();
    if !Path::new("/etc/hearth/bundle.pub").exists() && !Path::new("/usr/share/hearth/bundle.pub").exists() {
        rig.run(&["bundle", "verify", &bundle]).failed(4, &["there is none to check its signature with"]);
    }
    let plain = at(&rig, "plain");
    rig.run(&["bundle", "create", "-o", &plain, "--model", "code"])
        .code
        .filter(|code| *code == 2)
        .expect("--sign is asked for");
    rig.run(&["bundle", "create", "-o", &plain, "--model", "code", "--unsigned"]).well();
    rig.run(&["bundle", "verify", &plain, "--key", &key]).failed(4, &["it is not signed"]);
    rig.run(&["bundle", "verify", &plain, "--unsigned"]).well();

    // A key with a password.
    let mut command = rig.command(&["bundle", "key", &at(&rig, "closed")]);
    assert!(command.env("HEARTH_SIGNING_PASSWORD", "correct horse").status().unwrap().success());
    let closed = at(&rig, "closed.key");
    let arguments = ["bundle", "create", "-o", &at(&rig, "second"), "--model", "code", "--sign", &closed];
    rig.run(&arguments).failed(1, &["it has a password: set HEARTH_SIGNING_PASSWORD"]);
    for (password, good) in [("wrong", false), ("correct horse", true)] {
        let done = rig.command(&arguments).env("HEARTH_SIGNING_PASSWORD", password).output().unwrap();
        assert_eq!(done.status.success(), good, "{}", String::from_utf8_lossy(&done.stderr));
    }
    rig.run(&["bundle", "verify", &at(&rig, "second"), "--key", &at(&rig, "closed.pub")]).well();
}

fn members(path: &str) -> Members {
    let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
    let member = |entry: std::io::Result<tar::Entry<'_, fs::File>>| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (name, bytes)
    };
    archive.entries().unwrap().map(member).collect()
}

#[test]
fn a_bundle_that_was_changed_is_refused_and_nothing_of_it_stays() {
    let rig = maker();
    let bundle = make(&rig, "good", &[]);
    let key = at(&rig, "site.pub");
    let good = members(&bundle);
    let mut changed = Vec::new();
    for (i, (name, bytes)) in good.iter().enumerate() {
        for at in [0, bytes.len() / 2, bytes.len() - 1] {
            let mut copy = good.clone();
            copy[i].1[at] ^= 4;
            // What minisign's format leaves open is the comment that nobody believes.
            if name != "MANIFEST.minisig" || at > 0 {
                changed.push((format!("byte {at} of {name}"), copy));
            }
        }
        let mut copy = good.clone();
        copy.remove(i);
        changed.push((format!("without {name}"), copy));
    }
    let mut more = good.clone();
    more.push(("evil.deb".to_owned(), b"x".to_vec()));
    changed.push(("with one more".to_owned(), more));
    let mut more = good.clone();
    more.push(("models/code/pickle.bin".to_owned(), b"x".to_vec()));
    changed.push(("with one more in a model".to_owned(), more));
    let mut order = good.clone();
    order.swap(0, 1);
    changed.push(("the signature first".to_owned(), order));
    let mut order = good.clone();
    order.swap(2, 3);
    changed.push(("a file before what is in it".to_owned(), order));

    let count = changed.len();
    for (what, members) in changed {
        let entries: Vec<(&str, &[u8])> = members.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
        let path = at(&rig, "changed");
        fs::write(&path, tar(&entries)).unwrap();
        let ran = rig.run(&["bundle", "verify", &path, "--key", &key]);
        assert_eq!(ran.code, Some(4), "{what}: {}{}", ran.out, ran.said);
    }
    eprintln!("{count} changed bundles refused");

    // Installing stops where verifying does. A model that was whole before the damage is whole; one with it never appears.
    let other = Rig::new();
    let last = good.iter().position(|(name, _)| name == "models/code/model.safetensors").unwrap();
    let mut copy = good.clone();
    copy[last].1[4_000_000] ^= 4;
    let entries: Vec<(&str, &[u8])> = copy.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    let path = at(&rig, "changed");
    fs::write(&path, tar(&entries)).unwrap();
    let files = at(&other, "files");
    other
        .run(&["bundle", "install", &path, "--key", &key, "--accept-license", "--files", &files])
        .failed(4, &["models/code/model.safetensors is not what its sum says"]);
    assert_eq!(other.stored(), [] as [String; 0]);
}

#[test]
fn a_bundle_in_parts_is_one_bundle() {
    let rig = maker();
    make(&rig, "big", &["--parts", "3MiB"]);
    let key = at(&rig, "site.pub");
    let count = fs::read_dir(rig.dir.path())
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("big.0"))
        .count();
    assert_eq!(count, 3);
    assert!(!rig.path("big").exists());
    for name in ["big.000", "big"] {
        rig.run(&["bundle", "verify", &at(&rig, name), "--key", &key]).well();
    }
    let sums = Command::new("sha256sum")
        .args(["--check", "--quiet", "big.sha256"])
        .current_dir(rig.dir.path())
        .status();
    assert!(sums.unwrap().success());
    let other = Rig::new();
    other.run(&["bundle", "install", &at(&rig, "big.000"), "--key", &key, "--accept-license"]).well();
    fs::remove_file(rig.path("big.002")).unwrap();
    rig.run(&["bundle", "verify", &at(&rig, "big"), "--key", &key]).failed(4, &["in the middle of a file"]);
    fs::remove_file(rig.path("big.000")).unwrap();
    rig.run(&["bundle", "verify", &at(&rig, "big"), "--key", &key]).failed(1, &["it cannot be opened"]);
    let (output, key) = (at(&rig, "x"), at(&rig, "site.key"));
    rig.run(&["bundle", "create", "-o", &output, "--sign", &key, "--model", "code", "--parts", "1"])
        .failed(2, &["--parts"]);
}

/// As if an install of what is at `bundle` had been killed right before its end: everything is copied, nothing published.
fn cut_off(rig: &Rig, bundle: &str) {
    let store = rig.models();
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(store.join("code/manifest.json")).unwrap()).unwrap();
    fs::create_dir(store.join(".code.import")).unwrap();
    let mut journal = String::new();
    for file in manifest["files"].as_array().unwrap() {
        let name = format!("models/code/{}", file["name"].as_str().unwrap());
        let stamp = format!("{bundle}@{}", offset(bundle, &name));
        journal += &format!("{}\n", serde_json::json!({"file": file, "stamp": stamp}));
    }
    fs::write(store.join(".code.import/journal"), journal).unwrap();
    fs::remove_dir_all(store.join("code")).unwrap();
}

fn offset(bundle: &str, name: &str) -> u64 {
    let mut archive = tar::Archive::new(fs::File::open(bundle).unwrap());
    let mut entries = archive.entries().unwrap().flatten();
    entries.find(|entry| entry.path().unwrap().to_str() == Some(name)).unwrap().raw_file_position()
}

#[test]
fn an_install_that_was_cut_off_goes_on_with_its_own_bundle_and_not_with_another_of_that_name() {
    use std::os::unix::fs::MetadataExt;
    let rig = maker();
    let bundle = make(&rig, "hearth.bundle", &[]);
    let key = at(&rig, "site.pub");
    let other = Rig::new();
    let install = |bundle: &str| other.run(&["bundle", "install", bundle, "--key", &key, "--accept-license"]);
    install(&bundle).well();
    let weights = || fs::metadata(other.models().join("code/model.safetensors")).unwrap().ino();
    let before = weights();
    cut_off(&other, &bundle);
    let moved = at(&rig, "moved.bundle");
    fs::rename(&bundle, &moved).unwrap();
    install(&moved).well();
    assert_eq!(weights(), before, "what was copied is not copied again, wherever the bundle is now");

    // Another bundle takes the place of the first: each file is where it was and as long, one has other bytes.
    let text = fs::read_to_string(rig.path("code/LICENSE")).unwrap().replacen("Permission", "PERMISSION", 1);
    let second = Rig::new();
    let from = second.checkpoint("code");
    fs::write(second.path("code/LICENSE"), &text).unwrap();
    second.import(&from, &[]).well();
    let (release, private) = (at(&rig, "release"), at(&rig, "site.key"));
    let create =
        ["bundle", "create", "-o", &bundle, "--model", "code", "--with", &release, "--sign", &private];
    second.run(&create).well();
    let licence = "models/code/LICENSE";
    assert_eq!(offset(&bundle, licence), offset(&moved, licence), "or the test says nothing");
    fs::rename(&bundle, at(&rig, "second")).unwrap();
    fs::rename(&moved, &bundle).unwrap();
    cut_off(&other, &bundle);
    fs::rename(at(&rig, "second"), &bundle).unwrap();
    install(&bundle).well();
    assert_eq!(fs::read_to_string(other.models().join("code/LICENSE")).unwrap(), text);
    other.run(&["models", "verify", "code"]).well();
}

trait Mode {
    fn mode_is(&self, mode: u32) -> bool;
}

impl Mode for fs::Permissions {
    fn mode_is(&self, mode: u32) -> bool {
        std::os::unix::fs::PermissionsExt::mode(self) & 0o777 == mode
    }
}
