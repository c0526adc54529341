//! `cuda/product.cu`.

use std::cell::Cell;
use std::fmt::Debug;
use std::sync::OnceLock;

use half::bf16;

use crate::program::{Case, ORDERS, Program, bits, halves, numbers};

/// A kernel family of the file: the tile, and who takes the parts of k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tile {
    R16Parts,
    R16,
    R64,
    R64Spread,
    R128,
    R128Spread,
    R128Wide,
}

use Tile::*;

impl Tile {
    const ALL: [Tile; 7] = [R16Parts, R16, R64, R64Spread, R128, R128Spread, R128Wide];

    fn rows(self) -> usize {
        match self {
            R16Parts | R16 => 16,
            R64 | R64Spread => 64,
            _ => 128,
        }
    }

    fn columns(self) -> usize {
        match self {
            R16Parts => 32,
            R16 => 64,
            R128Wide => 256,
            _ => 128,
        }
    }

    /// Parts of k that the kernels are for: all, or several alone.
    fn takes(self, parts: usize) -> bool {
        parts == 4 || !matches!(self, R16Parts | R64Spread | R128Spread)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    Set,
    Add,
    Silu,
    Gelu,
}

use Epilogue::*;

impl Epilogue {
    pub fn is_gate(self) -> bool {
        matches!(self, Silu | Gelu)
    }
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    tile: Tile,
    epilogue: Epilogue,
    order: usize,
    bias: bool,
    rows: usize,
    bucket: usize,
    n: usize,
    k: usize,
    parts: usize,
}

impl Shape {
    fn operation(self) -> Operation {
        let Self { epilogue, bias, rows, bucket, n, k, .. } = self;
        Operation { epilogue, bias, rows, bucket, n, k }
    }
}

/// What is multiplied, whichever kernel does it.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub epilogue: Epilogue,
    pub bias: bool,
    pub rows: usize,
    pub bucket: usize,
    pub n: usize,
    pub k: usize,
}

impl Operation {
    /// Numbers of an output row as they are answered: two of a gate's in one.
    pub fn width(&self) -> usize {
        if self.epilogue.is_gate() { self.n / 4 } else { self.n }
    }

    /// Rows, x, w, bias and y, poisoned where nothing counts.
    pub fn buffers(&self, case: Case, inputs: &Inputs) -> Case {
        let Self { rows, bucket, n, k, .. } = *self;
        let mut x = inputs.x[..bucket * k].to_vec();
        x[rows * k..].fill(bf16::NAN);
        let case = case.u32(&[rows as u32]).bf16(&x).bf16(&inputs.w).f32(&inputs.bias);
        match self.epilogue {
            Add => {
                let mut y = inputs.y[..bucket * n].to_vec();
                y[rows * n..].fill(f32::from_bits(u32::MAX));
                case.f32(&y)
            }
            _ => case.output(4 * bucket * self.width()),
        }
    }

    /// The rows of y that count; what lies beyond must be as it was.
    pub fn counted(&self, mut y: Vec<f32>, what: &dyn Debug) -> Vec<f32> {
        let beyond = y.split_off(self.rows * self.width());
        assert!(beyond.iter().all(|v| v.to_bits() == u32::MAX), "{what:?}: a row beyond the count changed");
        if !self.epilogue.is_gate() {
            return y;
        }
        let pairs = y.iter().map(|v| v.to_bits());
        pairs.flat_map(|v| [f32::from_bits(v << 16), f32::from_bits(v & 0xffff_0000)]).collect()
    }
}

pub struct Inputs {
    pub x: Vec<bf16>,
    pub w: Vec<bf16>,
    pub bias: Vec<f32>,
    pub y: Vec<f32>,
}

impl Inputs {
    pub fn new(bucket: usize, n: usize, k: usize) -> Self {
        // Rows beyond the count hold what an earlier step left: NaN here.
        let y = numbers(14, bucket * n);
        Self { x: halves(11, bucket * k), w: halves(12, n * k), bias: numbers(13, n), y }
    }

    /// A row alone.
    pub fn row(&self, row: usize, n: usize, k: usize) -> Self {
        Self {
            x: self.x[row * k..][..k].to_vec(),
            w: self.w.clone(),
            bias: self.bias.clone(),
            y: self.y[row * n..][..n].to_vec(),
        }
    }

    fn product(&self, row: usize, n: usize, k: usize) -> (f64, f64) {
        let terms = self.x[row * k..][..k].iter().zip(&self.w[n * k..][..k]);
        terms.fold((0.0, 0.0), |(sum, size), (x, w)| {
            let term = x.to_f64() * w.to_f64();
            (sum + term, size + term.abs())
        })
    }
}

/// Compiled once for the tests of this file.
fn program() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| Program::build("product"))
}

/// How many cases ran, for the line that the test prints.
#[derive(Default)]
pub struct Count(pub Cell<usize>);

/// The rows of y that count.
fn run(program: &Program, count: &Count, shape: Shape, inputs: &Inputs) -> Vec<f32> {
    let Shape { tile, epilogue, order, bias, bucket, n, k, parts, .. } = shape;
    count.0.set(count.0.get() + 1);
    let tiles = bucket.div_ceil(tile.rows()) * n.div_ceil(tile.columns());
    let case = Case::new(&[
        tile as usize,
        epilogue as usize,
        order,
        usize::from(bias),
        bucket,
        n,
        k,
        if epilogue.is_gate() { 1 } else { parts },
    ]);
    let operation = shape.operation();
    let case = operation.buffers(case, inputs);
    let case = case.output(4 * tiles * 4 * tile.rows() * tile.columns()).u32(&vec![0; tiles]);
    let mut y = program.reals(case, &format!("{shape:?}"));
    let counters = y.split_off(bucket * operation.width());
    assert!(counters.iter().all(|counter| counter.to_bits() == 0), "{shape:?}: counters for the next launch");
    operation.counted(y, &shape)
}

