//! `cuda/attend_prompt.cu` and the part of `cuda/attend_plan.cu` that feeds it.

use std::sync::LazyLock;

use half::bf16;

use crate::paged::{GEOMETRIES, Part, Scene, halves_of, words_of};
use crate::program::{Case, ORDERS, Program};

static PROGRAM: LazyLock<Program> = LazyLock::new(|| Program::build("attend_prompt"));

/// The order of threads and the blocks of the grid.
const PLAIN: (usize, usize) = (0, 4);

fn attend(scene: Scene, (order, blocks): (usize, usize), parts: &[Part]) -> Vec<bf16> {
    let what = format!("{scene:?} {order} {blocks} {parts:?}");
    let step = scene.step(parts);
    let Scene { dim, kv_heads, group, .. } = scene;
    let tiles: usize = parts.iter().map(|part| (part.rows * group).div_ceil(64)).sum();
    let case = Case::new(&[dim, usize::from(scene.e4m3), order, blocks, kv_heads, group, scene.window()]);
    let case = step.buffers(case.real(scene.sharpness())).output(8 * tiles).output(8);
    let answer = PROGRAM.answer(case.output(2 * step.rows() * scene.heads() * dim), &what);
    let (counts, out) = answer.split_at(8);
    assert_eq!(words_of(counts), [0, tiles as u32], "{what}: pieces and tiles");
    halves_of(out)
}

fn part(sequence: usize, rows: usize, context: usize) -> Part {
    Part { sequence, rows, context }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_chunk_attends_as_in_exact_arithmetic() {
    let mut cases = 0;
    for (dim, kv_heads, group) in GEOMETRIES {
        let scene = Scene { dim, kv_heads, group, window: None, e4m3: false };
        // A whole prompt of one row, a page, one tile of keys and one more; chunks that begin and end within a page, with
        // more pairs than a tile of rows and less; a chunk far into its sequence.
        let all = [
            part(0, 1, 1),
            part(1, 16, 16),
            part(2, 65, 65),
            part(3, 20, 45),
            part(4, 3, 130),
            part(5, 17, 64),
        ];
        for (i, one) in all.into_iter().enumerate() {
            if (dim, group) == (128, 4) || i == 3 || (i == 2 && dim != 256) {
                let out = attend(scene, PLAIN, &[one]);
                scene.assert_attention(&[one], &out, "a chunk");
                cases += 1;
            }
        }
    }
    eprintln!("attention: {cases} cases of one chunk");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_window_ends_at_every_place_of_a_page_and_of_a_tile() {
    let mut cases = 0;
    for (dim, kv_heads, group) in [(128, 1, 4), (256, 1, 2)] {
        // The window before the chunk, inside it, of one position; chunks whose first tile of keys no row sees whole.
        for (window, rows, context) in [
            (1, 20, 40),
            (16, 33, 80),
            (17, 5, 70),
            (64, 20, 150),
            (63, 20, 149),
            (100, 40, 110),
            (40, 70, 70),
        ] {
            let scene = Scene { dim, kv_heads, group, window: Some(window), e4m3: false };
            let parts = [part(3, rows, context)];
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
    for (dim, kv_heads, group, window) in [(128, 2, 4, None), (256, 2, 1, Some(70))] {
        let scene = Scene { dim, kv_heads, group, window, e4m3: true };
        let width = scene.heads() * dim;
        let whole = attend(scene, PLAIN, &[part(0, 75, 75)]);
        scene.assert_attention(&[part(0, 75, 75)], &whole, "eight bits");
        assert_eq!(
            attend(scene, (3, 3), &[part(1, 3, 20), part(0, 22, 75)])[3 * width..],
            whole[53 * width..]
        );
        cases += 2;
    }
    eprintln!("attention: {cases} cases of eight bits");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_row_has_the_same_bits_however_its_prompt_is_cut_and_whoever_is_beside_it() {
    let mut cases = 0;
    for (scene, length) in [
        (Scene { dim: 128, kv_heads: 1, group: 4, window: None, e4m3: false }, 100),
        (Scene { dim: 256, kv_heads: 2, group: 1, window: Some(37), e4m3: false }, 90),
    ] {
        let width = scene.heads() * scene.dim;
        let whole = attend(scene, PLAIN, &[part(0, length, length)]);
        scene.assert_attention(&[part(0, length, length)], &whole, "whole");
        for cut in [1, 16, 33, 89] {
            let first = attend(scene, PLAIN, &[part(0, cut, cut)]);
            assert_eq!(first, whole[..cut * width], "up to {cut}");
            let second = attend(scene, PLAIN, &[part(0, length - cut, length)]);
            assert_eq!(second, whole[cut * width..], "from {cut}");
            cases += 2;
        }
        // Three sequences, one of a single row, on grids of every kind and in every order.
        let parts = [part(1, 7, 20), part(0, 30, 80), part(2, 1, 66)];
        let together = attend(scene, PLAIN, &parts);
        scene.assert_attention(&parts, &together, "a batch");
        assert_eq!(together[7 * width..37 * width], whole[50 * width..80 * width], "in a batch");
        for launch in ORDERS.map(|order| (order, 3)).into_iter().chain([(0, 1), (0, 30)]) {
            assert_eq!(attend(scene, launch, &parts), together, "{launch:?}");
            cases += 1;
        }
        cases += 2;
    }
    eprintln!("attention: {cases} cases of the same bits");
}
