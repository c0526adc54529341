//! What who runs the server can ask it and tell it: the verbs over its socket, and the doors of its console.

mod watched;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::{Duration, Instant};

use hearth::audit::{Who, check};
use serde_json::{Value, json};
use watched::{KEY, Watched, verb};

#[test]
fn the_verbs_ask_the_running_server() {
    let server = Watched::start(&[("HEARTH__METRICS__COMPAT", "vllm")]);
    let mode = std::fs::metadata(server.state().join("admin.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660, "the socket is for its owner and its group");
    assert_eq!(server.complete("def main(", &[]).status, 200);
    assert_eq!(server.complete("", &[("x-request-id", "gone-wrong-7")]).status, 400);

    let status: Value = serde_json::from_str(&server.verb(&["status", "--json"]).out).unwrap();
    assert_eq!(status["state"], "ready");
    assert_eq!(status["now"]["answer_tokens"], 8);
    assert_eq!(status["models"][0]["name"], "ember-demo");
    let papers = &status["models"][0]["papers"];
    assert_eq!((&papers["origin"], &papers["format"]), (&"built_in".into(), &"bf16".into()), "{papers}");
    let digest = papers["digest"].as_str().unwrap();
    assert_eq!((digest.get(..7), digest.len()), (Some("sha256:"), 71), "{digest}");
    assert_eq!(status["troubles"][0]["correlation_id"], "gone-wrong-7");
    let screen = server.verb(&["status"]);
    assert_eq!(screen.code, 0, "{}", screen.said);
    for words in [
        "hearth ",
        " ready ",
        "ember-demo",
        "tokens/s",
        "troubles",
        "part of this binary",
        digest,
        &server.api,
    ] {
        assert!(screen.out.contains(words), "no {words} in {}", screen.out);
    }

    let reloaded = server.verb(&["reload", "--wait"]);
    assert_eq!((reloaded.code, reloaded.said.starts_with("reloaded")), (0, true), "{}", reloaded.said);

    let log = server.verb(&["logs", "-n", "50"]).out;
    assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{log}");
    assert!(log.contains(r#""correlation_id":"gone-wrong-7""#) && log.contains(r#""status":400"#), "{log}");

    let figures = server.ask(&server.metrics, "GET", "/metrics", &[], "").body;
    for line in [
        r#"hearth_time_to_first_token_seconds_count{model="ember-demo"} 1"#,
        r#"hearth_inter_token_seconds_count{model="ember-demo"} 7"#,
        r#"hearth_queue_wait_seconds_count{model="ember-demo"} 1"#,
        r#"hearth_reloads_total{outcome="done"} 1"#,
        r#"vllm:time_to_first_token_seconds_count{model_name="ember-demo"} 1"#,
        r#"vllm:num_requests_waiting{model_name="ember-demo"} 0"#,
    ] {
        assert!(figures.lines().any(|l| l == line), "no {line} in {figures}");
    }

    let drained = server.verb(&["drain", "--wait"]);
    assert_eq!(drained.code, 0, "{}", drained.said);
    assert_eq!(server.complete("def main(", &[]).status, 200, "what comes all the same is served");
    assert_eq!(server.ask(&server.api, "GET", "/health/ready", &[], "").status, 503);
    let audit = server.state().join("audit.jsonl");
    let state = server.state().to_owned();
    let kept = tempfile::tempdir().unwrap();
    let record = std::fs::read(&audit).unwrap();
    std::fs::write(kept.path().join("audit.jsonl"), &record).unwrap();
    server.stop();
    assert!(!state.join("admin.sock").exists(), "an end in order leaves no socket");
    assert!(check(&record[..], None, |_| {}).is_ok(), "the chain of hashes holds");
    let record = String::from_utf8(record).unwrap();
    for event in ["started", "reloaded", "drain_begun"] {
        assert!(record.contains(&format!("\"event\":\"{event}\"")), "no {event} in {record}");
    }
}

#[test]
fn a_server_that_is_not_there_has_an_exit_code_of_its_own() {
    let state = tempfile::tempdir().unwrap();
    let place = state.path().display().to_string();
    for arguments in [&["status"][..], &["reload", "--wait"], &["drain"], &["logs"], &["console"]] {
        let done = verb(&[arguments, &["--state-dir", &place]].concat());
        assert_eq!(done.code, 9, "{arguments:?}: {}", done.said);
        for words in ["error: no server is running here", "nothing answers at ", "fix: start it"] {
            assert!(done.said.contains(words), "{arguments:?}: {}", done.said);
        }
    }
}

#[test]
fn a_reload_that_fails_says_why_and_changes_nothing() {
    let config = tempfile::tempdir().unwrap();
    let file = config.path().join("hearth.toml");
    std::fs::write(&file, "[log]\nlevel = \"info\"\n").unwrap();
    let server = Watched::start(&[("HEARTH_CONFIG", &file.display().to_string())]);
    std::fs::write(&file, "[log]\nlevel = \"lots\"\n").unwrap();
    let done = server.verb(&["reload", "--wait"]);
    assert_eq!(done.code, 3, "{}", done.said);
    for words in ["`log.level` is \"lots\"", "hearth.toml", "fix: it must be one of error, warn"] {
        assert!(done.said.contains(words), "no {words} in {}", done.said);
    }
    let status: Value = serde_json::from_str(&server.verb(&["status", "--json"]).out).unwrap();
    assert!(status["last_reload"]["error"].as_str().unwrap().contains("log.level"), "{status}");
    assert_eq!(status["banners"][0]["level"], "warn");
    server.signal("-HUP");
    server.until("by=signal");
    assert_eq!(server.complete("x", &[]).status, 200);
}

#[test]
fn prompts_are_in_the_log_only_while_somebody_asked_for_it() {
    let server = Watched::start(&[("HEARTH__LOG__FORMAT", "json")]);
    let ask = |prompt: &str| {
        assert_eq!(server.complete(prompt, &[("x-request-id", &prompt[..6])]).status, 200);
    };
    ask("before_the_switch");
    assert_eq!(server.verb(&["logs", "verbose", "on"]).code, 2, "without an end there is no switching on");
    assert_eq!(server.verb(&["logs", "verbose", "on", "--for", "25h"]).code, 2);
    let on = server.verb(&["logs", "verbose", "on", "--for", "15m"]);
    assert!(on.code == 0 && on.out.contains("for 15 min more"), "{}{}", on.out, on.said);
    ask("during_the_time");
    server.until("during_the_time");
    let said = server.said();
    let line = said.lines().find(|line| line.contains("during_the_time")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["correlation_id"], &line["model"]), (&json!("during"), &json!("ember-demo")));
    server.until("\"message\":\"an answer\"");
    let off = server.verb(&["logs", "verbose", "off"]);
    assert!(off.out.contains("do not go into the log"), "{}", off.out);
    ask("afterwards_again");
    let kept = server.verb(&["logs"]).out;
    assert!(!kept.contains("during_the_time"), "what is kept in memory has no prompt: {kept}");
    let record = std::fs::read_to_string(server.state().join("audit.jsonl")).unwrap();
    assert_eq!(record.matches("prompt_logging").count(), 2, "{record}");
    let said = server.stop();
    assert!(!said.contains("before_the_switch") && !said.contains("afterwards_again"), "{said}");
}

#[test]
fn a_failing_audit_log_fails_the_change_and_not_the_serving() {
    let server = Watched::start(&[]);
    // A directory in the place of the file: what fails for root too.
    let audit = server.state().join("audit.jsonl");
    let _ = std::fs::remove_file(&audit);
    std::fs::create_dir(&audit).unwrap();
    for arguments in [&["reload", "--wait"][..], &["logs", "verbose", "on", "--for", "1m"]] {
        let done = server.verb(arguments);
        assert!(done.code != 0 && done.said.contains("audit log"), "{arguments:?}: {}", done.said);
    }
    assert!(server.verb(&["logs", "verbose", "status"]).out.contains("do not go"));
    assert_eq!(server.complete("x", &[]).status, 200);
}

#[test]
fn the_audit_log_goes_on_in_new_files_and_says_what_was_taken_away() {
    let server = Watched::start(&[("HEARTH__AUDIT__MAX_SIZE", "1KiB")]);
    for _ in 0..12 {
        assert_eq!(server.verb(&["reload", "--wait"]).code, 0);
    }
    let closed = || {
        let names = std::fs::read_dir(server.state()).unwrap().flatten().map(|entry| entry.path());
        let closed = |name: &str| name.starts_with("audit-") && name.ends_with(".jsonl");
        let mut files: Vec<_> = names
            .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(closed))
            .collect();
        files.sort();
        files
    };
    let files = closed();
    assert!(files.len() >= 3, "{files:?}");
    let shown = server.verb(&["audit", "show", "--last", "1000"]).out;
    assert_eq!(shown.matches("  reloaded  ").count(), 12, "{shown}");
    let whole = server.verb(&["audit", "verify"]);
    assert!(
        whole.code == 0 && whole.out.starts_with("whole: ") && !whole.out.contains("begins"),
        "{}",
        whole.out
    );
    let head = whole.out.split_whitespace().last().unwrap().to_owned();

    let second = std::fs::read(&files[1]).unwrap();
    std::fs::remove_file(&files[1]).unwrap();
    let found = server.verb(&["audit", "verify"]);
    assert!(found.code == 1 && found.said.contains("the audit log was changed"), "{}", found.said);
    assert!(found.said.contains(files[2].to_str().unwrap()), "{}", found.said);
    std::fs::write(&files[1], second).unwrap();

    std::fs::remove_file(&files[0]).unwrap();
    let rest = server.verb(&["audit", "verify", "--head", &head]);
    assert!(rest.code == 0 && rest.out.contains("the chain begins at record "), "{}{}", rest.out, rest.said);
    let early = server.verb(&["audit", "verify", "--head", &format!("1:{}", "0".repeat(64))]);
    assert!(early.code == 1 && early.said.contains("before the beginning of what is here"), "{}", early.said);
}

#[test]
fn the_console_asks_who_one_is_at_every_path_of_its_own() {
    let server = Watched::start(&[]);
    let at = |method: &str, path: &str, headers: &[(&str, &str)]| {
        server.ask(&server.console, method, path, headers, if method == "GET" { "" } else { "minutes=15" })
    };
    let pages = ["/", "/stream", "/doctor", "/playground", "/keys"];
    let changes = ["/doctor", "/reload", "/drain", "/prompts", "/logout", "/keys", "/keys/revoke"];
    let api = [
        "/admin/status",
        "/admin/status/stream",
        "/admin/history",
        "/admin/log",
        "/admin/metrics",
        "/admin/keys",
    ];
    let told =
        ["/admin/doctor", "/admin/reload", "/admin/drain", "/admin/prompts", "/play/chat", "/play/fill"];
    for path in pages {
        for headers in [&[][..], &[("cookie", "hearth_console=guessed")]] {
            let reply = at("GET", path, headers);
            assert_eq!((reply.status, reply.header("location")), (303, Some("/login")), "{path}");
        }
    }
    for path in changes {
        assert_eq!(at("POST", path, &[]).status, 303, "{path}");
    }
    for (method, paths) in [("GET", &api[..]), ("POST", &told)] {
        for path in paths {
            for headers in [&[][..], &[("authorization", "Bearer wrong")]] {
                assert_eq!(at(method, path, headers).status, 401, "{path}");
            }
        }
    }
    assert_eq!(at("POST", "/admin/link", &[("authorization", &format!("Bearer {KEY}"))]).status, 404);
    assert_eq!(at("GET", "/admin/status", &[("authorization", &format!("Bearer {KEY}"))]).status, 200);

    let (cookie, csrf) = server.session();
    let with = [("cookie", cookie.as_str())];
    assert_eq!(at("GET", "/", &with).status, 200);
    // Another page could make the browser send the cookie, but not the token.
    for path in changes.iter().chain(&told) {
        assert_eq!(at("POST", path, &with).status, 403, "{path}");
    }
    let form = [("cookie", cookie.as_str()), ("content-type", "application/x-www-form-urlencoded")];
    let body = format!("csrf={csrf}");
    assert_eq!(server.ask(&server.console, "POST", "/reload", &form, &body).status, 303);
    assert!(at("GET", "/", &with).body.contains("Reloaded"));
    // A name that somebody pointed at 127.0.0.1 is not this console's.
    for host in ["evil.example", "evil.example:5053", "127.0.0.1.evil.example", ""] {
        assert_eq!(at("GET", "/", &[("cookie", &cookie), ("host", host)]).status, 421, "{host}");
    }
    assert_eq!(server.ask(&server.console, "POST", "/logout", &form, &body).status, 303);
    assert_eq!(at("GET", "/", &with).status, 303, "signed out");
}

#[test]
fn a_link_works_once_and_a_key_opens_the_door() {
    let server = Watched::start(&[]);
    let link = server.verb(&["console"]).out;
    let path = link.trim().split_once(&server.console).unwrap().1;
    let first = server.ask(&server.console, "GET", path, &[], "");
    let cookie = first.header("set-cookie").unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    for name in ["content-security-policy", "x-content-type-options", "referrer-policy", "x-frame-options"] {
        assert!(first.header(name).is_some(), "no {name} in {}", first.head);
    }
    assert!(first.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    let second = server.ask(&server.console, "GET", path, &[], "");
    assert_eq!((second.status, second.header("set-cookie")), (401, None));
    let form = [("content-type", "application/x-www-form-urlencoded")];
    assert_eq!(server.ask(&server.console, "POST", "/login", &form, "key=wrong").status, 401);
    let entered = server.ask(&server.console, "POST", "/login", &form, &format!("key={KEY}"));
    assert!(entered.status == 200 && entered.header("set-cookie").is_some(), "{}", entered.head);
    let record = std::fs::read_to_string(server.state().join("audit.jsonl")).unwrap();
    assert_eq!(record.matches("admin_login\"").count(), 2, "{record}");
    assert_eq!(record.matches("admin_login_refused").count(), 2, "{record}");
    assert!(!record.contains(KEY) && !record.contains("wrong"), "{record}");
    // Who asked for the link is who has its session.
    let asked = Who::user(std::fs::metadata(server.state()).unwrap().uid());
    let by_link = record.lines().find(|line| line.contains("\"admin_login\"")).unwrap();
    assert!(by_link.contains(&format!("\"who\":\"{asked}, console\"")), "{by_link}");
}

#[test]
fn who_guesses_at_the_door_fills_no_log_and_shuts_nobody_out() {
    let server = Watched::start(&[]);
    let login = |query: &str, headers: &[(&str, &str)]| {
        server.ask(&server.console, "GET", &format!("/login{query}"), headers, "")
    };
    let post =
        |headers: &[(&str, &str)], body: &str| server.ask(&server.console, "POST", "/login", headers, body);
    // A page of another site, open in the operator's browser.
    let link = server.verb(&["console"]).out;
    let path = link.trim().split_once(&server.console).unwrap().1;
    let (token, from) = (path.strip_prefix("/login").unwrap(), [("sec-fetch-site", "cross-site")]);
    for _ in 0..30 {
        assert_eq!(login("?t=x", &from).status, 403);
        assert_eq!(post(&from, "key=wrong").status, 403);
    }
    assert_eq!(login(token, &from).status, 403, "nor does it use up a link");
    assert_eq!(login("", &from).status, 200, "the form is for everybody");
    let refused = || {
        let record = std::fs::read_to_string(server.state().join("audit.jsonl")).unwrap();
        record.matches("admin_login_refused").count()
    };
    assert_eq!(refused(), 0);
    // Somebody on this host who goes on until they must wait.
    let mut counted = 0;
    for (kind, enough) in [("link", 20), ("key", 2000)] {
        for _ in 0..enough {
            let reply = if kind == "link" { login("?t=x", &[]) } else { post(&[], "key=wrong") };
            if reply.status == 429 {
                assert!(reply.header("retry-after").is_some(), "{}", reply.head);
                break;
            }
            assert_eq!(reply.status, 401);
            counted += 1;
        }
    }
    assert!((20..2000).contains(&counted), "{counted} guesses and no end");
    assert_eq!(refused(), counted, "what comes while one must wait is not written down");
    assert_eq!(login(token, &[]).status, 200, "a good link opens all the same");
    let api = |key: &str| server.ask(&server.api, "GET", "/v1/models", &[("x-api-key", key)], "").status;
    assert_eq!((api("wrong"), api(KEY)), (401, 200), "the API counts for itself");
}

#[test]
fn a_form_that_does_not_come_ends() {
    let server = Watched::start(&[("HEARTH__SERVER__BODY_TIMEOUT", "1")]);
    let mut stream = TcpStream::connect(&server.console).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = format!("POST /login HTTP/1.1\r\nhost: {}\r\ncontent-length: 100\r\n\r\nkey=", server.console);
    stream.write_all(head.as_bytes()).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).expect("an answer and the end of the connection");
    let reply = String::from_utf8_lossy(&reply);
    assert!(reply.starts_with("HTTP/1.1 408 "), "{reply}");
    assert!(reply.contains("did not arrive in time"), "{reply}");
    let record = std::fs::read_to_string(server.state().join("audit.jsonl")).unwrap();
    assert!(!record.contains("admin_login_refused"), "it was no guess: {record}");
}

/// Whether a stream that has begun comes to its end.
fn ends(mut stream: impl Read, end: Instant) -> bool {
    let mut bytes = [0; 16 << 10];
    while Instant::now() < end {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) => panic!("{e}"),
        }
    }
    false
}

