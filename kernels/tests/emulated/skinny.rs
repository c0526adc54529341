//! `cuda/skinny.cu`.

use half::bf16;

use crate::program::{Case, ORDERS, Program, bits, halves};

#[derive(Clone, Copy, Debug)]
struct Shape {
    /// 0: a warp has the whole of k; 1: the warps of a block share it.
    class: usize,
    order: usize,
    m: usize,
    n: usize,
    k: usize,
}

fn product(program: &Program, shape: Shape, x: &[bf16], w: &[bf16]) -> Vec<f32> {
    let Shape { class, order, m, n, k } = shape;
    let case = Case::new(&[class, order, m, n, k]).bf16(x).bf16(w).output(4 * m * n);
    program.reals(case, &format!("{shape:?}"))
}

fn assert_product(shape: Shape, x: &[bf16], w: &[bf16], y: &[f32]) {
    for row in 0..shape.m {
        for n in 0..shape.n {
            let terms = x[row * shape.k..][..shape.k].iter().zip(&w[n * shape.k..][..shape.k]);
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), (x, w)| {
                let term = x.to_f64() * w.to_f64();
                (sum + term, size + term.abs())
            });
            let got = f64::from(y[row * shape.n + n]);
            // f32 sums of at most k terms: far inside k half-ulps of the sum of magnitudes. NaN (unwritten) fails.
            let allowed = size * shape.k as f64 * f64::from(f32::EPSILON) / 16.0;
            assert!((got - sum).abs() <= allowed, "{shape:?} row {row} n {n}: {got} instead of {sum}");
        }
    }
}

/// Whole tiles and rounds, a partial last tile, rows shorter than a warp's stride, an odd number of rounds.
const SHAPES: [(usize, usize); 5] = [(32, 2048), (37, 1024), (3, 8), (5, 1288), (66, 520)];

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_skinny_product_is_right_for_every_row_count_and_ragged_shape() {
    let program = Program::build("skinny");
    for (n, k) in SHAPES {
        for m in 1..=8 {
            let (x, w) = (halves(1, m * k), halves(2, n * k));
            for class in [0, 1] {
                let shape = Shape { class, order: 0, m, n, k };
                assert_product(shape, &x, &w, &product(&program, shape, &x, &w));
            }
        }
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_row_has_the_same_bits_alone_in_a_batch_and_in_every_order_of_threads() {
    let program = Program::build("skinny");
    let (n, k) = (37, 2056);
    let (x, w) = (halves(3, 8 * k), halves(4, n * k));
    for class in [0, 1] {
        let together = product(&program, Shape { class, order: 0, m: 8, n, k }, &x, &w);
        for order in ORDERS {
            let again = product(&program, Shape { class, order, m: 8, n, k }, &x, &w);
            assert_eq!(bits(&again), bits(&together), "order {order}");
        }
        for row in 0..8 {
            let alone = product(&program, Shape { class, order: 0, m: 1, n, k }, &x[row * k..][..k], &w);
            assert_eq!(bits(&alone), bits(&together[row * n..][..n]), "row {row}");
        }
    }
}
