//! `cuda/hopper_experts.cuh`.

use std::cell::Cell;
use std::sync::OnceLock;

use half::bf16;

use crate::expert_product::{GELU, Grouped, SET, SILU};
use crate::program::{Case, ORDERS, Program, STRAGGLING, halves};

/// Compiled once for the tests of this file.
fn program() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| Program::build("hopper_experts"))
}

#[derive(Clone, Copy, Debug)]
struct How {
    /// Whether tiles are 256 wide or 128.
    wide: bool,
    epilogue: usize,
    order: usize,
    blocks: usize,
}

/// The bytes of the output. A row more than there are is room that must stay as it was.
fn run(count: &Cell<usize>, grouped: &Grouped<'_>, how: How, x: &[bf16], w: &[bf16]) -> Vec<u8> {
    let How { wide, epilogue, order, blocks } = how;
    let Grouped { counts, n, k } = *grouped;
    count.set(count.get() + 1);
    let width = if epilogue == SET { 4 * n } else { n };
    let numbers = [usize::from(wide), epilogue, order, blocks, counts.len(), n, k];
    let case = Case::new(&numbers).u32(&grouped.starts()).bf16(x).bf16(w);
    let case = case.output((grouped.rows() + 1) * width);
    let mut answer = program().answer(case, &format!("{counts:?} rows of {k} by {n}, {how:?}"));
    let beyond = answer.split_off(grouped.rows() * width);
    assert!(beyond.iter().all(|byte| *byte == 0xff), "{counts:?} {how:?}: a row beyond the last changed");
    answer
}

/// Rows by expert, n and k, blocks. One expert, and 64; experts without rows first, between and last; one row; tiles that
/// are full, short by one, one too long; n of less than a tile and of several with tails; k of every tail of a stage, of a
/// few and of so many that all stages come round twice; more blocks than tiles, and blocks that pass whole experts by;
/// an expert with more row tiles than take turns.
const SHAPES: [(&[usize], usize, usize, usize); 13] = [
    (&[1], 16, 8, 1),
    (&[70], 48, 72, 4),
    (&[0, 3, 0, 17, 1, 0, 0, 0], 272, 136, 3),
    (&[0, 0, 0, 0, 0, 0, 0, 1], 144, 200, 2),
    (&[65, 0], 256, 576, 1),
    (&[128, 127, 129, 0], 144, 64, 5),
    (&[0, 1, 0, 0, 0, 0, 0, 2, 0, 5, 0], 16, 840, 1),
    (&[130, 2, 64], 400, 128, 2),
    (&[1, 1, 1, 1, 1, 1, 1, 1], 528, 24, 7),
    (&[0, 256, 300, 0, 128], 304, 96, 4),
    (&[2060, 5], 272, 16, 3),
    (
        &[
            2, 0, 1, 0, 0, 3, 0, 0, 0, 130, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 7,
        ],
        144,
        40,
        3,
    ),
    (&[0, 0, 0], 64, 64, 2),
];

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn many_rows_are_multiplied_with_the_weight_of_their_expert_in_both_tiles() {
    let count = Cell::new(0);
    for (i, (counts, n, k, blocks)) in SHAPES.into_iter().enumerate() {
        let grouped = Grouped { counts, n, k };
        // A chunk more, so that there is something to point at where there are no rows.
        let (x, w) = (halves(71, (grouped.rows() + 1) * k), halves(72, counts.len() * n * k));
        for wide in [false, true] {
            for epilogue in [SET, SILU, GELU] {
                let order = (i + epilogue) % 5;
                let answer = run(&count, &grouped, How { wide, epilogue, order, blocks }, &x, &w);
                grouped.check(epilogue, &x, &w, &answer);
            }
        }
    }
    eprintln!("grouped on Hopper: {} cases", count.get());
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_row_of_an_expert_has_the_same_bits_alone_in_both_tiles_on_any_blocks_and_in_every_order_of_threads() {
    let count = Cell::new(0);
    let (counts, n, k) = ([5, 0, 133, 20], 304, 328);
    let grouped = Grouped { counts: &counts, n, k };
    let (x, w) = (halves(73, grouped.rows() * k), halves(74, counts.len() * n * k));
    for epilogue in [SET, SILU] {
        let how = How { wide: true, epilogue, order: 0, blocks: 2 };
        let together = run(&count, &grouped, how, &x, &w);
        let width = together.len() / grouped.rows();
        for wide in [false, true] {
            for (order, blocks) in ORDERS.into_iter().chain([STRAGGLING]).zip([1, 2, 3, 20, 1]) {
                let how = How { wide, epilogue, order, blocks };
                assert!(run(&count, &grouped, how, &x, &w) == together, "{how:?}");
            }
            for (row, expert) in [(0, 0), (4, 0), (5, 2), (137, 2), (138, 3), (157, 3)] {
                let mut own = [0; 4];
                own[expert] = 1;
                let (grouped, x) = (Grouped { counts: &own, n, k }, &x[row * k..][..k]);
                let alone = run(&count, &grouped, How { wide, epilogue, order: 1, blocks: 2 }, x, &w);
                assert!(alone == together[row * width..][..width], "row {row}, wide {wide}");
            }
        }
    }
    eprintln!("grouped on Hopper: {} cases", count.get());
}
