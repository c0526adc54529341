//! What packages are made of: the manual, completions, the settings file and the unit, held against the binary.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hearth::config::KEYS;

fn hearth(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command.args(arguments).env_clear().output().unwrap()
}

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

fn packaged(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The verbs that `hearth VERB… --help` lists.
fn verbs(of: &[&str]) -> Vec<String> {
    let help = text(&hearth(&[of, &["--help"]].concat()).stdout);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    listed
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

fn pages() -> (tempfile::TempDir, BTreeSet<String>) {
    let dir = tempfile::tempdir().unwrap();
    let made = hearth(&["man", "--to", dir.path().to_str().unwrap()]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let names = fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    let names = names.collect();
    (dir, names)
}

#[test]
fn every_verb_that_help_lists_has_a_page_and_completes() {
    let (_dir, pages) = pages();
    let shells = ["bash", "zsh", "fish"].map(|shell| (shell, text(&hearth(&["completions", shell]).stdout)));
    let top = verbs(&[]);
    assert!(top.contains(&"serve".to_owned()), "{top:?}");
    for verb in &top {
        assert!(pages.contains(&format!("hearth-{verb}.1")), "{verb}: {pages:?}");
        for (shell, script) in &shells {
            assert!(script.contains(verb.as_str()), "{shell} does not complete {verb}");
        }
        for below in verbs(&[verb]) {
            assert!(pages.contains(&format!("hearth-{verb}-{below}.1")), "{verb} {below}: {pages:?}");
        }
    }
    assert!(!pages.contains("hearth-man.1"), "a verb for packages is in the manual");
}

#[test]
fn the_manual_has_every_setting_and_its_default() {
    let (dir, _) = pages();
    let page = fs::read_to_string(dir.path().join("hearth.toml.5")).unwrap().replace("\\-", "-");
    for key in KEYS {
        let (section, name) = key.name.split_once('.').unwrap();
        let section = page.split(".SH ").find(|part| part.starts_with(&format!("[{section}]")));
        let section = section.unwrap_or_else(|| panic!("no section of {}", key.name));
        let term = section.lines().find(|line| line.starts_with(&format!("\\fB{name}\\fR ")));
        let term = term.unwrap_or_else(|| panic!("{} is not in the manual", key.name));
        assert!(term.contains(key.default), "{}: {term}", key.name);
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_named_with_what_to_do() {
    let failed = hearth(&["man", "--to", "/proc/nothing/here"]);
    assert_eq!(failed.status.code(), Some(1));
    let said = text(&failed.stderr);
    assert!(said.contains("/proc/nothing/here") && said.contains("fix:"), "{said}");
}

/// As shipped, and with every line that it offers in force.
#[test]
fn the_settings_file_is_valid_and_so_is_all_that_it_offers() {
    let shipped = packaged("debian/hearth.toml");
    // An offer is `#` and a setting or a table; what explains has a blank after its `#`.
    let offered: Vec<&str> = shipped
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(offer) if !offer.is_empty() && !offer.starts_with(' ') => offer,
            _ => line,
        })
        .collect();
    let offered = offered.join("\n");
    assert!(offered.lines().any(|line| line.starts_with("listen =")), "{offered}");
    let dir = tempfile::tempdir().unwrap();
    for (name, settings) in [("shipped.toml", &shipped), ("offered.toml", &offered)] {
        let file: PathBuf = dir.path().join(name);
        fs::write(&file, settings).unwrap();
        let checked = hearth(&["--config", file.to_str().unwrap(), "config", "check"]);
        assert!(checked.status.success(), "{name}: {}", text(&checked.stderr));
    }
}

#[test]
fn the_package_has_the_version_of_the_binary() {
    let changelog = packaged("debian/changelog");
    let version = changelog.split(['(', ')']).nth(1).unwrap();
    let upstream = version.rsplit_once('-').map_or(version, |(upstream, _revision)| upstream);
    assert_eq!(upstream, env!("CARGO_PKG_VERSION"));
}

/// What the unit runs, and the endings after which it does not run it again.
#[test]
fn the_unit_speaks_of_verbs_and_exit_codes_that_there_are() {
    let unit = packaged("systemd/hearth.service");
    let value = |line: &str, name: &str| line.strip_prefix(name).map(str::to_owned);
    let commands: Vec<String> =
        unit.lines().filter_map(|l| Some(l.strip_prefix("Exec")?.split_once('=')?.1.to_owned())).collect();
    assert_eq!(commands.len(), 3, "{commands:?}");
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        assert_eq!(words[0], "/usr/bin/hearth");
        let known = hearth(&[&words[1..], &["--help"]].concat());
        assert!(known.status.success(), "{command}: {}", text(&known.stderr));
    }
    let help = text(&hearth(&["--help"]).stdout);
    let codes = unit.lines().find_map(|line| value(line, "RestartPreventExitStatus=")).unwrap();
    for code in codes.split_whitespace() {
        assert!(
            help.lines().any(|line| line.split_whitespace().next() == Some(code)),
            "exit code {code} is not in\n{help}"
        );
    }
}
