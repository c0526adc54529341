//! The emulation itself: it notices what is wrong.

use crate::program::Program;

#[test]
#[ignore = "compiles C++: the full tier runs it"]
fn the_emulation_notices_planted_faults() {
    let program = Program::build("faults");
    let sums = |fault: &str| {
        let output = program.run(&[fault], Vec::new());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    assert_eq!(sums("none").1, "64 64 64");
    assert_eq!(sums("missing barrier").1, "32 64 64", "the result depends on the order");
    assert_eq!(sums("chained").1, "32 32", "weights are read before the wait");
    assert_eq!(sums("wait too short").1, "nan nan nan", "the copy has not come");
    for (fault, told) in [
        ("barrier under if", "a barrier that not all threads reach"),
        ("one too far", "heap-buffer-overflow"),
        ("one too far in shared memory", "heap-buffer-overflow"),
        ("not aligned", "an address that is not aligned"),
        ("return without waiting", "returns without wait_for_past"),
        ("half of a block waits", "touched before wait_for_past"),
        ("read before the wait", "touched before wait_for_past"),
        ("write before the wait", "touched before wait_for_past"),
        ("copy before the wait", "touched before wait_for_past"),
    ] {
        let (ended_well, _, report) = sums(fault);
        assert!(!ended_well && report.contains(told), "{fault}: {report}");
    }
}
