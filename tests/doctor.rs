//! `hearth doctor` against a running server and a GitLab: what it says when all is well, and what when something is not.

mod gitlab;
mod served;

use std::process::Command;

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
    let served = Served::start(&["--gitlab", &url]);
    gitlab.until_fetched(1);
    let report = doctor(&served, served.state(), &[("HEARTH__GITLAB__URL", &url)]);
    assert_eq!(report.code, 0, "{}", report.text);
    report.says("gitlab", " ok ", &format!("{url} gave "));
    report.says("device", " ok ", "the CPU: ");
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
    let served = Served::start(&["--gitlab", &url]);
    gitlab.until_fetched(1);
    let state = served.state();

    let report = doctor(&served, state, &[]);
    assert_eq!(report.code, 1);
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
        assert_eq!(report.code, 1);
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
    assert_eq!(report.code, 1);

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
