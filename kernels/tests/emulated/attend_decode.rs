//! `cuda/attend_decode.cu` and the part of `cuda/attend_plan.cu` that feeds it.

use std::sync::LazyLock;

use half::bf16;

use crate::paged::{GEOMETRIES, Part, Scene, halves_of, words_of};
use crate::program::{Case, ORDERS, Program};

static PROGRAM: LazyLock<Program> = LazyLock::new(|| Program::build("attend_decode"));

/// How a step is launched.
#[derive(Clone, Copy, Debug)]
struct Launch {
    order: usize,
    /// Blocks of the grid.
    blocks: usize,
    /// Positions of a piece.
    piece: usize,
    /// How often, one after the other.
    times: usize,
}

const PLAIN: Launch = Launch { order: 0, blocks: 3, piece: 64, times: 1 };

fn pieces(scene: Scene, part: &Part, piece: usize) -> usize {
    let pieces = |end: usize| (end - 1) / piece - end.saturating_sub(scene.window()) / piece + 1;
    (part.context - part.rows + 1..=part.context).map(pieces).sum()
}

fn attend(scene: Scene, launch: Launch, parts: &[Part]) -> Vec<bf16> {
    let what = format!("{scene:?} {launch:?} {parts:?}");
    let step = scene.step(parts);
    let count: usize = parts.iter().map(|part| pieces(scene, part, launch.piece)).sum();
    let Launch { order, blocks, piece, times } = launch;
    let Scene { dim, kv_heads, group, .. } = scene;
    let case = Case::new(&[
        dim,
        usize::from(scene.e4m3),
        order,
        blocks,
        times,
        kv_heads,
        group,
        piece,
        scene.window(),
    ]);
    let case = step
        .buffers(case.real(scene.sharpness()))
        .output(32 * count)
        .output(0)
        .output(8)
        .output(4 * count * kv_heads * (16 + group * dim))
        .u32(&vec![0; count * kv_heads])
        .output(2 * step.rows() * scene.heads() * dim);
    let answer = PROGRAM.answer(case, &what);
    let (numbers, out) = answer.split_at(8 + 4 * count * kv_heads);
    let numbers = words_of(numbers);
    assert_eq!(numbers[..2], [count as u32, 0], "{what}: pieces and tiles");
    assert!(numbers[2..].iter().all(|n| *n == 0), "{what}: the next launch counts from {:?}", &numbers[2..]);
    halves_of(out)
}

fn one(sequence: usize, context: usize) -> Part {
    Part { sequence, rows: 1, context }
}

