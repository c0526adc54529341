//! Pulling from a hub that is on this machine, and that nothing but pulling can.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::rig::{Rig, files};

const COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// What a hub asks for and says.
#[derive(Clone, Copy)]
struct Says {
    token: Option<&'static str>,
    commit: &'static str,
    /// Before the name of each file, as its version.
    etag: &'static str,
    /// A file that is said to be there, beside the others.
    also: &'static str,
    /// Ends every answer with a file after this many bytes.
    breaks: usize,
}

const HONEST: Says = Says { token: None, commit: COMMIT, etag: "", also: "README.md", breaks: usize::MAX };

/// The routes of the hub that its client uses: what a repository holds, and its files in ranges.
fn hub(says: Says) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let log = log.clone();
            std::thread::spawn(move || while answer(&stream, says, &log).is_some() {});
        }
    });
    (address, asked)
}

/// Answers one request; `None` when there is no other.
fn answer(stream: &TcpStream, says: Says, log: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut range, mut bearer) = (None, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => range = value.strip_prefix("bytes=").map(str::to_owned),
            "authorization" => bearer = Some(value.to_owned()),
            _ => {}
        }
    }
    log.lock().unwrap().push(path.clone());
    let refused = says.token.is_some_and(|token| bearer != Some(format!("Bearer {token}")));
    let mut more = files();
    more.push(("pytorch_model.bin", b"a pickle".to_vec()));
    more.push(("README.md", b"---\nlicense: mit\n---\n".to_vec()));
    let file = path.strip_prefix(&format!("/some/model/resolve/{COMMIT}/"));
    let (status, headers, body) = if refused {
        ("401 Unauthorized", String::new(), Vec::new())
    } else if path == "/api/models/some/model/revision/main" {
        let names = more.iter().map(|(name, _)| *name).chain([says.also]);
        let siblings: Vec<_> = names.map(|name| serde_json::json!({"rfilename": name})).collect();
        let told = serde_json::json!({"sha": says.commit, "siblings": siblings}).to_string();
        ("200 OK", "Content-Type: application/json\r\n".to_owned(), told.into_bytes())
    } else if let Some((name, bytes)) = file.and_then(|file| more.iter().find(|(name, _)| *name == file)) {
        let (from, to) = range.as_deref().unwrap_or("0-").split_once('-').unwrap();
        let from: usize = from.parse().unwrap();
        let to = to.parse().map_or(bytes.len(), |to: usize| to + 1);
        let range = format!("Content-Range: bytes {from}-{}/{}\r\n", to - 1, bytes.len());
        (
            "206 Partial Content",
            format!("ETag: \"{}{name}-1\"\r\nx-repo-commit: {COMMIT}\r\n{range}", says.etag),
            bytes[from..to].to_vec(),
        )
    } else {
        ("404 Not Found", String::new(), Vec::new())
    };
    let mut stream = stream;
    let sent = if file.is_some() { body.len().min(says.breaks) } else { body.len() };
    write!(stream, "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len()).ok()?;
    stream.write_all(&body[..sent]).ok()?;
    (sent == body.len()).then_some(())
}

#[test]
fn a_checkpoint_is_pulled_at_a_commit_and_taken_in() {
    let (hub, asked) = hub(HONEST);
    let rig = Rig::new();
    let pull = ["models", "pull", "some/model", "--endpoint", &hub];
    let said = rig.run(&pull).failed(1, &["the licence of some/model was not accepted"]);
    assert!(said.contains(COMMIT) && said.contains("licence: mit, in LICENSE"), "{said}");
    let weights = |asked: &[String]| asked.iter().any(|path| path.ends_with(".safetensors"));
    assert!(!weights(&asked.lock().unwrap()), "weights come after the licence");
    let line = rig.run(&[&pull[..], &["--accept-license"]].concat()).well();
    assert!(line.starts_with("model\t7.9 MiB\t7 files"), "{line}");
    assert!(weights(&asked.lock().unwrap()));
    assert!(
        !asked.lock().unwrap().iter().any(|path| path.ends_with(".bin")),
        "pickles are not even asked for"
    );
    let shown = rig.run(&["models", "inspect", "--json", "model"]).well();
    assert!(shown.contains(&format!("\"revision\":\"{COMMIT}\"")), "{shown}");
    rig.run(&["models", "verify", "model"]).well();
    assert!(!rig.models().join(".hub/models--some--model").exists(), "nothing is kept twice");
}

