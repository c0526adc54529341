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

/// A log whose files are closed after a few records.
fn small(keep: usize) -> (tempfile::TempDir, Audit) {
    let directory = tempfile::tempdir().unwrap();
    let audit = Audit { rotation: Rotation { max_size: 1500, keep }, ..Audit::at(directory.path()) };
    (directory, audit)
}

fn fill(audit: &Audit, n: usize) {
    for i in 0..n {
        audit.record(&Who::Server, &login(&format!("way {i}"))).unwrap();
    }
}

/// What all files say, with the ways of the logins among it.
fn all(audit: &Audit) -> (Checked, Vec<String>) {
    let mut ways = Vec::new();
    let checked = audit.check(None, |entry| ways.extend(entry.fields.get("by").map(|by| by.to_string())));
    (checked.unwrap_or_else(|(path, damage)| panic!("{}: {damage}", path.display())), ways)
}

#[test]
fn full_files_are_closed_under_many_writers_and_make_one_chain() {
    let (_directory, audit) = small(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let audit = audit.clone();
            scope.spawn(move || {
                for i in 0..25 {
                    audit.record(&Who::Server, &login(&format!("{thread} {i}"))).unwrap();
                    // Whoever reads meanwhile finds a whole chain too.
                    assert_eq!(all(&audit).0.torn, 0);
                }
            });
        }
    });
    let (checked, mut ways) = all(&audit);
    ways.sort();
    ways.dedup();
    assert_eq!(ways.len(), 100, "each record is there");
    let closed = audit.closed().unwrap();
    assert!(closed.len() > 10, "{closed:?}");
    assert_eq!(
        checked.head.number,
        100 + 2 * closed.len() as u64,
        "and one at both ends of each closed file"
    );
    assert_eq!(checked.begin, Head::default());
    for (number, path) in &closed {
        let text = fs::read_to_string(path).unwrap();
        let last = text.lines().last().unwrap();
        assert!(
            last.contains("\"event\":\"file_closed\"") && last.contains(&format!("\"n\":{number},")),
            "{last}"
        );
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_crash_between_the_steps_of_closing_a_file_is_mended_by_the_next_record() {
    let mend = |what: &str, crash: &dyn Fn(&Audit)| {
        let (_directory, audit) = small(0);
        fill(&audit, 3);
        crash(&audit);
        let before = audit.check(None, |_| {}).unwrap_or_else(|(_, e)| panic!("{what}: {e}")).head.number;
        fill(&audit, 1);
        let (checked, ways) = all(&audit);
        assert_eq!(ways.len(), 4, "{what}");
        assert!(checked.head.number > before && checked.torn == 0, "{what}");
        assert_eq!(checked.begin, Head::default(), "{what}");
        assert_eq!(audit.closed().unwrap().len(), 1, "{what}");
    };
    let last_line = |audit: &Audit| {
        let unbounded = Audit { rotation: Rotation::default(), ..audit.clone() };
        unbounded.record(&Who::Server, &Event::FileClosed).unwrap();
    };
    let renamed = |audit: &Audit| {
        last_line(audit);
        let number = verdict(audit).unwrap().head.number;
        fs::rename(audit.path(), audit.path().with_file_name(format!("audit-{number:012}.jsonl"))).unwrap();
    };
    mend("the last record is there, the name is the old one", &last_line);
    mend("half of the last record is there", &|audit| {
        last_line(audit);
        let text = fs::read(audit.path()).unwrap();
        fs::write(audit.path(), &text[..text.len() - 20]).unwrap();
        // Full all the same, so that the next record closes it.
        let full = Audit { rotation: Rotation { max_size: 1, keep: 0 }, ..audit.clone() };
        let mut file = full.open().unwrap();
        let (last, torn, _) = Audit::end(audit.path(), &mut file).unwrap();
        full.close(&mut file, &last.unwrap(), torn).unwrap();
    });
    mend("it has its new name, and there is no next one", &renamed);
    mend("the next one is empty", &|audit| {
        renamed(audit);
        fs::write(audit.path(), "").unwrap();
    });
    mend("the next one has half a record", &|audit| {
        renamed(audit);
        fs::write(audit.path(), "{\"n\":5,\"time\":").unwrap();
    });
}

#[test]
fn a_file_that_is_missing_in_the_middle_or_edited_is_found_and_removed_old_ones_are_said() {
    let (_directory, audit) = small(0);
    fill(&audit, 40);
    let closed: Vec<PathBuf> = audit.closed().unwrap().into_iter().map(|(_, path)| path).collect();
    assert!(closed.len() >= 4, "{closed:?}");
    let noted = all(&audit).0.head;

    let middle = fs::read(&closed[2]).unwrap();
    fs::remove_file(&closed[2]).unwrap();
    let (path, damage) = audit.check(None, |_| {}).unwrap_err();
    assert_eq!(path, closed[3], "{damage}");
    assert!(damage.to_string().contains("taken out"), "{damage}");
    for edited in [
        String::from_utf8(middle.clone()).unwrap().replacen("\"way ", "\"wax ", 1).into_bytes(),
        middle[..middle.len() - 2].to_vec(),
        middle[..middle.len() / 2].to_vec(),
    ] {
        fs::write(&closed[2], edited).unwrap();
        let (path, damage) = audit.check(None, |_| {}).unwrap_err();
        assert!(path == closed[2] || path == closed[3], "{}: {damage}", path.display());
    }
    fs::write(&closed[2], &middle).unwrap();

    for older in &closed[..2] {
        fs::remove_file(older).unwrap();
    }
    let checked = audit.check(Some(&noted), |_| {}).map_err(|(_, e)| e).unwrap();
    assert!(checked.begin.number > 0 && checked.passed == Some(true), "{checked:?}");
    let first: Head = Head { number: 1, hash: "0".repeat(64) };
    assert_eq!(audit.check(Some(&first), |_| {}).unwrap().passed, Some(false));
    // What was written last cannot be passed off as files that were closed long ago.
    let text = fs::read_to_string(&closed[2]).unwrap();
    fs::write(&closed[2], text.split_once('\n').unwrap().1).unwrap();
    let (path, damage) = audit.check(None, |_| {}).unwrap_err();
    assert!(path == closed[2] && damage.to_string().contains("taken out"), "{damage}");
}

#[test]
fn as_many_closed_files_are_kept_as_is_asked_and_the_log_says_which_went() {
    let (_directory, audit) = small(2);
    fill(&audit, 40);
    assert_eq!(audit.closed().unwrap().len(), 2);
    let mut removed = Vec::new();
    let checked = audit.check(None, |entry| removed.extend(entry.fields.get("removed").cloned())).unwrap();
    assert!(checked.begin.number > 10, "{checked:?}");
    assert!(removed.iter().any(|names| names[0].as_str().is_some_and(|name| name.starts_with("audit-0"))));
}

#[test]
fn a_file_in_the_way_of_a_closed_one_is_not_written_over() {
    let (_directory, audit) = small(0);
    fill(&audit, 3);
    let number = verdict(&audit).unwrap().head.number;
    let full = Audit { rotation: Rotation { max_size: 1, keep: 0 }, ..audit.clone() };
    let there = audit.path().with_file_name(format!("audit-{:012}.jsonl", number + 1));
    fs::write(&there, "mine").unwrap();
    let error = full.record(&Who::Server, &login("next")).unwrap_err();
    assert!(error.to_string().contains("is there already"), "{error}");
    assert_eq!(fs::read_to_string(&there).unwrap(), "mine");
}