/// One position, a page but one, a page, one more, the ends of a round of the warps, of a piece, several pieces.
const CONTEXTS: [usize; 9] = [1, 15, 16, 17, 64, 65, 80, 128, 203];

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn one_row_attends_as_in_exact_arithmetic() {
    let mut cases = 0;
    for (dim, kv_heads, group) in GEOMETRIES {
        let scene = Scene { dim, kv_heads, group, window: None, e4m3: false };
        for (i, context) in CONTEXTS.into_iter().enumerate() {
            // Every length with the geometry of most models, some with the others.
            if (dim, group) == (128, 4) || i % 3 == 0 || context == 203 {
                let parts = [one(i, context)];
                let out = attend(scene, PLAIN, &parts);
                scene.assert_attention(&parts, &out, "one row");
                cases += 1;
            }
        }
    }
    eprintln!("attention: {cases} cases of one row");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_window_ends_at_every_place_of_a_page_and_of_a_piece() {
    let mut cases = 0;
    for (dim, kv_heads, group) in [(128, 2, 4), (256, 1, 2)] {
        for (window, context) in [
            (1, 1),
            (1, 40),
            (16, 48),
            (17, 48),
            (15, 48),
            (33, 33),
            (33, 32),
            (64, 128),
            (64, 130),
            (100, 203),
        ] {
            let scene = Scene { dim, kv_heads, group, window: Some(window), e4m3: false };
            let parts = [one(3, context)];
            let out = attend(scene, PLAIN, &parts);
            scene.assert_attention(&parts, &out, "a window");
            cases += 1;
        }
    }
    eprintln!("attention: {cases} cases of windows");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn keys_and_values_of_eight_bits_are_worth_what_their_scales_say() {
    let mut cases = 0;
    for (dim, kv_heads, group, window) in [(128, 2, 4, None), (128, 2, 1, Some(70)), (256, 1, 8, None)] {
        let scene = Scene { dim, kv_heads, group, window, e4m3: true };
        let parts = [one(0, 203), one(1, 17), one(2, 64)];
        let together = attend(scene, PLAIN, &parts);
        scene.assert_attention(&parts, &together, "eight bits");
        for (part, row) in parts.iter().zip(together.chunks(scene.heads() * scene.dim)) {
            assert_eq!(attend(scene, PLAIN, &[*part]), row, "{part:?} alone");
        }
        assert_eq!(attend(scene, Launch { order: 3, blocks: 7, ..PLAIN }, &parts), together);
        cases += 5;
    }
    eprintln!("attention: {cases} cases of eight bits");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_row_has_the_same_bits_alone_in_a_batch_on_every_grid_and_in_every_order() {
    let parts = [one(0, 130), one(1, 1), one(2, 64), one(3, 77), one(4, 16)];
    let mut cases = 0;
    for (scene, piece) in [
        (Scene { dim: 128, kv_heads: 2, group: 4, window: None, e4m3: false }, 64),
        (Scene { dim: 256, kv_heads: 1, group: 8, window: Some(70), e4m3: false }, 32),
    ] {
        let plain = Launch { piece, ..PLAIN };
        let together = attend(scene, plain, &parts);
        scene.assert_attention(&parts, &together, "a batch");
        for launch in ORDERS.map(|order| Launch { order, blocks: 5, ..plain }).into_iter().chain([
            Launch { blocks: 1, ..plain },
            Launch { blocks: 40, ..plain },
            Launch { times: 2, ..plain },
        ]) {
            assert_eq!(attend(scene, launch, &parts), together, "{launch:?}");
            cases += 1;
        }
        for (part, row) in parts.iter().zip(together.chunks(scene.heads() * scene.dim)) {
            assert_eq!(attend(scene, plain, &[*part]), row, "{part:?} alone");
            cases += 1;
        }
        // Rows of a draft, as if each had come alone.
        let draft = Part { sequence: 0, rows: 3, context: 130 };
        let drafted = attend(scene, plain, &[one(7, 5), draft]);
        for (i, row) in drafted.chunks(scene.heads() * scene.dim).skip(1).enumerate() {
            assert_eq!(attend(scene, plain, &[one(0, 128 + i)]), row, "row {i} of a draft");
        }
        cases += 4;
        let backwards: Vec<_> = parts.iter().rev().copied().collect();
        for (a, b) in attend(scene, plain, &backwards)
            .chunks(scene.heads() * scene.dim)
            .rev()
            .zip(together.chunks(scene.heads() * scene.dim))
        {
            assert_eq!(a, b, "backwards");
        }
        cases += 1;
    }
    eprintln!("attention: {cases} cases of the same bits");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn pieces_of_many_sequences_and_sizes_are_planned() {
    let scene = Scene { dim: 64, kv_heads: 1, group: 1, window: None, e4m3: false };
    // More sequences than the plan takes at once.
    let parts: Vec<_> = (0..260).map(|i| one(i, 1 + i % 5)).collect();
    let out = attend(scene, Launch { blocks: 130, ..PLAIN }, &parts);
    scene.assert_attention(&parts, &out, "many sequences");
    // A piece as long as a block of the grid takes, and the longest rings.
    let parts = [one(0, 1100)];
    for piece in [256, 1024] {
        let out = attend(scene, Launch { piece, ..PLAIN }, &parts);
        scene.assert_attention(&parts, &out, "long pieces");
    }
    eprintln!("attention: 3 cases of plans");
}
