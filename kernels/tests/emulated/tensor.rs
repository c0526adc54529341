//! `cuda/tensor.cuh`: the emulation of tensor cores lays fragments out as the device does.

use crate::program::{Case, ORDERS, Program, halves};

#[test]
#[ignore = "compiles C++: the full tier runs it"]
fn a_tile_that_was_copied_loaded_and_multiplied_is_the_product() {
    let program = Program::build("tensor");
    let (a, b) = (halves(1, 16 * 16), halves(2, 8 * 16));
    for order in ORDERS {
        for transposed in [false, true] {
            let case = Case::new(&[order, transposed.into()]).bf16(&a).bf16(&b).output(4 * 16 * 8);
            let sum = program.reals(case, "a tile");
            for (i, got) in sum.iter().enumerate() {
                let (row, column) = (i / 8, i % 8);
                let of = |k: usize| if transposed { b[k * 8 + column] } else { b[column * 16 + k] };
                let exact: f64 = (0..16).map(|k| a[row * 16 + k].to_f64() * of(k).to_f64()).sum();
                assert!((f64::from(*got) - exact).abs() < 1e-6, "{row} {column}: {got} instead of {exact}");
            }
        }
    }
}
