//! Checkpoints come in, are known, are served, go out and go.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use serde_json::Value;

use crate::rig::{LICENCE, Rig, tar_of_checkpoint, zst};

#[test]
fn a_directory_comes_in_is_known_answers_and_goes() {
    let rig = Rig::new();
    let from = rig.checkpoint("Some-Model-v1");
    // Without the licence accepted it is shown, and nothing is copied.
    let said = rig.run(&["models", "import", &from]).failed(1, &["was not accepted", "--accept-license"]);
    assert!(
        said.contains("licence: mit, in LICENSE") && said.contains("| Permission is hereby granted"),
        "{said}"
    );
    assert!(!rig.models().exists());

    let line = rig.import(&from, &["--name", "some-model"]).well();
    assert!(line.starts_with("some-model\t") && line.contains("\t6 files\tsha256:"), "{line}");
    let directory = rig.models().join("some-model");
    // In place for whoever serves it, also when that is another user.
    for (path, mode) in [("", 0o755), ("config.json", 0o444), ("manifest.json", 0o444)] {
        let found = fs::metadata(directory.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{path}");
    }
    // Anybody can check it with coreutils.
    let mut sums = Command::new("sha256sum");
    sums.args(["--check", "--quiet", "MANIFEST"]).current_dir(&directory);
    assert!(sums.status().unwrap().success());

    let listed = rig.run(&["models", "list"]).well();
    assert!(listed.starts_with("some-model\timported, not configured: 7.9 MiB"), "{listed}");
    assert!(listed.contains(", mit\tmistral"), "{listed}");
    let shown = rig.run(&["models", "inspect", "some-model"]).well();
    for words in ["Some-Model-v1", "mit; accepted by user ", "sha256:", "MistralForCausalLM"] {
        assert!(shown.contains(words), "no {words:?} in\n{shown}");
    }
    let json: Value =
        serde_json::from_str(&rig.run(&["models", "inspect", "--json", "some-model"]).well()).unwrap();
    assert_eq!(json["imported"]["licence"]["production"], true);
    assert_eq!(json["imported"]["files"].as_array().unwrap().len(), 6);
    assert!(rig.run(&["models", "verify"]).well().starts_with("some-model\tok\t6 files\t7.9 MiB"));

    let answered = rig.run(&["complete", "--model", "some-model", "--max-tokens", "2", "def add("]);
    assert!(answered.said.contains("compared with the sums of its import"), "{}", answered.said);
    answered.well();

    let audited = rig.audited();
    assert!(audited.contains("\"model_imported\"") && audited.contains("\"some-model\""), "{audited}");
    rig.run(&["models", "remove", "some-model"]).well();
    assert_eq!(rig.stored(), [] as [String; 0]);
    assert!(rig.audited().contains("\"model_removed\""));
    rig.run(&["models", "remove", "some-model"]).failed(4, &["no imported model some-model", "import one"]);
}

#[test]
fn the_settings_find_an_imported_model_by_its_name_and_protect_it() {
    let rig = Rig::new();
    rig.import(&rig.checkpoint("code"), &[]).well();
    let file = rig.path("hearth.toml");
    fs::write(&file, "[[model]]\nname = \"code\"\n\n[[model]]\nname = \"second\"\npath = \"code\"\n")
        .unwrap();
    let config = file.display().to_string();
    let shown = rig.run(&["config", "show", "--config", &config]).well();
    let path = format!("path = {:?}", rig.models().join("code").display().to_string());
    assert_eq!(shown.matches(&path).count(), 2, "{shown}");
    rig.run(&["models", "remove", "code", "--config", &config])
        .failed(1, &["code is a configured model", "hearth.toml", "--force"]);
    rig.run(&["complete", "--config", &config, "--max-tokens", "1", "x"]).well();

    // The same disk, one bit later: not served, unless that was asked for.
    let weights = fs::canonicalize(rig.models().join("code/model.safetensors")).unwrap();
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::set_permissions(&weights, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&weights, bytes).unwrap();
    rig.run(&["complete", "--config", &config, "--max-tokens", "1", "x"])
        .failed(4, &["the files of code are not those that were imported", "model.safetensors", "--replace"]);
    fs::write(&file, "[models]\nverify = \"off\"\n[[model]]\nname = \"code\"\n").unwrap();
    rig.run(&["complete", "--config", &config, "--max-tokens", "1", "x"]).well();
    // Importing it again mends it.
    rig.import(&rig.path("code").display().to_string(), &["--replace"]).well();
    rig.run(&["models", "verify"]).well();
}

#[test]
fn archives_and_pipes_bring_the_same_model_and_an_export_comes_in_again() {
    let rig = Rig::new();
    let digest = |line: String| line.rsplit("sha256:").next().unwrap().trim().to_owned();
    let of_directory = digest(rig.import(&rig.checkpoint("a"), &[]).well());
    for (name, directory, packed) in
        [("b.tar", "b", false), ("c.tar.zst", "whatever", true), ("d.tar", "", false)]
    {
        let bytes = tar_of_checkpoint(directory);
        fs::write(rig.path(name), if packed { zst(&bytes) } else { bytes }).unwrap();
        let line = rig.import(&rig.path(name).display().to_string(), &[]).well();
        assert!(line.starts_with(&format!("{}\t", &name[..1])), "{line}");
        assert_eq!(digest(line), of_directory, "{name}");
    }
    let arguments = ["models", "import", "-", "--name", "e", "--accept-license", "--json"];
    let told = rig.feed(&arguments, &zst(&tar_of_checkpoint("x"))).well();
    let last: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["event"], &last["digest"]),
        (&"imported".into(), &format!("sha256:{of_directory}").into())
    );
    rig.feed(&["models", "import", "-", "--accept-license"], b"").failed(2, &["--name"]);

    // One copy of the bytes, whatever the number of models.
    let blobs = rig.stored().iter().filter(|name| name.starts_with("blobs/")).count();
    assert_eq!(blobs, 6);

    for output in ["out.tar", "out.tar.zst"] {
        let output = rig.path(output).display().to_string();
        rig.run(&["models", "export", "a", "--output", &output]).well();
        rig.run(&["models", "export", "a", "--output", &output]).failed(1, &["it is there already"]);
        let line = rig.import(&output, &["--name", "again", "--replace"]).well();
        assert_eq!(digest(line), of_directory);
    }
    // By plain tar and coreutils, too.
    let script =
        "mkdir plain && tar -xf out.tar -C plain && cd plain/a && sha256sum --check --quiet MANIFEST";
    assert!(Command::new("sh").args(["-c", script]).current_dir(rig.dir.path()).status().unwrap().success());
}

