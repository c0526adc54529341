//! `cuda/hopper.cuh`.

use std::sync::OnceLock;

use crate::product::{Count, Epilogue, Inputs, Operation, assert_product};
use crate::program::{Case, ORDERS, Program, STRAGGLING, bits};

use Epilogue::*;

#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Whether tiles are 256 wide or 128.
    wide: bool,
    order: usize,
    blocks: usize,
    operation: Operation,
}

/// Compiled once for the tests of this file.
fn program() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| Program::build("hopper"))
}

fn run(count: &Count, shape: Shape, inputs: &Inputs) -> Vec<f32> {
    let Shape { wide, order, blocks, operation } = shape;
    let Operation { epilogue, bias, n, k, .. } = operation;
    count.0.set(count.0.get() + 1);
    let numbers = [usize::from(wide), epilogue as usize, order, usize::from(bias), blocks, n, k];
    let case = operation.buffers(Case::new(&numbers), inputs);
    operation.counted(program().reals(case, &format!("{shape:?}")), &shape)
}

/// Rows and bucket, n and k, blocks. One row; every edge of 64 and of 128 rows; a tile of the bucket without rows; n of
/// less than a tile, of whole ones, with every tail that a supported model has (16 of 256: a vocabulary of 32016) and
/// the least; k of one stage and less, of fewer stages than are copied ahead, of whole ones, and of so many that all of
/// them come round twice; more blocks than tiles, and tiles that one block goes through, the list's second round of
/// rows among them.
const SHAPES: [(usize, usize, usize, usize, usize); 13] = [
    (1, 1, 16, 8, 1),
    (63, 64, 48, 64, 2),
    (64, 130, 272, 136, 3),
    (65, 65, 256, 192, 1),
    (127, 128, 144, 72, 2),
    (128, 256, 128, 576, 1),
    (129, 129, 400, 128, 5),
    (200, 200, 264, 200, 2),
    (200, 200, 16, 896, 1),
    (257, 300, 528, 120, 3),
    (129, 200, 144, 840, 1),
    (2176, 2180, 16, 16, 2),
    (2049, 2049, 272, 8, 3),
];

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn many_rows_are_right_in_both_tiles_with_every_epilogue_and_ragged_shape() {
    let count = Count::default();
    for (i, (rows, bucket, n, k, blocks)) in SHAPES.into_iter().enumerate() {
        let inputs = Inputs::new(bucket, n, k);
        for wide in [false, true] {
            for (j, epilogue) in [Set, Add, Silu, Gelu].into_iter().enumerate() {
                if epilogue.is_gate() && n % 16 != 0 {
                    continue;
                }
                let (order, bias) = ((i + j) % 5, (i + j + usize::from(wide)).is_multiple_of(2));
                let operation = Operation { epilogue, bias, rows, bucket, n, k };
                let shape = Shape { wide, order, blocks, operation };
                assert_product(operation, &inputs, &run(&count, shape, &inputs), &shape);
            }
        }
    }
    eprintln!("{} products", count.0.get());
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_row_of_many_has_the_same_bits_alone_in_both_tiles_on_any_number_of_blocks_and_in_every_order_of_threads()
{
    let count = Count::default();
    let (rows, n, k) = (131, 304, 328);
    let inputs = Inputs::new(rows, n, k);
    for epilogue in [Set, Add, Silu] {
        let operation = Operation { epilogue, bias: true, rows, bucket: rows, n, k };
        let together = run(&count, Shape { wide: true, order: 0, blocks: 2, operation }, &inputs);
        let width = together.len() / rows;
        for wide in [false, true] {
            for (order, blocks) in ORDERS.into_iter().chain([STRAGGLING]).zip([1, 2, 3, 20, 1]) {
                let again = run(&count, Shape { wide, order, blocks, operation }, &inputs);
                assert_eq!(bits(&again), bits(&together), "wide {wide}, {blocks} blocks, {operation:?}");
            }
            for row in [0, 70, 130] {
                let alone = Operation { rows: 1, bucket: 1, ..operation };
                let shape = Shape { wide, order: 1, blocks: 1, operation: alone };
                let alone = run(&count, shape, &inputs.row(row, n, k));
                assert_eq!(bits(&alone), bits(&together[row * width..][..width]), "row {row} {shape:?}");
            }
        }
    }
    eprintln!("{} products", count.0.get());
}
