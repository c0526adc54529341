//! The dashboard and the alerts that are shipped name figures that this server tells, and nothing else.

mod watched;

use std::collections::BTreeSet;
use std::path::Path;

use watched::Watched;

/// Figures of upstreams and of GitLab, which a server without them does not tell.
const ELSEWHERE: [&str; 3] =
    ["hearth_upstream_requests_total", "hearth_upstream_failures_total", "hearth_gitlab_keys_age_seconds"];

/// The figures that a text names.
fn named(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c| !word(c)).filter(|word| word.starts_with("hearth_"));
    words.map(str::to_owned).collect()
}

/// The figures that a server tells, by the names of their rows.
fn told(figures: &str) -> BTreeSet<String> {
    let rows = figures.lines().filter(|line| !line.starts_with('#'));
    rows.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect()
}

/// A driver's management library that was made here, in a directory for `LD_LIBRARY_PATH`.
fn driver() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/watched/nvml.c");
    let made = std::process::Command::new("gcc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(directory.path().join("libnvidia-ml.so.1"))
        .arg(source)
        .status();
    assert!(made.unwrap().success(), "gcc makes the stand-in");
    directory
}

#[test]
fn a_hot_gpu_is_told_of_and_a_host_without_one_says_nothing() {
    let driver = driver();
    let server = Watched::start(&[("LD_LIBRARY_PATH", driver.path().to_str().unwrap())]);
    let figures = server.ask(&server.metrics, "GET", "/metrics", &[], "").body;
    for line in [
        r#"hearth_gpu_temperature_celsius{gpu="0"} 91.0"#,
        r#"hearth_gpu_power_watts{gpu="0"} 402.4"#,
        r#"hearth_gpu_throttled{gpu="0",reason="heat"} 1"#,
        r#"hearth_gpu_throttled{gpu="0",reason="power_limit"} 1"#,
        r#"hearth_gpu_throttled{gpu="0",reason="hardware"} 0"#,
    ] {
        assert!(figures.lines().any(|l| l == line), "no {line} in {figures}");
    }
    let screen = server.verb(&["status"]).out;
    for words in [
        "GPU 0 Stand-in GPU · 91 °C · 402 of 700 W · 1200 MHz · 60.0 of 80.0 GiB",
        "GPU 0 is held back: heat.",
    ] {
        assert!(screen.contains(words), "no {words} in {screen}");
    }
    let (cookie, _) = server.session();
    let page = server.ask(&server.console, "GET", "/", &[("cookie", &cookie)], "").body;
    assert!(page.contains("GPU 0") && page.contains("91 °C") && page.contains("power limit"), "{page}");

    let without = Watched::start(&[
        ("HEARTH__ENGINE__DEVICE", "cpu"),
        ("LD_LIBRARY_PATH", driver.path().to_str().unwrap()),
    ]);
    let figures = without.ask(&without.metrics, "GET", "/metrics", &[], "").body;
    assert!(!figures.contains("hearth_gpu_"), "{figures}");
    assert!(!without.verb(&["status"]).out.contains("GPU"));
}

#[test]
fn every_figure_of_the_dashboard_and_of_the_alerts_is_told() {
    let driver = driver();
    let server = Watched::start(&[("LD_LIBRARY_PATH", driver.path().to_str().unwrap())]);
    assert_eq!(server.complete("def main(", &[]).status, 200);
    assert_eq!(server.verb(&["reload", "--wait"]).code, 0);
    let told = told(&server.ask(&server.metrics, "GET", "/metrics", &[], "").body);
    for path in ["packaging/grafana/hearth.json", "packaging/prometheus/rules.yaml"] {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let named = named(&text);
        assert!(named.len() >= 10, "{path} names {named:?}");
        for name in named {
            assert!(
                told.contains(&name) || ELSEWHERE.contains(&name.as_str()),
                "{path} names {name}, which is not among {told:?}"
            );
        }
    }
}

#[test]
fn the_dashboard_is_what_its_script_writes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/grafana");
    let kept = std::fs::read_to_string(folder.join("hearth.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&kept).expect("the dashboard is JSON");
    let Ok(made) = std::process::Command::new("python3").arg(folder.join("make.py")).output() else {
        // Where there is no Python nobody can have written another one.
        return;
    };
    assert_eq!(String::from_utf8(made.stdout).unwrap(), kept, "run packaging/grafana/make.py again");
}