#[test]
fn a_session_ends_with_its_first_key_and_streams_end_with_their_session_or_key() {
    // No key of the settings: the first one is that of the state directory, and can be replaced.
    let server = Watched::start(&[("HEARTH_KEY", "")]);
    let (cookie, csrf) = server.session();
    let open = |path: &str, header: &str| {
        let mut stream = TcpStream::connect(&server.console).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: {}\r\n{header}\r\nconnection: close\r\n\r\n",
            server.console
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200", "{path}");
        stream
    };
    let end = Instant::now() + Duration::from_secs(60);
    let listening = open("/stream", &format!("cookie: {cookie}"));
    let form = [("cookie", cookie.as_str()), ("content-type", "application/x-www-form-urlencoded")];
    assert_eq!(server.ask(&server.console, "POST", "/logout", &form, &format!("csrf={csrf}")).status, 303);
    assert!(ends(listening, end), "it goes on after signing out");

    let key = std::fs::read_to_string(server.state().join("key")).unwrap();
    let (cookie, _) = server.session();
    let page = |path: &str| server.ask(&server.console, "GET", path, &[("cookie", &cookie)], "").status;
    let by_session = open("/admin/status/stream", &format!("cookie: {cookie}"));
    let by_key = open("/admin/status/stream", &format!("authorization: Bearer {}", key.trim()));
    let mut rotate = Command::new(env!("CARGO_BIN_EXE_hearth"));
    rotate.args(["keys", "rotate", "first", "--print"]).env_clear().env("STATE_DIRECTORY", server.state());
    assert_eq!((page("/"), page("/login")), (200, 303));
    assert!(rotate.output().unwrap().status.success());
    assert!(ends(by_key, end) && ends(by_session, end), "they go on without a key");
    assert_eq!(page("/"), 303);
    assert_eq!(page("/login"), 200, "the door does not send back who has no session any more");
}

