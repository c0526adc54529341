//! `cuda/warpgroup.cuh`: the emulation of warpgroups multiplies what the descriptors describe, and notices what is wrong.

use crate::program::{Case, ORDERS, Program, STRAGGLING, halves};

/// What becomes of a planted fault.
enum End {
    /// The sums are right.
    Right,
    /// They are not.
    Wrong,
    /// The emulation says so.
    Told(&'static str),
}

use End::*;

/// In the order of the list in `warpgroup.cc`.
const FAULTS: [(&str, End); 16] = [
    ("none", Right),
    ("not published", Wrong),
    ("not copied", Wrong),
    ("not swizzled", Wrong),
    ("wrong stride", Wrong),
    ("not at the pattern", Told("does not begin at 1024 bytes")),
    ("beyond shared memory", Told("reads beyond shared memory")),
    ("not ordered", Told("whose use nothing ordered")),
    ("read too early", Wrong),
    ("written too early", Told("written to while a product read it")),
    ("not all warps", Told("not all warps of a warpgroup begin")),
    ("not the same matrix", Told("multiply different matrices")),
    ("never waited for", Told("ends before its products")),
    ("too few arrivals", Told("a barrier that not all threads reach")),
    ("wrong parity", Wrong),
    ("not made", Told("a barrier that nobody made")),
];

#[test]
#[ignore = "compiles C++: the full tier runs it"]
fn a_product_of_a_warpgroup_is_what_its_descriptors_say_and_planted_faults_are_noticed() {
    let program = Program::build("warpgroup");
    let (a, b) = (halves(1, 64 * 64), halves(2, 128 * 64));
    let wanted: Vec<f64> = (0..64 * 128)
        .map(|i| (0..64).map(|k| a[i / 128 * 64 + k].to_f64() * b[i % 128 * 64 + k].to_f64()).sum())
        .collect();
    for (fault, (name, end)) in FAULTS.iter().enumerate() {
        let mut noticed = false;
        for order in ORDERS.into_iter().chain([STRAGGLING]) {
            let case = Case::new(&[order, fault]).bf16(&a).bf16(&b).output(4 * 64 * 128);
            let output = program.run(&[], case.into_bytes());
            let said = String::from_utf8_lossy(&output.stderr);
            let sums = output.stdout.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes));
            let right = sums.len() == wanted.len()
                && sums.zip(&wanted).all(|(sum, wanted)| (f64::from(sum) - wanted).abs() < 1e-4);
            noticed |= match end {
                Right => false,
                Wrong => !right,
                Told(told) => !output.status.success() && said.contains(told),
            };
            if let Right = end {
                assert!(output.status.success() && right, "order {order}: {said}");
            }
        }
        assert!(noticed || matches!(end, Right), "{name}: nothing was noticed");
    }
}
