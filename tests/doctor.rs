//! `hearth doctor` against a running server and a GitLab: what it says when all is well, and what when something is not.

mod gitlab;
mod served;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gitlab::{Behaviour, GitLab};
use served::Served;

struct Report {
    code: i32,
    text: String,
}

impl Report {
    /// The line of a check.
    fn line(&self, check: &str) -> &str {
        let mut lines = self.text.lines();
        lines.find(|line| line.starts_with(check)).unwrap_or_else(|| panic!("no {check} in {}", self.text))
    }

    fn says(&self, check: &str, verdict: &str, words: &str) {
        let line = self.line(check);
        assert!(line.contains(verdict) && line.contains(words), "{line:?} lacks {verdict} or {words:?}");
    }
}

/// A server that has the keys of this GitLab.
fn serve(gitlab: &GitLab) -> Served {
    let served = Served::start(&["--gitlab", &gitlab.url()]);
    gitlab.until_fetched(1);
    // What was fetched is looked at before it counts.
    let end = Instant::now() + Duration::from_secs(60);
    while served.get("/monitoring/ready").0 != 200 {
        assert!(Instant::now() < end, "the keys of GitLab were fetched and never counted");
        std::thread::sleep(Duration::from_millis(10));
    }
    served
}

fn doctor(served: &Served, state: &std::path::Path, environment: &[(&str, &str)]) -> Report {
    let address = served.url.trim_start_matches("http://");
    let output = Command::new(env!("CARGO_BIN_EXE_hearth"))
        .args(["doctor", "--listen", address, "--state-dir"])
        .arg(state)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    Report { code: output.status.code().unwrap(), text: String::from_utf8(output.stdout).unwrap() }
}

#[test]
fn all_is_well_and_the_next_steps_are_told() {
    let gitlab = GitLab::start();
    let url = gitlab.url();
    let served = serve(&gitlab);
    let report = doctor(&served, served.state(), &[("HEARTH__GITLAB__URL", &url)]);
    assert_eq!(report.code, 0, "{}", report.text);
    report.says("gitlab", " ok ", &format!("{url} gave "));
    report.says("device", " ok ", "the CPU: ");
    report.says("host", " ok ", " cores (");
    report.says("state", " ok ", " free");
    report.says("files", " ok ", "may be open");
    report.says("model", " ok ", "ember-demo: ");
    report.says("origin", " ok ", "ember-demo: part of this binary; licence of hearth");
    report.says("keys", " note ", "only the server's first key");
    assert!(!report.text.contains("\nfit "), "a running server has its memory already: {}", report.text);
    report.says("server", " ok ", &served.url);
    report.says("closed", " ok ", "401 No authorization header presented");
    report.says("ready", " ok ", "GitLab's keys are there");
    report.says("complete", " ok ", "`def hello_world` was completed in ");
    report.says("listen", " warn ", "only this machine reaches it");
    report.says("agents", " note ", "port 50052");
    assert!(report.text.contains("custom_openai/ember-demo"), "{}", report.text);
    assert!(report.text.contains("Local AI Gateway URL"), "{}", report.text);
}

#[test]
fn each_thing_that_is_wrong_is_named_with_what_to_do() {
    let gitlab = GitLab::start();
    let url = gitlab.url();
    let served = serve(&gitlab);
    let state = served.state();

    let report = doctor(&served, state, &[]);
    assert_eq!(report.code, 8);
    report.says("gitlab", " FAIL ", "gitlab.url is not set");

    let report = doctor(&served, state, &[("HEARTH__GITLAB__URL", "http://127.0.0.1:9")]);
    report.says("gitlab", " FAIL ", "cannot be reached");
    assert!(report.text.contains("fix: check the address in gitlab.url"), "{}", report.text);

    for (behaviour, words) in [
        (Behaviour::Redirecting, "redirects"),
        (Behaviour::Empty, "holds no RSA key"),
        (Behaviour::Failing, "answered 500"),
    ] {
        gitlab.behave(behaviour);
        let report = doctor(&served, state, &[("HEARTH__GITLAB__URL", &url)]);
        report.says("gitlab", " FAIL ", words);
        // The server has the keys of before, and goes on.
        report.says("complete", " ok ", "def hello_world");
        assert_eq!(report.code, 8);
    }
    gitlab.behave(Behaviour::Up);

    gitlab.behave(Behaviour::WithoutDiscovery);
    let report = doctor(&served, state, &[("HEARTH__GITLAB__URL", &url)]);
    report.says("gitlab", " warn ", "gave one signature key");
    report.says("gitlab", " warn ", "but not its issuer");
    assert!(
        report.text.contains("fix: tokens are good only if gitlab.url is also the URL"),
        "{}",
        report.text
    );
    gitlab.behave(Behaviour::Up);

    // What lives at the root of the host says that it is not what lives below it.
    let report = doctor(&served, state, &[("HEARTH__GITLAB__URL", &format!("{url}/gitlab"))]);
    report.says("gitlab", " FAIL ", &format!("names issuer \"{url}\", which is not at {url}/gitlab"));
    assert!(report.text.contains("with its path if GitLab lives below one"), "{}", report.text);
    assert_eq!(report.code, 8);

    // Over a line that others can read and answer; the name leads nowhere.
    let plain = doctor(&served, state, &[("HEARTH__GITLAB__URL", "http://gitlab.invalid")]);
    plain.says("line", " warn ", "gitlab.url is http://gitlab.invalid, without TLS");
    assert!(plain.text.contains("fix: use https"), "{}", plain.text);
    assert!(!report.text.contains("without TLS"), "this machine itself is no line: {}", report.text);

    // Another state directory has another signing key.
    let other = tempfile::tempdir().unwrap();
    let report = doctor(&served, other.path(), &[("HEARTH__GITLAB__URL", &url)]);
    report.says("complete", " FAIL ", "does not know the key in this state directory");

    let gone = Served::start(&[]);
    let address = gone.url.trim_start_matches("http://").to_owned();
    gone.stop();
    let output = Command::new(env!("CARGO_BIN_EXE_hearth"))
        .args(["doctor", "--listen", &address, "--state-dir"])
        .arg(state)
        .env("HEARTH__GITLAB__URL", &url)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("start it (`hearth serve`)"), "{text}");
}