#[test]
fn a_key_made_at_the_console_opens_what_it_says_and_nothing_after_it_is_revoked() {
    let server = Watched::start(&[]);
    let (cookie, csrf) = server.session();
    let form = [("cookie", cookie.as_str()), ("content-type", "application/x-www-form-urlencoded")];
    let post = |path: &str, fields: &str| {
        server.ask(&server.console, "POST", path, &form, &format!("csrf={csrf}&{fields}"))
    };
    let made = post("/keys", "name=ci&owner=ops&days=30&openai=on&admin=on");
    let key = made.body.split_once("readonly value=\"").unwrap_or_else(|| panic!("{}", made.body)).1;
    let key = key.split('"').next().unwrap();
    let page = || server.ask(&server.console, "GET", "/keys", &form[..1], "").body;
    assert!(page().contains("ci") && !page().contains(key), "the text is shown once");
    let bearer = format!("Bearer {key}");
    let models = || server.ask(&server.api, "GET", "/v1/models", &[("authorization", &bearer)], "").status;
    let status =
        || server.ask(&server.console, "GET", "/admin/status", &[("authorization", &bearer)], "").status;
    // A running server sees the new file within a second, on a quiet machine.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while models() != 200 {
        assert!(std::time::Instant::now() < end);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(status(), 200);
    let listed = server.ask(&server.console, "GET", "/admin/keys", &[("authorization", &bearer)], "");
    assert_eq!(listed.json()["keys"][0]["name"], "ci");
    assert!(!listed.body.contains("mac") && !listed.body.contains(key), "{}", listed.body);
    let login = [("content-type", "application/x-www-form-urlencoded")];
    let entered = server.ask(&server.console, "POST", "/login", &login, &format!("key={key}"));
    let own = entered.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let mine = || server.ask(&server.console, "GET", "/keys", &[("cookie", &own)], "");
    assert_eq!(mine().status, 200);
    let id = page().split_once("name=\"id\" value=\"").unwrap().1.split('"').next().unwrap().to_owned();
    assert_eq!(post("/keys/revoke", &format!("id={id}")).status, 303);
    while models() == 200 {
        assert!(std::time::Instant::now() < end);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(status(), 401);
    assert_eq!(mine().status, 303, "a session ends with its key");
    let refused = post("/keys", "name=&openai=on");
    assert_eq!(refused.status, 303);
    assert!(page().contains("No key was made"));
    for (fields, words) in [
        ("name=x&openai=on&requests=1O0", "“Requests a minute” is"),
        ("name=x&requests=10", "tick at least one box"),
    ] {
        assert_eq!(post("/keys", fields).status, 303);
        let page = page();
        assert!(page.contains(words) && !page.contains("Revoke x"), "{fields}: {page}");
    }
}

#[test]
fn the_console_is_small_and_loads_nothing_from_elsewhere() {
    let server = Watched::start(&[]);
    let (cookie, _) = server.session();
    let mut bytes = 0;
    for path in [
        "/",
        "/doctor",
        "/playground",
        "/login",
        "/console.css",
        "/console.js",
        "/playground.js",
        "/mark.svg",
    ] {
        let reply = server.ask(&server.console, "GET", path, &[("cookie", &cookie)], "");
        bytes += reply.body.len();
        // The name of SVG's vocabulary is an address that nobody loads.
        let text = reply.body.replace("http://www.w3.org/2000/svg", "");
        for scheme in ["https://", "http://", "url(", "@import", "style=\"", "<style", "javascript:"] {
            let own = text.matches("http://127.0.0.1").count();
            let found = text.matches(scheme).count() - if scheme == "http://" { own } else { 0 };
            assert_eq!(found, 0, "{path} has {scheme}");
        }
    }
    assert!(bytes < 300 << 10, "the console has {bytes} bytes");
}

#[test]
fn the_console_is_for_this_machine() {
    let state = tempfile::tempdir().unwrap();
    let place = state.path().display().to_string();
    let done = verb(&["serve", "--state-dir", &place, "--console", "0.0.0.0:5053"]);
    assert_eq!(done.code, 3, "{}", done.said);
    for words in ["`console.listen` is 0.0.0.0:5053", "flag --console", "ssh -L 5053:127.0.0.1:5053"] {
        assert!(done.said.contains(words), "no {words} in {}", done.said);
    }
}