#[test]
fn a_name_that_is_taken_stays_with_its_model_until_it_is_replaced() {
    let rig = Rig::new();
    let from = rig.checkpoint("m");
    rig.import(&from, &[]).well();
    let before = fs::read(rig.models().join("m/manifest.json")).unwrap();
    let again = rig.import(&from, &[]);
    assert!(again.said.contains("was there already, unchanged"), "{}", again.said);
    again.well();
    assert_eq!(fs::read(rig.models().join("m/manifest.json")).unwrap(), before);

    fs::write(rig.path("m/LICENSE"), format!("{LICENCE}\nwith an end")).unwrap();
    rig.import(&from, &[]).failed(1, &["a model named m was imported before, with other files", "--replace"]);
    assert_eq!(fs::read(rig.models().join("m/manifest.json")).unwrap(), before);
    rig.import(&from, &["--replace"]).well();
    assert!(fs::read_to_string(rig.models().join("m/LICENSE")).unwrap().ends_with("with an end"));
    rig.run(&["models", "verify", "m"]).well();
    let blobs = rig.stored().iter().filter(|name| name.starts_with("blobs/")).count();
    assert_eq!(blobs, 6, "the bytes of the licence before are gone");
}

#[test]
fn the_hubs_cache_is_a_source_and_tells_name_and_revision() {
    let rig = Rig::new();
    let from = rig.checkpoint("cache/models--someone--Fine-Model/blobs");
    let revision = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = rig.path("cache/models--someone--Fine-Model/snapshots").join(revision);
    fs::create_dir_all(&snapshot).unwrap();
    for entry in fs::read_dir(&from).unwrap().flatten() {
        let name = entry.file_name();
        symlink(std::path::Path::new("../../blobs").join(&name), snapshot.join(&name)).unwrap();
    }
    let line = rig.import(&snapshot.display().to_string(), &[]).well();
    assert!(line.starts_with("Fine-Model\t"), "{line}");
    let json: Value =
        serde_json::from_str(&rig.run(&["models", "inspect", "--json", "Fine-Model"]).well()).unwrap();
    assert_eq!(json["imported"]["revision"], revision);
}

