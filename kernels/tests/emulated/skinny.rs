//! `cuda/skinny.cu`.

use std::sync::OnceLock;

use half::bf16;

use crate::program::{Case, ORDERS, Program, bits, halves, numbers};

/// Compiled once for the tests of this file.
fn program() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| Program::build("skinny"))
}

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
    let case = Case::new(&[class, 0, order, 0, m, n, k]).bf16(x).bf16(w).f32(&[]).output(4 * m * n);
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
    let program = program();
    for (n, k) in SHAPES {
        for m in 1..=8 {
            let (x, w) = (halves(1, m * k), halves(2, n * k));
            for class in [0, 1] {
                let shape = Shape { class, order: 0, m, n, k };
                assert_product(shape, &x, &w, &product(program, shape, &x, &w));
            }
        }
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_row_has_the_same_bits_alone_in_a_batch_and_in_every_order_of_threads() {
    let program = program();
    let (n, k) = (37, 2056);
    let (x, w) = (halves(3, 8 * k), halves(4, n * k));
    for class in [0, 1] {
        let together = product(program, Shape { class, order: 0, m: 8, n, k }, &x, &w);
        for order in ORDERS {
            let again = product(program, Shape { class, order, m: 8, n, k }, &x, &w);
            assert_eq!(bits(&again), bits(&together), "order {order}");
        }
        for row in 0..8 {
            let alone = product(program, Shape { class, order: 0, m: 1, n, k }, &x[row * k..][..k], &w);
            assert_eq!(bits(&alone), bits(&together[row * n..][..n]), "row {row}");
        }
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn bias_residual_and_gates_are_what_the_plain_product_gives() {
    let program = program();
    let mut cases = 0;
    for (n, k) in [(16, 264), (80, 520), (4, 64)] {
        let (w, bias, before) = (halves(5, n * k), numbers(6, n), numbers(7, 8 * n));
        for (m, class) in [(1, 0), (3, 0), (8, 0), (1, 1), (6, 1), (8, 1)] {
            let x = halves(8, m * k);
            let shape = Shape { class, order: m % 4, m, n, k };
            let plain = product(program, shape, &x, &w);
            let with = |row: usize, i: usize| plain[row * n + i] + bias[i];
            for epilogue in 0..4 {
                if epilogue >= 2 && n % 16 != 0 {
                    continue;
                }
                let case =
                    Case::new(&[class, epilogue, shape.order, 1, m, n, k]).bf16(&x).bf16(&w).f32(&bias);
                let case = match epilogue {
                    1 => case.f32(&before[..m * n]),
                    0 => case.output(4 * m * n),
                    _ => case.output(m * n),
                };
                let what = format!("{shape:?} epilogue {epilogue}");
                let answer = program.answer(case, &what);
                for row in 0..m {
                    for i in 0..if epilogue < 2 { n } else { n / 2 } {
                        if epilogue < 2 {
                            let at = row * n + i;
                            let got =
                                f32::from_ne_bytes(answer[4 * at..][..4].try_into().expect("four bytes"));
                            let want = if epilogue == 0 { with(row, i) } else { before[at] + with(row, i) };
                            assert_eq!(got.to_bits(), want.to_bits(), "{what} row {row} n {i}");
                            continue;
                        }
                        let at = row * n / 2 + i;
                        let got = u16::from_ne_bytes(answer[2 * at..][..2].try_into().expect("two bytes"));
                        let gate = f64::from(with(row, i / 8 * 16 + i % 8));
                        let up = f64::from(with(row, i / 8 * 16 + 8 + i % 8));
                        let bent = if epilogue == 2 {
                            gate / (1.0 + (-gate).exp())
                        } else {
                            let inner =
                                (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3));
                            gate / (1.0 + (-2.0 * inner).exp())
                        };
                        let got = f64::from(bf16::from_bits(got).to_f32());
                        let want = bent * up;
                        assert!(
                            (got - want).abs() <= want.abs() / 250.0 + 1e-6,
                            "{what} row {row} gate {i}: {got} instead of {want}"
                        );
                    }
                }
                cases += 1;
            }
        }
    }
    eprintln!("{cases} epilogues");
}
