//! One bit that changes on the disk is found, wherever it is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hearth::store::{How, Store, verify};

use crate::rig::Rig;

/// Changes a bit of a file, and says how to change it back.
fn flip(path: &Path, at: usize, bit: u8) {
    let path = fs::canonicalize(path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[at] ^= 1 << bit;
    fs::write(&path, bytes).unwrap();
}

#[test]
fn a_flipped_bit_in_any_region_is_found_and_named() {
    let rig = Rig::new();
    rig.import(&rig.checkpoint("m"), &[]).well();
    let (store, directory) = (Store::at(rig.models()), rig.models().join("m"));
    let length = |name: &str| fs::metadata(directory.join(name)).unwrap().len() as usize;
    let mut regions = Vec::new();
    for name in
        ["LICENSE", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    {
        regions.extend([(name, 0), (name, length(name) / 2), (name, length(name) - 1)]);
    }
    let weights = "model.safetensors";
    // The length of the header, the header, the first tensor, the middle, the last byte.
    regions.extend([0, 7, 8, 200, 20_000, length(weights) / 2, length(weights) - 1].map(|at| (weights, at)));
    for name in ["manifest.json", "MANIFEST"] {
        regions.extend((0..16).map(|i| (name, i * (length(name) - 1) / 15)));
    }
    let count = regions.len();
    for (name, at) in regions {
        flip(&directory.join(name), at, 3);
        let found = match verify(&store, "m", How::Full, &mut ()) {
            Ok(report) => format!("{:?}", report.wrong),
            Err(error) => error.to_string(),
        };
        let manifest = name.to_lowercase().starts_with("manifest");
        let named = if manifest { found.to_lowercase().contains("manifest") } else { found.contains(name) };
        assert!(named, "a bit of byte {at} of {name}: {found}");
        flip(&directory.join(name), at, 3);
        assert_eq!(verify(&store, "m", How::Full, &mut ()).unwrap().wrong, []);
    }
    eprintln!("{count} flipped bits found");
}

#[test]
fn a_file_that_is_missing_cut_or_strange_is_found() {
    let rig = Rig::new();
    rig.import(&rig.checkpoint("m"), &[]).well();
    rig.import(&rig.path("m").display().to_string(), &["--name", "n"]).well();
    let directory = rig.models().join("m");
    fs::write(directory.join("chat_template.jinja"), "{{ 1 }}").unwrap();
    rig.run(&["models", "verify", "m"]).failed(4, &["1 of 1 models are damaged: m"]);
    fs::remove_file(directory.join("chat_template.jinja")).unwrap();

    let weights = fs::canonicalize(directory.join("model.safetensors")).unwrap();
    let bytes = fs::read(&weights).unwrap();
    fs::remove_file(&weights).unwrap();
    let ran = rig.run(&["models", "verify", "--json"]);
    assert!(
        ran.out.contains("\"reason\":\"is missing\"") && ran.out.contains("\"name\":\"n\""),
        "{}",
        ran.out
    );
    ran.failed(4, &["2 of 2 models are damaged: m, n"]);
    fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    let ran = rig.run(&["models", "verify", "--sample", "n"]);
    assert!(
        ran.out.contains(&format!("has {} bytes; {} were imported", bytes.len() - 1, bytes.len())),
        "{}",
        ran.out
    );
    ran.failed(4, &["import them again with --replace"]);
    // One that cannot be read at all is in nobody's way, keeps its bytes, and can still be removed.
    fs::remove_file(directory.join("manifest.json")).unwrap();
    fs::write(directory.join("manifest.json"), "{").unwrap();
    assert!(
        rig.run(&["models", "list"]).well().contains("m\tthe files of m are not those that were imported")
    );
    rig.import(&rig.path("m").display().to_string(), &["--name", "n", "--replace"]).well();
    rig.import(&rig.path("m").display().to_string(), &["--name", "o"]).well();
    rig.run(&["models", "remove", "n"]).well();
    rig.run(&["models", "remove", "o"]).well();
    assert!(directory.join("config.json").exists());
    rig.run(&["models", "remove", "m"]).well();
    assert_eq!(rig.stored(), [] as [String; 0]);
}
