//! Archives that were made to do harm: each is refused in words, and nothing of it stays.

use std::fs;

use tar::{Builder, EntryType};

use crate::rig::{Rig, append, tar, tar_of_checkpoint, zst};

/// An archive of the checkpoint with one more entry in front.
fn with(name: &str, kind: EntryType, bytes: &[u8]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    append(&mut archive, name, kind, bytes);
    joined(archive.into_inner().unwrap(), &tar_of_checkpoint("m"))
}

/// Two archives in one: the first one's end is taken away.
fn joined(first: Vec<u8>, second: &[u8]) -> Vec<u8> {
    let end = first.len() - 1024;
    assert!(first[end..].iter().all(|b| *b == 0));
    [&first[..end], second].concat()
}

/// A link, hard or symbolic, under a name of the checkpoint.
fn link(kind: EntryType, target: &str) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(0o644);
    header.set_path("m/NOTICE").unwrap();
    header.set_link_name_literal(target).unwrap();
    header.set_cksum();
    archive.append(&header, std::io::empty()).unwrap();
    joined(archive.into_inner().unwrap(), &tar_of_checkpoint("m"))
}

/// An extended header of POSIX with these records, in front of a file.
fn pax(records: &[(&str, &str)], name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    archive.append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_bytes()))).unwrap();
    append(&mut archive, name, EntryType::Regular, bytes);
    joined(archive.into_inner().unwrap(), &tar_of_checkpoint("m"))
}

/// The size in the header of the first entry, in octal, and its checksum made right again.
fn first_size(mut archive: Vec<u8>, size: &str) -> Vec<u8> {
    archive[124..136].copy_from_slice(format!("{size:0>11}\0").as_bytes());
    archive[148..156].copy_from_slice(b"        ");
    let sum: u32 = archive[..512].iter().map(|b| u32::from(*b)).sum();
    archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive
}

fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = tar_of_checkpoint("m");
    let packed = zst(&good);
    let files = crate::rig::files();
    let twice: Vec<(&str, &[u8])> =
        files.iter().chain(&files[..1]).map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    let many: Vec<String> = (0..10_001).map(|i| format!("m/x{i}")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let long = vec![b'a'; 2 << 20];
    let mut damaged = good.clone();
    damaged[100] ^= 1;
    let mut packed_damaged = packed.clone();
    let middle = packed_damaged.len() / 2;
    packed_damaged[middle] ^= 1;
    // Zeros behind the end of the data, as a copy with holes has them, and the end missing.
    let ends_in_a_file = good[..good.len() - 3_000_000].to_vec();
    vec![
        ("a path upwards", with("../../evil", EntryType::Regular, b"x"), "leads out of the archive"),
        (
            "a path upwards from below",
            with("m/../../evil", EntryType::Regular, b"x"),
            "leads out of the archive",
        ),
        ("an absolute path", with("/etc/cron.d/evil", EntryType::Regular, b"x"), "leads out of the archive"),
        ("backslashes", with("m\\..\\evil", EntryType::Regular, b"x"), "leads out of the archive"),
        ("an end of line in a name", with("m/LICENSE\n", EntryType::Regular, b"x"), "is no name for a file"),
        ("an escape in a name", with("m/\x1b[2J", EntryType::Regular, b"x"), "is no name for a file"),
        ("no name", with("", EntryType::Regular, b"x"), "has no name"),
        ("a dot for a name", with("./", EntryType::Regular, b"x"), "has no name"),
        ("a name twice", tar(&twice), "is in it twice"),
        ("a name twice, spelt differently", joined(tar(&[("./m/./LICENSE", b"x")]), &good), "is in it twice"),
        ("two checkpoints", joined(good.clone(), &tar_of_checkpoint("other")), "files are in two places"),
        ("a symbolic link", link(EntryType::Symlink, "/etc/passwd"), "is a link"),
        ("a link upwards", link(EntryType::Symlink, "../../../etc"), "is a link"),
        ("a hard link", link(EntryType::Link, "/etc/shadow"), "is a link"),
        ("a character device", with("m/NOTICE", EntryType::Char, b""), "is a device"),
        ("a block device", with("m/NOTICE", EntryType::Block, b""), "is a device"),
        ("a pipe", with("m/NOTICE", EntryType::Fifo, b""), "is a pipe"),
        ("a sparse file", with("m/NOTICE", EntryType::GNUSparse, b""), "cannot be read"),
        ("a sparse file of POSIX", pax(&[("GNU.sparse.major", "1")], "m/NOTICE", b"x"), "is a sparse file"),
        (
            "an entry of a kind of its own",
            with("m/NOTICE", EntryType::new(b'Z'), b""),
            "neither a file nor a directory",
        ),
        ("two sizes", pax(&[("size", "5")], "m/NOTICE", b"0123456789"), "has two sizes, 10 and 5"),
        ("a size beyond all", pax(&[("size", "18446744073709551615")], "m/NOTICE", b"x"), ""),
        (
            "a path upwards in an extended header",
            pax(&[("path", "../../evil")], "m/NOTICE", b"x"),
            "leads out",
        ),
        (
            "a size that is none",
            first_size(tar(&[("m/NOTICE", b"x")]), "99999999999"),
            "cannot be read as tar",
        ),
        ("a file that is not there", first_size(tar(&[("m/x", b"x")]), "7777777"), "in the middle of a file"),
        ("a directory with bytes", with("m/", EntryType::Directory, b"x"), "the directory m has 1 bytes"),
        ("a name of two megabytes", with("m/x", EntryType::GNULongName, &long), "too long"),
        ("attributes of two megabytes", with("m/x", EntryType::XHeader, &long), "too long"),
        ("ten thousand files", tar(&many), "more than 10000 entries"),
        ("a damaged header", damaged, "cannot be read as tar"),
        ("an end in the middle of a file", ends_in_a_file, "in the middle of a file"),
        ("no end", good[..good.len() - 1024].to_vec(), "it ends early"),
        ("something behind the end", [good.clone(), vec![7; 600]].concat(), "something follows its end"),
        ("damaged packing", packed_damaged, "cannot be read"),
        ("packing that ends early", packed[..packed.len() - 100].to_vec(), "incomplete frame"),
        ("packing with something behind it", [packed.clone(), b"hello".to_vec()].concat(), "cannot be read"),
        ("gzip", b"\x1f\x8b\x08\x00".to_vec(), "it is gzip"),
        ("zip", b"PK\x03\x04aaaa".to_vec(), "it is zip"),
        ("no archive", vec![b'x'; 2048], "cannot be read as tar"),
        ("nothing", Vec::new(), "it ends early"),
        ("a pickle", with("m/pytorch_model.bin", EntryType::Regular, b"x"), "is a pickle"),
        ("a pickle in a corner", with("m/deep/er/data.pkl", EntryType::Regular, b"x"), "is a pickle"),
        ("a script", with("m/setup.py", EntryType::Regular, b"x"), "is code"),
    ]
}

