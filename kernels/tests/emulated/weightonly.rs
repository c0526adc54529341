//! `cuda/weightonly.cu`, with weights packed as the loader packs them.

use std::sync::OnceLock;

use half::bf16;
use hearth_kernels::cuda::weightonly::{Format, MAX_ROWS, Packed};

use crate::program::{Case, ORDERS, Program, bits, halves, numbers};

/// Compiled once for the tests of this file.
fn program() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| Program::build("weightonly"))
}

const SET: usize = 0;
const ADD: usize = 1;
const SILU: usize = 2;

struct Inputs {
    x: Vec<bf16>,
    w: Packed,
    bias: Vec<f32>,
    before: Vec<f32>,
}

impl Inputs {
    fn new(format: Format, n: usize, k: usize) -> Self {
        let k = format.whole(k);
        let mut weight = numbers(22, n * k);
        // Small numbers too, of few bits in e4m3.
        weight.iter_mut().step_by(3).for_each(|v| *v *= 1e-3);
        let w = Packed::of(format, (n, k), &weight);
        Self { x: halves(21, MAX_ROWS * k), w, bias: numbers(23, n), before: numbers(24, MAX_ROWS * n) }
    }

    fn sum(&self, row: usize, n: usize) -> (f64, f64) {
        let k = self.w.k;
        let (sum, size) = (0..k).fold((0.0, 0.0), |(sum, size), i| {
            let term = self.x[row * k + i].to_f64() * f64::from(self.w.number(n, i));
            (sum + term, size + term.abs())
        });
        (sum + f64::from(self.bias[n]), size + f64::from(self.bias[n].abs()))
    }

    /// The rows that count; what lies beyond must be as it was.
    fn run(&self, epilogue: usize, order: usize, rows: usize) -> Vec<f32> {
        let Packed { format, n, k, .. } = self.w;
        let mut x = self.x.clone();
        x[rows * k..].fill(bf16::NAN);
        let case = Case::new(&[format as usize, epilogue, order, 1, n, k]).u32(&[rows as u32]).bf16(&x);
        let case = case.raw(self.w.numbers.clone()).raw(self.w.scales.clone()).f32(&self.bias);
        let width = if epilogue >= SILU { n / 4 } else { n };
        let case = if epilogue == ADD {
            let mut before = self.before.clone();
            before[rows * n..].fill(f32::from_bits(u32::MAX));
            case.f32(&before)
        } else {
            case.output(4 * MAX_ROWS * width)
        };
        let what = format!("{} epilogue {epilogue} order {order}, {rows} rows of {n} x {k}", format.name());
        let mut y = program().reals(case, &what);
        let beyond = y.split_off(rows * width);
        assert!(beyond.iter().all(|v| v.to_bits() == u32::MAX), "{what}: a row beyond the count changed");
        y
    }

    fn assert_right(&self, epilogue: usize, rows: usize, y: &[f32]) {
        let Packed { format, n, k, .. } = self.w;
        let near = k as f64 * f64::from(f32::EPSILON) / 16.0;
        for row in 0..rows {
            for i in 0..if epilogue >= SILU { n / 2 } else { n } {
                let (got, want, allowed) = if epilogue >= SILU {
                    let word = y[row * (n / 4) + i / 2].to_bits();
                    let got = bf16::from_bits((word >> (i % 2 * 16)) as u16).to_f64();
                    let (gate, size) = self.sum(row, i / 8 * 16 + i % 8);
                    let (up, up_size) = self.sum(row, i / 8 * 16 + 8 + i % 8);
                    let inner = if epilogue == SILU {
                        gate
                    } else {
                        2.0 * (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3))
                    };
                    let want = gate / (1.0 + (-inner).exp()) * up;
                    let allowed = 1.2 * near * (size * up.abs() + up_size * gate.abs());
                    (got, want, want.abs() / 256.0 + allowed + 1e-6)
                } else {
                    let (mut want, size) = self.sum(row, i);
                    if epilogue == ADD {
                        want += f64::from(self.before[row * n + i]);
                    }
                    (f64::from(y[row * n + i]), want, near * (size + 1.0))
                };
                assert!(
                    (got - want).abs() <= allowed,
                    "{} epilogue {epilogue} of {n} x {k}, row {row} number {i}: {got} instead of {want}",
                    format.name()
                );
            }
        }
    }
}

/// A part of a panel and of a step; several blocks; more steps than warps; a warp with a second round; a ragged last one.
const SHAPES: [(usize, usize); 5] = [(8, 56), (16, 64), (80, 384), (48, 1160), (32, 2176)];

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_product_with_narrow_numbers_is_right_in_every_format_with_every_epilogue() {
    let mut cases = 0;
    for format in Format::ALL {
        for (shape, (n, k)) in SHAPES.into_iter().enumerate() {
            let inputs = Inputs::new(format, n, k);
            for epilogue in 0..4 {
                if epilogue >= SILU && n % 16 != 0 {
                    continue;
                }
                let rows = [1, 3, 8, 5][(shape + epilogue) % 4];
                let y = inputs.run(epilogue, ORDERS[cases % ORDERS.len()], rows);
                inputs.assert_right(epilogue, rows, &y);
                cases += 1;
            }
        }
    }
    eprintln!("{cases} products");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_row_with_narrow_numbers_has_the_same_bits_beside_others_and_in_every_order_of_threads() {
    for format in Format::ALL {
        let mut inputs = Inputs::new(format, 40, 1304);
        let together = inputs.run(SET, ORDERS[0], 8);
        for order in ORDERS {
            assert_eq!(bits(&inputs.run(SET, order, 8)), bits(&together), "{} order {order}", format.name());
        }
        inputs.x.rotate_left(6 * inputs.w.k);
        let fewer = inputs.run(SET, ORDERS[0], 2);
        assert_eq!(bits(&fewer), bits(&together[6 * 40..]), "{}", format.name());
    }
}
