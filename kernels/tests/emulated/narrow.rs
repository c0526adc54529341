//! `cuda/narrow.cu`, with weights packed as the loader packs them, against `cuda/product.cu` with the weights widened.

use std::cell::Cell;
use std::sync::OnceLock;

use half::bf16;
use hearth_kernels::cuda::weightonly::{Format, Packed};

use crate::program::{Case, ORDERS, Program, bits, halves, numbers};

/// Compiled once for the tests of this file.
fn program() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| Program::build("narrow"))
}

const SET: usize = 0;
const ADD: usize = 1;
const SILU: usize = 2;

/// Rows and columns of the tiles.
const TILES: [(usize, usize); 3] = [(16, 64), (64, 128), (128, 128)];

#[derive(Clone, Copy, Debug)]
struct Shape {
    tile: usize,
    spread: bool,
    epilogue: usize,
    order: usize,
    bias: bool,
    rows: usize,
    bucket: usize,
    parts: usize,
}

struct Inputs {
    x: Vec<bf16>,
    w: Packed,
    /// What w is widened to.
    wide: Vec<bf16>,
    bias: Vec<f32>,
    before: Vec<f32>,
    cases: Cell<usize>,
}

impl Inputs {
    fn new(format: Format, bucket: usize, (n, k): (usize, usize)) -> Self {
        let mut weight = numbers(32, n * k);
        // Small numbers too, of few bits in e4m3.
        weight.iter_mut().step_by(3).for_each(|v| *v *= 1e-3);
        let w = Packed::of(format, (n, k), &weight);
        let wide = (0..n * k).map(|i| bf16::from_f32(w.number(i / k, i % k))).collect();
        let before = numbers(34, bucket * n);
        Self { x: halves(31, bucket * k), w, wide, bias: numbers(33, n), before, cases: Cell::new(0) }
    }

    /// The rows that count, by the kernels for narrow numbers or, as the reference, by those of bf16. What lies beyond must
    /// be as it was.
    fn run(&self, shape: Shape, is_reference: bool) -> Vec<f32> {
        let Shape { tile, spread, epilogue, order, bias, rows, bucket, parts } = shape;
        let Packed { format, n, k, .. } = self.w;
        self.cases.set(self.cases.get() + usize::from(!is_reference));
        let mut x = self.x[..bucket * k].to_vec();
        x[rows * k..].fill(bf16::NAN);
        let of = if is_reference { Format::ALL.len() } else { format as usize };
        let parts = if epilogue >= SILU { 1 } else { parts };
        let flags = [usize::from(spread), epilogue, order, usize::from(bias), bucket, n, k, parts];
        let case = Case::new(&[&[of, tile][..], &flags].concat()).u32(&[rows as u32]).bf16(&x);
        let case = if is_reference { case.bf16(&self.wide) } else { case.raw(self.w.numbers.clone()) };
        let case = case.raw(self.w.scales.clone()).f32(&self.bias);
        let width = if epilogue >= SILU { n / 4 } else { n };
        let case = if epilogue == ADD {
            let mut before = self.before[..bucket * n].to_vec();
            before[rows * n..].fill(f32::from_bits(u32::MAX));
            case.f32(&before)
        } else {
            case.output(4 * bucket * width)
        };
        let (down, across) = TILES[tile];
        let tiles = bucket.div_ceil(down) * n.div_ceil(across);
        let case = case.output(4 * tiles * 4 * down * across).u32(&vec![0; tiles]);
        let what = format!("{} {n} x {k} {shape:?}", format.name());
        let mut y = program().reals(case, &what);
        let counters = y.split_off(bucket * width);
        assert!(
            counters.iter().all(|counter| counter.to_bits() == 0),
            "{what}: counters for the next launch"
        );
        let beyond = y.split_off(rows * width);
        assert!(beyond.iter().all(|v| v.to_bits() == u32::MAX), "{what}: a row beyond the count changed");
        y
    }
}

/// Rows, bucket, n and k: one row; ragged tiles and a tile of the bucket without rows; a part of a panel and of a step;
/// an odd number of stages; parts of which the last is shorter or there are fewer.
const SHAPES: [(usize, usize, usize, usize); 5] =
    [(1, 20, 48, 56), (65, 70, 272, 136), (13, 40, 104, 328), (37, 40, 144, 520), (3, 3, 16, 1160)];

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_product_with_narrow_numbers_has_the_bits_of_one_with_the_numbers_widened() {
    let mut cases = 0;
    for format in Format::ALL {
        for (i, (rows, bucket, n, k)) in SHAPES.into_iter().enumerate() {
            let k = format.whole(k);
            let inputs = Inputs::new(format, bucket, (n, k));
            for epilogue in 0..4 {
                if epilogue >= SILU && n % 16 != 0 {
                    continue;
                }
                let parts = if (i + epilogue) % 3 == 0 { 1 } else { 4 };
                let of = Shape {
                    tile: 1,
                    spread: false,
                    epilogue,
                    order: 0,
                    bias: i % 2 == 0,
                    rows,
                    bucket,
                    parts,
                };
                let wanted = inputs.run(of, true);
                for tile in 0..TILES.len() {
                    if tile == 2 && (k > 500 || (i + epilogue + format as usize).is_multiple_of(2)) {
                        continue;
                    }
                    let order = ORDERS[(i + epilogue + tile) % ORDERS.len()];
                    for spread in [false, true] {
                        if spread && (epilogue >= SILU || parts == 1) {
                            continue;
                        }
                        let shape = Shape { tile, spread, order, ..of };
                        let got = inputs.run(shape, false);
                        assert_eq!(bits(&got), bits(&wanted), "{} {n} x {k} {shape:?}", format.name());
                    }
                }
            }
            cases += inputs.cases.get();
        }
    }
    eprintln!("{cases} products");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_row_with_narrow_numbers_has_the_same_bits_in_every_tile_alone_and_in_every_order_of_threads() {
    for format in Format::ALL {
        let (n, k) = (48, format.whole(456));
        let mut inputs = Inputs::new(format, 20, (n, k));
        let of = Shape {
            tile: 0,
            spread: false,
            epilogue: SET,
            order: 0,
            bias: true,
            rows: 20,
            bucket: 20,
            parts: 4,
        };
        let together = inputs.run(of, false);
        for order in ORDERS {
            let spread = order % 2 == 1;
            let again = inputs.run(Shape { tile: order % 3, spread, order, ..of }, false);
            assert_eq!(bits(&again), bits(&together), "{} order {order}", format.name());
        }
        inputs.x.rotate_left(18 * k);
        let fewer = inputs.run(Shape { rows: 2, bucket: 2, spread: true, ..of }, false);
        assert_eq!(bits(&fewer), bits(&together[18 * n..]), "{}", format.name());
    }
}
