use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn login(by: &str) -> Event {
    Event::AdminLogin { by: by.to_owned(), peer: "127.0.0.1".to_owned() }
}

/// A log with `n` records, and its directory.
fn with(n: usize) -> (tempfile::TempDir, Audit) {
    let directory = tempfile::tempdir().unwrap();
    let audit = Audit::at(directory.path());
    for i in 0..n {
        audit.record(&Who::Server, &login(&format!("way {i}"))).unwrap();
    }
    (directory, audit)
}

fn verdict(audit: &Audit) -> Result<Checked, Damage> {
    check(io::BufReader::new(File::open(audit.path()).unwrap()), None, |_| {})
}

#[test]
fn records_make_a_chain_that_only_the_owner_can_read() {
    let (_directory, audit) = with(2);
    let by = "a \"quoted\" name\n,\"hash\":\"";
    let head = audit.record(&Who::User { uid: 7, name: Some("eve".to_owned()) }, &login(by)).unwrap();
    let mut entries = Vec::new();
    let text = fs::read(audit.path()).unwrap();
    let checked = check(&text[..], None, |entry| entries.push(entry)).unwrap();
    assert_eq!((checked.head, checked.torn), (head, 0));
    assert_eq!(entries.len(), 3);
    assert_eq!((entries[2].who.as_str(), &entries[2].fields["by"]), ("user eve (7)", &by.into()));
    assert_eq!(entries[2].event, "admin_login");
    assert_eq!(fs::metadata(audit.path()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn any_change_of_any_byte_breaks_the_chain() {
    let (_directory, audit) = with(3);
    let whole = fs::read(audit.path()).unwrap();
    // The end of the last line, newline included, is what a crash may leave: it counts as torn, and the head shows it.
    for at in 0..whole.len() - 1 {
        let mut text = whole.clone();
        text[at] ^= 1;
        assert!(check(&text[..], None, |_| {}).is_err(), "byte {at} of {}", whole.len());
    }
}

#[test]
fn lines_taken_out_put_in_or_moved_break_the_chain() {
    let (_directory, audit) = with(4);
    let text = fs::read_to_string(audit.path()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for order in [vec![0, 2, 3], vec![1, 2, 3], vec![0, 1, 1, 2, 3], vec![0, 2, 1, 3]] {
        let text: String = order.iter().map(|i| format!("{}\n", lines[*i])).collect();
        let damage = check(text.as_bytes(), None, |_| {}).unwrap_err().to_string();
        assert!(damage.contains("taken out, put in or moved"), "{damage}");
    }
}

#[test]
fn an_end_that_was_cut_off_shows_against_a_noted_head() {
    let (_directory, audit) = with(2);
    let noted = audit.record(&Who::Server, &login("last")).unwrap();
    let text = fs::read_to_string(audit.path()).unwrap();
    let noted: Head = noted.to_string().parse().unwrap();
    assert_eq!(check(text.as_bytes(), Some(&noted), |_| {}).unwrap().passed, Some(true));
    let cut: String = text.lines().take(2).map(|line| format!("{line}\n")).collect();
    assert_eq!(check(cut.as_bytes(), Some(&noted), |_| {}).unwrap().passed, Some(false));
    assert!("3:xyz".parse::<Head>().is_err());
}

#[test]
fn what_a_crash_left_of_a_record_is_taken_away_and_said() {
    let (_directory, audit) = with(2);
    let whole = fs::read(audit.path()).unwrap();
    let second = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
    for cut in [0, 1, second - 1, second, second + 1, whole.len() - 1] {
        fs::write(audit.path(), &whole[..cut]).unwrap();
        let torn = verdict(&audit).unwrap().torn;
        audit.record(&Who::Server, &login("next")).unwrap();
        let mut events = Vec::new();
        let text = fs::read(audit.path()).unwrap();
        check(&text[..], None, |entry| events.push((entry.event, entry.fields.get("bytes").cloned())))
            .unwrap();
        let said = events.iter().find(|(event, _)| event == "torn_entry_removed");
        assert_eq!(said.map(|(_, bytes)| bytes.clone()), (torn > 0).then(|| Some(torn.into())), "{cut}");
    }
}

#[test]
fn nothing_is_added_to_a_damaged_end() {
    let (_directory, audit) = with(2);
    let text = fs::read_to_string(audit.path()).unwrap().replace("way 1", "way 7");
    fs::write(audit.path(), &text).unwrap();
    let error = audit.record(&Who::Server, &login("next")).unwrap_err();
    assert!(error.to_string().contains("its hash is not that of its text"), "{error}");
    assert_eq!(fs::read_to_string(audit.path()).unwrap(), text);
}

#[test]
fn many_writers_make_one_chain() {
    let (_directory, audit) = with(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let audit = audit.clone();
            scope.spawn(move || {
                for i in 0..10 {
                    audit.record(&Who::Server, &login(&format!("{thread} {i}"))).unwrap();
                }
            });
        }
    });
    assert_eq!(verdict(&audit).unwrap().head.number, 40);
}

#[test]
fn a_file_behind_a_link_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = directory.path().join("elsewhere");
    fs::write(&elsewhere, "").unwrap();
    std::os::unix::fs::symlink(&elsewhere, directory.path().join(FILE)).unwrap();
    let error = Audit::at(directory.path()).record(&Who::Server, &login("x")).unwrap_err();
    assert!(matches!(error, AuditError::Disk { .. }), "{error}");
    assert_eq!(fs::read(&elsewhere).unwrap(), b"");
}

#[test]
fn an_entry_too_long_for_the_log_is_refused() {
    let (_directory, audit) = with(1);
    let error = audit.record(&Who::Server, &login(&"x".repeat(70_000))).unwrap_err();
    assert!(matches!(error, AuditError::TooLong { .. }), "{error}");
    assert_eq!(verdict(&audit).unwrap().head.number, 1);
}
