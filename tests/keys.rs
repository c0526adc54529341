//! `hearth keys` and `hearth audit` as an administrator uses them, against the binary: alone, beside a running server, and on
//! a disk that is full or read-only.

mod served;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use served::Served;

fn hearth(state: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command.args(arguments).env_clear().env("STATE_DIRECTORY", state).stdin(Stdio::null());
    command.output().unwrap()
}

/// Standard output of what must go well, and standard error.
fn good(state: &Path, arguments: &[&str]) -> (String, String) {
    let output = hearth(state, arguments);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

/// The exit code and standard error of what must not; nothing may be on standard output.
fn bad(state: &Path, arguments: &[&str]) -> (i32, String) {
    let output = hearth(state, arguments);
    assert!(output.stdout.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn create(state: &Path, more: &[&str]) -> String {
    let key = good(state, &[&["keys", "create", "--print"], more].concat()).0;
    key.trim_end().to_owned()
}

/// The entries of `keys list --all`.
fn listed(state: &Path) -> Vec<Value> {
    let lines = good(state, &["keys", "list", "--all", "--json"]).0;
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Everything in the state directory, and what is in it.
fn files(state: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_key_is_shown_once_and_kept_by_nobody() {
    let state = tempfile::tempdir().unwrap();
    let state = state.path();
    let (code, said) = bad(state, &["keys", "create", "ci"]);
    assert!(code == 2 && said.contains("no terminal") && said.contains("--print"), "{said}");
    assert!(files(state).is_empty(), "no key that nobody would have seen");
    let create =
        ["keys", "create", "ci", "--print", "--owner", "ada", "--model", "m", "--from", "10.0.0.0/8"];
    let (key, said) = good(state, &[&create[..], &["--expires", "90d", "--requests", "7"]].concat());
    let (id, secret) = key.trim().strip_prefix("hearth_").unwrap().split_once('_').unwrap();
    assert!(said.contains(id) && said.contains("shown once") && !said.contains(secret), "{said}");
    for (name, text) in files(state) {
        assert!(!String::from_utf8(text).unwrap().contains(secret), "{name} has the key");
    }
    let entry = &listed(state)[0];
    for (field, value) in [
        ("id", id.into()),
        ("name", "ci".into()),
        ("owner", "ada".into()),
        ("state", "live".into()),
        ("models", vec!["m"].into()),
        ("classes", vec!["openai"].into()),
        ("addresses", vec!["10.0.0.0/8"].into()),
        ("requests", 7.into()),
        ("tokens", Value::Null),
        ("last_used", Value::Null),
    ] {
        assert_eq!(entry[field], value, "{field}");
    }
    let table = good(state, &["keys", "list"]).0;
    assert!(table.lines().count() == 2 && table.contains("10.0.0.0/8"), "{table}");
    assert!(!good(state, &["audit", "show"]).0.contains(secret));
    let object: Value =
        serde_json::from_str(&good(state, &["keys", "create", "two", "--print", "--json"]).0).unwrap();
    assert!(object["key"].as_str().unwrap().contains(object["id"].as_str().unwrap()));
    use std::os::unix::fs::PermissionsExt;
    for (name, _) in files(state) {
        let mode = std::fs::metadata(state.join(&name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn mistakes_are_told_and_change_nothing() {
    let state = tempfile::tempdir().unwrap();
    let state = state.path();
    create(state, &["ci"]);
    let before = files(state);
    for (arguments, exit, words) in [
        (&["keys", "create", "ci", "--print"][..], 1, "there is a key with the name \"ci\""),
        (&["keys", "create", "first", "--print"], 2, "that is what the key of the settings is called"),
        (&["keys", "create", " ", "--print"], 2, "`name` is \" \""),
        (&["keys", "create", "a\nb", "--print"], 2, "`name` is \"a\\nb\""),
        (&["keys", "create", "x", "--print", "--from", "10.0.0.0/33"], 2, "`addresses` is \"10.0.0.0/33\""),
        (
            &["keys", "create", "x", "--print", "--from", "10.1.2.3/8"],
            2,
            "10.0.0.0/8, which is how to write it",
        ),
        (&["keys", "create", "x", "--print", "--class", "root"], 2, "it must be openai, admin or metrics"),
        (&["keys", "create", "x", "--print", "--expires", "soon"], 2, "no time to come"),
        (&["keys", "create", "x", "--print", "--expires", "2020-01-01"], 2, "no time to come"),
        (&["keys", "create", "x", "--print", "--expires=-1d"], 2, "no time to come"),
        (&["keys", "create", "x", "--print", "--model", ""], 2, "`models` is \"\""),
        (&["keys", "create", "x", "--print", "--requests=-1"], 2, "invalid"),
        (&["keys", "revoke", "nobody"], 1, "there is no key \"nobody\""),
        (&["keys", "revoke", "first"], 1, "`hearth keys rotate first` makes a new one"),
        (&["keys", "rotate", "nobody", "--print"], 1, "there is no key \"nobody\""),
        (&["keys", "rotate"], 2, "hearth keys rotate --signing"),
        (&["keys", "rotate", "ci", "--signing"], 2, "cannot be used with"),
        (&["keys", "rotate", "ci", "--print", "--grace", "long"], 2, "no time to come"),
    ] {
        let (code, said) = bad(state, arguments);
        assert!(code == exit && said.contains(words), "{arguments:?}: {code} {said}");
    }
    assert!(files(state) == before, "something was written");
}

#[test]
fn the_first_key_is_replaced_by_one_that_is_shown_once() {
    let state = tempfile::tempdir().unwrap();
    let key = good(state.path(), &["keys", "rotate", "first", "--print"]).0;
    let kept = std::fs::read_to_string(state.path().join("key")).unwrap();
    assert_eq!(kept, key);
    assert_ne!(good(state.path(), &["keys", "rotate", "first", "--print"]).0, key);
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command.args(["keys", "rotate", "first", "--print"]).env_clear().env("STATE_DIRECTORY", state.path());
    let output = command.env("HEARTH_KEY", "0123456789abcdef").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(3) && said.contains("HEARTH_KEY"), "{said}");
}

/// Asks until the status is the wanted one: the server looks at its files once a second.
fn until(served: &Served, key: &str, status: u16) {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let begin = Instant::now();
    loop {
        let url = format!("{}/v1/models", served.url);
        let got = agent.get(&url).header("x-api-key", key).call().unwrap().status().as_u16();
        if got == status {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{got}, not {status}, after a minute");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn events(state: &Path) -> Vec<String> {
    let lines = good(state, &["audit", "show", "--json"]).0;
    let event =
        |line: &str| serde_json::from_str::<Value>(line).unwrap()["event"].as_str().unwrap().to_owned();
    lines.lines().map(event).collect()
}

#[test]
fn a_running_server_takes_what_is_changed_and_writes_down_what_it_did() {
    let config = tempfile::tempdir().unwrap();
    let file = config.path().join("hearth.toml");
    std::fs::write(&file, "[limits]\nfailures = 0\nkey_requests = 0\n").unwrap();
    let config = file.display().to_string();
    let served = Served::start(&["--config", &config]);
    let state = served.state();
    until(&served, "hearth_0123456789_nobody", 401);
    let key = create(state, &["ci"]);
    until(&served, &key, 200);
    // What a reload brings, and what it refuses.
    let reload = || {
        let known = events(state).iter().filter(|event| event.starts_with("reload")).count();
        assert!(Command::new("kill").args(["-HUP", &served.pid().to_string()]).status().unwrap().success());
        let begin = Instant::now();
        while events(state).iter().filter(|event| event.starts_with("reload")).count() == known {
            assert!(begin.elapsed() < Duration::from_secs(60), "no reload is written down after a minute");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    std::fs::write(&file, "[limits]\nfailures = 0\nkey_requests = 1\n").unwrap();
    reload();
    until(&served, &key, 429);
    std::fs::write(&file, "[limits]\nfailures = 0\nkey_requests = 0\nkey_tokens = \"many\"\n").unwrap();
    reload();
    until(&served, &key, 429);
    std::fs::write(&file, "[limits]\nfailures = 0\nkey_requests = 0\n").unwrap();
    reload();
    until(&served, &key, 200);
    good(state, &["keys", "revoke", "ci"]);
    until(&served, &key, 401);
    let state = state.to_owned();
    let kept = tempfile::tempdir().unwrap();
    assert!(served.get("/v1/models").0 == 200, "the first key is good all the while");
    // Its directory goes with it.
    let copy = kept.path().to_owned();
    let pid = served.pid().to_string();
    assert!(Command::new("kill").arg(&pid).status().unwrap().success());
    let begin = Instant::now();
    while !events(&state).contains(&"stopped".to_owned()) {
        assert!(begin.elapsed() < Duration::from_secs(60), "it does not stop");
        std::thread::sleep(Duration::from_millis(20));
    }
    for (name, text) in files(&state) {
        std::fs::write(copy.join(name), text).unwrap();
    }
    let expected =
        ["started", "key_created", "reloaded", "reload_refused", "reloaded", "key_revoked", "stopped"];
    let mut found = events(&state);
    found.retain(|event| expected.contains(&event.as_str()));
    assert_eq!(found, expected);
    let log = served.log.lock().unwrap().clone();
    assert!(!log.contains(&key[18..]), "the key is in the log");
    let whole = good(&state, &["audit", "verify"]).0;
    assert!(whole.starts_with("whole: "), "{whole}");
    let used: Value = serde_json::from_slice(&std::fs::read(copy.join("keys.used.json")).unwrap()).unwrap();
    assert!(used[&key[7..17]].as_i64().is_some_and(|time| time > 1_700_000_000), "{used}");
}

#[test]
fn a_changed_audit_log_is_told_and_takes_nothing_more() {
    let state = tempfile::tempdir().unwrap();
    let state = state.path();
    create(state, &["one"]);
    let head = good(state, &["audit", "verify"]).0;
    let head = head.trim().rsplit_once(' ').unwrap().1.to_owned();
    create(state, &["two"]);
    good(state, &["audit", "verify", "--head", &head]);
    let path = state.join("audit.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"two\"", "\"2wo\"")).unwrap();
    let (code, said) = bad(state, &["audit", "verify"]);
    assert!(code == 1 && said.contains("line 2: its hash is not that of its text"), "{said}");
    let keys = std::fs::read(state.join("keys.json")).unwrap();
    let (code, said) = bad(state, &["keys", "create", "three", "--print"]);
    assert!(
        code == 1 && said.contains("damaged at its end") && said.contains("move the file away"),
        "{said}"
    );
    assert_eq!(std::fs::read(state.join("keys.json")).unwrap(), keys);
    // A log that was written anew is whole, and not the one that was noted.
    std::fs::remove_file(&path).unwrap();
    create(state, &["four"]);
    let (code, said) = bad(state, &["audit", "verify", "--head", &head]);
    assert!(
        code == 1 && said.contains("does not go through") && said.contains("cut off or written anew"),
        "{said}"
    );
}

/// Runs a script with a small disk of its own at `$STATE`, where this host allows that.
#[allow(clippy::print_stderr)] // a test that could not be run says so
fn on_a_small_disk(script: &str) -> Option<String> {
    let root = tempfile::tempdir().unwrap();
    let state = root.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let unshared = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "bash", "-c", script]);
        command.env("STATE", &state).env("STATE_DIRECTORY", &state).env("LOG", root.path().join("log"));
        command.env("HEARTH", env!("CARGO_BIN_EXE_hearth")).env_remove("HEARTH_KEY").output()
    };
    let mount = "mount -t tmpfs -o size=64k,mode=700 tmpfs \"$STATE\"";
    if !unshared(mount).is_ok_and(|output| output.status.success()) {
        eprintln!("not run: this host has no user and mount namespaces for it");
        return None;
    }
    let output = unshared(&format!("set -u; {mount} || exit 90\n{script}")).unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    Some(text)
}

/// Says `rc N` after what failed, and leaves nothing beside the files.
const LIBRARY: &str = r#"
try() { "$@" >>"$LOG.out" 2>>"$LOG.out"; echo "rc $?"; }
same() { cmp -s "$LOG.keys" "$STATE/keys.json" || { echo "keys.json has changed"; exit 1; }; }
alone() { test -z "$(find "$STATE" -name '.*.json.*' -o -name '.key.*')" || { echo "something is left"; exit 1; }; }
fill() { dd if=/dev/zero of="$STATE/filler" bs=4096 count=64 2>/dev/null; ! echo x >>"$STATE/filler"; }
"$HEARTH" keys create good --print >"$LOG.key" 2>/dev/null || exit 1
cp "$STATE/keys.json" "$LOG.keys"
"#;

#[test]
fn a_full_disk_changes_no_key_and_breaks_no_chain() {
    let script = format!(
        r#"{LIBRARY}
        fill
        try "$HEARTH" keys create more --print
        try "$HEARTH" keys revoke good
        try "$HEARTH" keys rotate good --print
        try "$HEARTH" keys rotate first --print
        same; alone
        "$HEARTH" audit verify 2>&1
        rm "$STATE/filler"
        try "$HEARTH" keys revoke good
        "$HEARTH" audit verify 2>/dev/null | grep whole
        cat "$LOG.out"
        "#
    );
    let Some(text) = on_a_small_disk(&script) else { return };
    let codes: Vec<&str> = text.lines().filter(|line| line.starts_with("rc ")).collect();
    assert_eq!(codes, ["rc 1", "rc 1", "rc 1", "rc 1", "rc 0"], "{text}");
    assert!(text.contains("No space left on device") && text.contains("nothing was changed"), "{text}");
    assert!(text.contains("whole: 1 records") && text.contains("whole: 2 records"), "{text}");
    assert!(!text.contains("hearth_"), "a key that was not made is shown: {text}");
}

#[test]
fn a_disk_that_fills_up_between_key_and_log_changes_no_key() {
    // The log's last page has no room for the next record, and the keys take the last pages that there are.
    let script = format!(
        r#"{LIBRARY}
        size() {{ stat -c %s "$1"; }}
        i=0
        while [ $(( $(size "$STATE/audit.jsonl") % 4096 )) -lt 3750 ]; do
          "$HEARTH" keys create "n$i" --print >/dev/null 2>&1 || exit 1
          i=$((i + 1))
        done
        cp "$STATE/keys.json" "$LOG.keys"
        cp -r "$STATE" "$LOG.copy"
        STATE_DIRECTORY="$LOG.copy" "$HEARTH" keys create "{name}" --print --owner "{name}" >/dev/null 2>&1 || exit 1
        test $(( $(size "$LOG.copy/audit.jsonl") / 4096 )) -gt $(( $(size "$STATE/audit.jsonl") / 4096 )) || exit 1
        pages=$(( ($(size "$LOG.copy/keys.json") + 4095) / 4096 ))
        fill
        truncate -s $(( $(size "$STATE/filler") - pages * 4096 )) "$STATE/filler"
        records=$("$HEARTH" audit verify 2>/dev/null)
        try "$HEARTH" keys create "{name}" --print --owner "{name}"
        alone
        test "$records" = "$("$HEARTH" audit verify 2>/dev/null)" && same && echo unchanged
        cat "$LOG.out"
        "#,
        name = "n".repeat(64),
    );
    let Some(text) = on_a_small_disk(&script) else { return };
    assert!(text.contains("rc 1\n") && text.contains("unchanged"), "{text}");
    assert!(text.contains("the audit log") && text.contains("No space left on device"), "{text}");
}

#[test]
fn a_read_only_disk_changes_no_key() {
    let script = format!(
        r#"{LIBRARY}
        mount -o remount,ro "$STATE" || exit 91
        try "$HEARTH" keys create more --print
        try "$HEARTH" keys revoke good
        try "$HEARTH" keys rotate good --print
        try "$HEARTH" keys rotate first --print
        try "$HEARTH" keys rotate --signing
        same; alone
        "$HEARTH" keys list 2>/dev/null | grep good
        "$HEARTH" audit verify 2>/dev/null
        cat "$LOG.out"
        "#
    );
    let Some(text) = on_a_small_disk(&script) else { return };
    let codes: Vec<&str> = text.lines().filter(|line| line.starts_with("rc ")).collect();
    assert_eq!(codes, ["rc 3", "rc 3", "rc 3", "rc 1", "rc 3"], "{text}");
    assert!(text.contains("Read-only file system") && text.contains("whole: 1 records"), "{text}");
}

#[test]
fn a_server_on_a_full_disk_serves_and_takes_no_change() {
    let script = format!(
        r#"{LIBRARY}
        key=$(cat "$LOG.key")
        "$HEARTH" serve --listen 127.0.0.1:0 --metrics "" >/dev/null 2>"$LOG.server" &
        server=$!
        trap 'kill $server 2>/dev/null' EXIT
        until address=$(sed -n 's|^hearth .* at http://||p' "$LOG.server") && test -n "$address"; do
          kill -0 $server || {{ cat "$LOG.server"; exit 1; }}
          sleep 0.05
        done
        ask() {{
          exec 3<>"/dev/tcp/${{address%:*}}/${{address#*:}}"
          printf 'GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-api-key: %s\r\n\r\n' "$key" >&3
          head -1 <&3; exec 3>&-
        }}
        ask
        # The log's last page has no room for another reload.
        while [ $(( $(stat -c %s "$STATE/audit.jsonl") % 4096 )) -lt 3850 ]; do
          "$HEARTH" keys rotate first --print >/dev/null 2>&1 || exit 1
        done
        fill
        kill -HUP $server
        until grep -q "reloaded" "$LOG.server"; do kill -0 $server || exit 1; sleep 0.05; done
        ask
        kill $server; wait $server; echo "ended $?"
        cat "$LOG.server"
        "#
    );
    let Some(text) = on_a_small_disk(&script) else { return };
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2, "{text}");
    assert!(text.contains("not reloaded, nothing has changed: the audit log"), "{text}");
    assert!(text.contains("ended 0"), "{text}");
}