#[test]
fn what_cannot_be_pulled_says_why() {
    let (hub, _) = hub(Says { token: Some("hf_secret_token"), ..HONEST });
    let rig = Rig::new();
    let pull = ["models", "pull", "some/model", "--accept-license", "--endpoint", &hub];
    rig.run(&pull).failed(4, &["cannot be pulled", "agree to its licence at", "HF_TOKEN"]);
    let done = rig.command(&pull).env("HF_TOKEN", "hf_secret_token").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let mut wrong = pull;
    wrong[2] = "some/other";
    let done = rig.command(&wrong).env("HF_TOKEN", "hf_secret_token").output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(said.contains("check the id") && !said.contains("secret"), "{said}");
    rig.run(&["models", "pull", "some/model", "--accept-license", "--endpoint", "http://127.0.0.1:9"])
        .failed(1, &["pulling is for a host that reaches the hub", "hearth models import"]);
    rig.run(&["models", "pull", "codestrl-22b", "--endpoint", &hub])
        .failed(4, &["did you mean codestral-22b?"]);
    rig.run(&["models", "pull", "gpt-oss-20b", "--endpoint", &hub])
        .failed(4, &["not served by this version", "[[upstream]]"]);
    rig.run(&["models", "pull", "../../x", "--endpoint", &hub])
        .failed(2, &["neither in the catalogue nor PUBLISHER/MODEL"]);
}

/// The files of a directory and of those in it.
fn sources(directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn what_a_hub_says_never_becomes_a_path_of_its_choice() {
    for commit in ["../../../../elsewhere", "main", "89abcdef0123456789abcdef0123456789abcde/"] {
        let (hub, asked) = hub(Says { commit, ..HONEST });
        let rig = Rig::new();
        rig.run(&["models", "pull", "some/model", "--accept-license", "--endpoint", &hub])
            .failed(4, &["is not a commit", "do not use this hub"]);
        assert_eq!(asked.lock().unwrap().len(), 1, "nothing else is asked of it");
    }
    for also in [
        "../../evil.safetensors",
        "/etc/evil.json",
        "a/../../evil.json",
        "..\\evil.json",
        "evil\u{1b}[2J.json",
        "",
    ] {
        let (hub, asked) = hub(Says { also, ..HONEST });
        let rig = Rig::new();
        rig.run(&["models", "pull", "some/model", "--accept-license", "--endpoint", &hub])
            .failed(4, &["a name that leads out of it", "do not use this hub"]);
        assert_eq!(asked.lock().unwrap().len(), 1, "{also:?}: nothing else is asked of it");
        assert_eq!(rig.stored(), [] as [String; 0], "{also:?}");
    }
    // What is said of a file names nothing: the file is what it is called.
    for etag in ["../../../../", "/tmp/hearth-stray-"] {
        let (hub, _) = hub(Says { etag, also: "folder/adapter.json", ..HONEST });
        let rig = Rig::new();
        rig.run(&["models", "pull", "some/model", "--accept-license", "--keep", "--endpoint", &hub]).well();
        let folder = format!(".hub/models--some--model/{COMMIT}/");
        for name in rig.stored() {
            let known = ["blobs/sha256/", "model/", &folder].iter().any(|place| name.starts_with(place));
            assert!(known, "{etag:?}: {name}");
        }
        let beside: Vec<_> = fs::read_dir(rig.path("")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(beside, ["state"], "{etag:?}");
        assert!(!Path::new("/tmp/hearth-stray-config.json-1").exists());
    }
}

#[test]
fn what_breaks_off_goes_on_where_it_ended() {
    let (hub, asked) = hub(Says { breaks: 3 << 20, ..HONEST });
    let rig = Rig::new();
    rig.run(&["models", "pull", "some/model", "--accept-license", "--endpoint", &hub]).well();
    rig.run(&["models", "verify", "model"]).well();
    let asked = asked.lock().unwrap();
    let parts = asked.iter().filter(|path| path.ends_with("/model.safetensors")).count();
    assert_eq!(parts, 3, "8 MB in pieces of 3: {asked:?}");
}

#[test]
fn the_token_does_not_leave_this_machine_in_the_clear() {
    let rig = Rig::new();
    for endpoint in
        ["http://192.0.2.1", "http://hub.invalid", "http://localhost.invalid:80", "ftp://127.0.0.1"]
    {
        rig.run(&["models", "pull", "some/model", "--accept-license", "--endpoint", endpoint])
            .failed(2, &["is not https", "HF_TOKEN"]);
    }
    rig.run(&["models", "pull", "some/model", "--endpoint", "hub"]).failed(2, &["is no URL"]);
}

/// The server cannot download: one folder names the hub's client, and one verb leads there.
#[test]
fn only_one_verb_holds_a_downloader() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    for directory in ["src", "models/src", "kernels/src"] {
        sources(&root.join(directory), &mut all);
    }
    assert!(all.len() > 100);
    let with = |words: &[&str]| -> Vec<&str> {
        let holds = |text: &str| words.iter().any(|word| text.contains(word));
        let names = all.iter().filter(|(_, text)| holds(text)).map(|(path, _)| path.as_str());
        names.map(|path| path.strip_prefix(&format!("{}/", root.display())).unwrap()).collect()
    };
    let mut clients = with(&["hf_hub", "ureq::"]);
    clients.sort_unstable();
    assert_eq!(clients, ["src/cli/pull/files.rs", "src/cli/pull/mod.rs"]);
    let mut callers = with(&["pull::"]);
    callers.sort_unstable();
    assert_eq!(callers, ["src/cli/models/mod.rs"]);
    assert_eq!(with(&["huggingface.co"]), ["src/cli/pull/mod.rs"]);
}