#[test]
fn every_hostile_archive_is_refused_and_leaves_nothing() {
    let rig = Rig::new();
    let cases = hostile();
    assert!(cases.len() >= 30);
    let mut wrong = Vec::new();
    for (what, bytes, words) in &cases {
        let path = rig.path("x.tar");
        fs::write(&path, bytes).unwrap();
        let ran = rig.import(&path.display().to_string(), &["--name", "m"]);
        let stays = rig.stored();
        if ran.code != Some(4) || !ran.said.contains(words) || !stays.is_empty() {
            wrong.push(format!("{what}: exit {:?}, left {stays:?}: {}{}", ran.code, ran.out, ran.said));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let beside: Vec<_> = fs::read_dir(rig.dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(beside.len(), 2, "beside the archive and the state there is nothing: {beside:?}");
    eprintln!("{} hostile archives", cases.len());
}

/// Ten gigabytes of zeros in less than a megabyte.
#[test]
fn a_bomb_is_refused_before_it_fills_the_disk() {
    let rig = Rig::new();
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_path("m/model.safetensors").unwrap();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    let size = 10u64 << 30;
    header.set_size(size);
    header.set_cksum();
    use std::io::Write;
    encoder.write_all(header.as_bytes()).unwrap();
    // It begins like weights, or it would be refused for that.
    encoder.write_all(&8u64.to_le_bytes()).unwrap();
    encoder.write_all(b"{\"a\":1} ").unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..256 {
        encoder.write_all(&zeros).unwrap();
    }
    let bytes = encoder.finish().unwrap();
    assert!(bytes.len() < 1 << 20);
    fs::write(rig.path("m.tar.zst"), bytes).unwrap();
    let from = rig.path("m.tar.zst").display().to_string();
    rig.import(&from, &[]).failed(4, &["no checkpoint packs so well"]);
    assert_eq!(rig.stored(), [] as [String; 0]);
    rig.import(&from, &["--largest", "1GiB"]).failed(4, &["more than 1073741824 bytes"]);
}

#[test]
fn directories_and_what_a_checkpoint_does_not_need_are_passed_over() {
    let rig = Rig::new();
    let mut archive = Builder::new(Vec::new());
    append(&mut archive, "./", EntryType::Directory, b"");
    append(&mut archive, "./m/", EntryType::Directory, b"");
    append(&mut archive, "./m/.gitattributes", EntryType::Regular, b"x");
    append(&mut archive, "./m/onnx/model.onnx", EntryType::Regular, &vec![1; 3 << 20]);
    append(&mut archive, "./m/assets/picture.png", EntryType::Regular, b"x");
    let bytes = joined(archive.into_inner().unwrap(), &tar_of_checkpoint("m"));
    fs::write(rig.path("m.tar"), bytes).unwrap();
    let ran = rig.import(&rig.path("m.tar").display().to_string(), &[]);
    assert!(
        ran.said.contains("left behind: .gitattributes, m/assets/picture.png, m/onnx/model.onnx"),
        "{}",
        ran.said
    );
    ran.well();
}