#[test]
fn two_at_once_do_not_meet() {
    let rig = Rig::new();
    let from = rig.checkpoint("m");
    rig.import(&from, &[]).well();
    let held = fs::File::open(rig.models().join(".lock")).unwrap();
    held.lock().unwrap();
    rig.import(&from, &["--name", "n"]).failed(75, &["at work in", "try again"]);
    rig.run(&["models", "verify"]).failed(75, &["at work in"]);
    rig.run(&["models", "remove", "m"]).failed(75, &["at work in"]);
    drop(held);
    // Looking does not keep others from looking.
    let held = fs::File::open(rig.models().join(".lock")).unwrap();
    held.lock_shared().unwrap();
    rig.run(&["models", "verify"]).well();
}

#[test]
fn a_licence_that_forbids_production_is_said_wherever_the_model_is_named() {
    let rig = Rig::new();
    let from = rig.checkpoint("m");
    fs::write(rig.path("m/LICENSE"), "Mistral AI Non-Production License\n").unwrap();
    let said = rig.run(&["models", "import", &from]).failed(1, &["NOT FOR PRODUCTION"]);
    assert!(said.contains("MNPL-0.1"), "{said}");
    rig.import(&from, &[]).well();
    assert!(rig.run(&["models", "list"]).well().contains("MNPL-0.1, NOT for production"));
    assert!(
        rig.run(&["models", "inspect", "m"]).well().contains("MNPL-0.1, NOT for production; accepted by")
    );
    let all = rig.run(&["models", "catalog"]).well();
    assert!(
        all.contains("codestral-22b\tmistralai/Codestral-22B-v0.1\t41.4 GiB\tMNPL-0.1, NOT for production"),
        "{all}"
    );
    assert!(
        rig.run(&["models", "catalog", "codestral-22b"]).well().contains("2 x NVIDIA A100 80 GB, 110 GB")
    );
    rig.run(&["models", "catalog", "codestrl-22b"]).failed(4, &["did you mean codestral-22b?"]);
}

#[test]
fn the_doctor_says_where_a_model_comes_from_and_whether_it_may_be_used_for_work() {
    let rig = Rig::new();
    let from = rig.checkpoint("m");
    fs::write(rig.path("m/LICENSE"), "Mistral AI Non-Production License\n").unwrap();
    rig.import(&from, &[]).well();
    let file = rig.path("hearth.toml");
    let config = file.display().to_string();
    let said = |settings: &str| {
        fs::write(&file, settings).unwrap();
        // Nothing runs here, which the doctor finds too.
        String::from_utf8(rig.command(&["doctor", "--config", &config]).output().unwrap().stdout).unwrap()
    };
    let line = |said: &str, check: &str| {
        let found = said.lines().find(|line| line.starts_with(check));
        found.unwrap_or_else(|| panic!("no {check} in {said}")).to_owned()
    };
    let imported = said("[[model]]\nname = \"m\"\n");
    let origin = line(&imported, "origin");
    assert!(origin.contains(" ok ") && origin.contains("a sample compared with its sums"), "{origin}");
    let licence = line(&imported, "licence");
    assert!(
        licence.contains(" warn ") && licence.contains("MNPL-0.1, does not allow production"),
        "{licence}"
    );
    let unseen = said("[models]\nverify = \"off\"\n[[model]]\nname = \"m\"\n");
    let origin = line(&unseen, "origin");
    assert!(origin.contains(" note ") && origin.contains("never compared"), "{origin}");
    assert!(unseen.contains("fix: `hearth models verify m`"), "{unseen}");
    let loose = said(&format!("[[model]]\nname = \"m\"\npath = {from:?}\n"));
    assert!(line(&loose, "origin").contains("m: not imported: there are no sums"), "{loose}");
    assert!(line(&loose, "licence").contains(" warn "), "{loose}");
}

#[test]
fn what_a_model_needs_stays_when_that_cannot_be_read() {
    let rig = Rig::new();
    let from = rig.checkpoint("m");
    for name in ["a", "b"] {
        rig.import(&from, &["--name", name]).well();
    }
    // Root reads every directory; what nobody reads is a link to itself.
    let (a, away) = (rig.models().join("a"), rig.path("away"));
    fs::rename(&a, &away).unwrap();
    symlink("a", &a).unwrap();
    rig.run(&["models", "remove", "b"]).failed(1, &["/a", "what it needs cannot be read"]);
    rig.import(&from, &["--name", "c"]).well();
    fs::remove_file(&a).unwrap();
    fs::rename(&away, &a).unwrap();
    rig.run(&["models", "verify", "a"]).well();
    rig.run(&["models", "remove", "a"]).well();
    rig.run(&["models", "verify", "c"]).well();
    rig.run(&["models", "remove", "c"]).well();
    assert_eq!(rig.stored(), [] as [String; 0]);
}