#[test]
fn a_machine_reads_the_same_as_one_object() {
    let gitlab = GitLab::start();
    let url = gitlab.url();
    let served = serve(&gitlab);
    let address = served.url.trim_start_matches("http://");
    let output = Command::new(env!("CARGO_BIN_EXE_hearth"))
        .args(["doctor", "--json", "--listen", address, "--through", &served.url, "--state-dir"])
        .arg(served.state())
        .env("HEARTH__GITLAB__URL", &url)
        .env("HEARTH_KEY", served::KEY)
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["failed"]), (Some(0), &0.into()), "{report:#}");
    let check = |name: &str| {
        let checks = report["checks"].as_array().unwrap();
        checks.iter().find(|c| c["check"] == name).unwrap_or_else(|| panic!("no {name} in {report:#}"))
    };
    assert_eq!(check("server")["verdict"], "ok");
    assert_eq!(check("through")["verdict"], "ok");
    assert!(check("listen")["fix"].as_str().unwrap().contains("0.0.0.0"));
    // Nothing stands in between, so the answer was not held back; it may have been too fast to tell.
    assert_ne!(check("stream")["verdict"], "warning");
    assert_ne!(check("stream")["verdict"], "failure");
}

#[test]
fn a_host_that_cannot_serve_is_told_before_the_server_is_started() {
    let state = tempfile::tempdir().unwrap();
    let doctor = |settings: &str| {
        let file = state.path().join("hearth.toml");
        std::fs::write(&file, settings).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
        // A port that nobody listens on.
        command.args(["doctor", "--listen", "127.0.0.1:9", "--config"]).arg(&file);
        let output = command.arg("--state-dir").arg(state.path()).output().unwrap();
        Report { code: output.status.code().unwrap(), text: String::from_utf8(output.stdout).unwrap() }
    };
    let report = doctor("[[model]]\npath = \"/nowhere/codestral\"\n");
    assert_eq!(report.code, 4, "{}", report.text);
    report.says("model", " FAIL ", "codestral");
    assert!(report.text.contains("effect: the server does not start"), "{}", report.text);

    let report = doctor("[[model]]\nname = \"ember-demo\"\nkv = \"900TiB\"\n");
    assert_eq!(report.code, 6, "{}", report.text);
    report.says("fit", " FAIL ", "not enough memory");

    std::fs::write(state.path().join("keys.json"), "{").unwrap();
    let report = doctor("");
    report.says("keys", " FAIL ", "keys.json");
}

/// Ended with the test, however that ends.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_with_tls_is_asked_under_the_name_of_its_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let made = rcgen::generate_simple_self_signed(["hearth.example.com".to_owned()]).unwrap();
    std::fs::write(path("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let hearth = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
        command
            .args(arguments)
            .args(["--state-dir", directory.path().to_str().unwrap()])
            .env("HEARTH__SERVER__TLS_CERT", path("cert.pem"))
            .env("HEARTH__SERVER__TLS_KEY", path("key.pem"))
            .env("HEARTH__SERVER__METRICS", "");
        command
    };
    let mut serving =
        Serving(hearth(&["serve", "--listen", "127.0.0.1:0"]).stderr(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(serving.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut said = lines.filter(|line| line.starts_with("hearth "));
    let address = said.next().expect("an address").rsplit_once('/').unwrap().1.to_owned();
    std::thread::spawn(move || said.count());
    let output = hearth(&["doctor", "--listen", &address]).output().unwrap();
    let report = Report { code: 0, text: String::from_utf8(output.stdout).unwrap() };
    report.says("tls", " ok ", "a certificate for hearth.example.com");
    report.says("server", " ok ", "https://hearth.example.com:");
    report.says("closed", " ok ", "401");
    report.says("complete", " note ", "without gitlab.url");
    drop(serving);

    std::fs::write(path("key.pem"), "no key").unwrap();
    let output = hearth(&["doctor", "--listen", &address]).output().unwrap();
    let report = Report { code: 0, text: String::from_utf8(output.stdout).unwrap() };
    report.says("tls", " FAIL ", "private key");
}