pub fn assert_product(operation: Operation, inputs: &Inputs, y: &[f32], shape: &dyn Debug) {
    let Operation { epilogue, rows, n, k, .. } = operation;
    let sum = |row: usize, n: usize| {
        let (sum, size) = inputs.product(row, n, k);
        let bias = if operation.bias { f64::from(inputs.bias[n]) } else { 0.0 };
        (sum + bias, size + bias.abs())
    };
    // f32 sums of at most k terms: far inside k half-ulps of the sum of magnitudes. NaN (unwritten) fails.
    let near = k.max(32) as f64 * f64::from(f32::EPSILON) / 16.0;
    for row in 0..rows {
        if epilogue.is_gate() {
            for i in 0..n / 2 {
                let (gate, size) = sum(row, i / 8 * 16 + i % 8);
                let (up, up_size) = sum(row, i / 8 * 16 + 8 + i % 8);
                let y_of = if epilogue == Silu {
                    gate
                } else {
                    2.0 * (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3))
                };
                let want = gate / (1.0 + (-y_of).exp()) * up;
                let got = f64::from(y[row * (n / 2) + i]);
                // Rounded to bf16; the slopes of the activations are below 1.2.
                let allowed =
                    want.abs() / 256.0 + 1.2 * near * (size * up.abs() + up_size * gate.abs()) + 1e-6;
                assert!(
                    (got - want).abs() <= allowed,
                    "{shape:?} row {row} gate {i}: {got} instead of {want}"
                );
            }
            continue;
        }
        for i in 0..n {
            let (mut want, size) = sum(row, i);
            if epilogue == Add {
                want += f64::from(inputs.y[row * n + i]);
            }
            let got = f64::from(y[row * n + i]);
            assert!(
                (got - want).abs() <= near * (size + 1.0),
                "{shape:?} row {row} n {i}: {got} instead of {want}"
            );
        }
    }
}

/// Rows, bucket, n and k. One row; a whole tile; ragged tiles and a tile of the bucket without rows; k shorter than a
/// stage, no multiple of a stage, in parts of which the last is shorter or there are fewer. The deeper ones for the small
/// tiles alone, which emulate faster.
const SHAPES: [(usize, usize, usize, usize); 6] = [
    (1, 130, 48, 56),
    (65, 70, 272, 136),
    (13, 40, 112, 328),
    (37, 40, 144, 520),
    (16, 16, 64, 256),
    (3, 3, 16, 1032),
];

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_product_is_right_in_every_tile_with_every_epilogue_and_ragged_shape() {
    let (program, count) = (program(), Count::default());
    for (i, (rows, bucket, n, k)) in SHAPES.into_iter().enumerate() {
        let inputs = Inputs::new(bucket, n, k);
        for tile in Tile::ALL {
            if k > 500 && tile.rows() == 128 {
                continue;
            }
            for (j, epilogue) in [Set, Add, Silu, Gelu].into_iter().enumerate() {
                if epilogue.is_gate() && !tile.takes(1) {
                    continue;
                }
                let parts = if tile.takes(1) && i % 2 == 0 { 1 } else { 4 };
                let (order, bias) = ((i + j) % 4, (i + j + tile as usize).is_multiple_of(2));
                let shape = Shape { tile, epilogue, order, bias, rows, bucket, n, k, parts };
                let y = run(program, &count, shape, &inputs);
                assert_product(shape.operation(), &inputs, &y, &shape);
            }
        }
    }
    eprintln!("{} products", count.0.get());
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_row_has_the_same_bits_in_every_tile_alone_beside_others_and_in_every_order_of_threads() {
    let (program, count) = (program(), Count::default());
    let (n, k) = (48, 328);
    let inputs = Inputs::new(70, n, k);
    for (epilogue, parts) in [(Set, 4), (Set, 1), (Add, 4), (Silu, 1)] {
        let shape = Shape { tile: R64, epilogue, order: 0, bias: true, rows: 66, bucket: 70, n, k, parts };
        let width = if epilogue.is_gate() { n / 2 } else { n };
        let together = run(program, &count, shape, &inputs);
        for (i, tile) in Tile::ALL.into_iter().filter(|tile| tile.takes(shape.parts)).enumerate() {
            if epilogue.is_gate() && !tile.takes(1) {
                continue;
            }
            let again = run(program, &count, Shape { tile, order: ORDERS[3 - i % 4], ..shape }, &inputs);
            assert_eq!(bits(&again), bits(&together), "{tile:?} {shape:?}");
            let alone =
                run(program, &count, Shape { tile, rows: 1, bucket: 1, ..shape }, &inputs.row(65, n, k));
            assert_eq!(bits(&alone), bits(&together[65 * width..]), "{tile:?} {shape:?} alone");
        }
    }
    eprintln!("{} products", count.0.get());
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn every_order_of_threads_gives_the_same_bits() {
    let (program, count) = (program(), Count::default());
    let (n, k) = (48, 200);
    let inputs = Inputs::new(20, n, k);
    for tile in Tile::ALL {
        let shape =
            Shape { tile, epilogue: Set, order: 0, bias: false, rows: 20, bucket: 20, n, k, parts: 4 };
        let answers = ORDERS.map(|order| bits(&run(program, &count, Shape { order, ..shape }, &inputs)));
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{shape:?}");
    }
    eprintln!("{} products", count.0.get());
}
