//! `cuda/expert_product.cu`.

use half::bf16;

use crate::program::{Case, ORDERS, Program, halves};

/// Rows of the tiles that there are.
const TILES: [usize; 4] = [16, 64, 128, 128];
pub const SET: usize = 0;
pub const SILU: usize = 1;
pub const GELU: usize = 2;

/// Rows by expert, and the product's shape.
pub struct Grouped<'a> {
    pub counts: &'a [usize],
    pub n: usize,
    pub k: usize,
}

impl Grouped<'_> {
    pub fn rows(&self) -> usize {
        self.counts.iter().sum()
    }

    pub fn starts(&self) -> Vec<u32> {
        let ends = self.counts.iter().scan(0, |at, count| {
            *at += *count as u32;
            Some(*at)
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// The bytes of the output, over as many tiles as the launch code makes for that many rows.
    fn run(
        &self,
        program: &Program,
        (tile, epilogue, order): (usize, usize, usize),
        x: &[bf16],
        w: &[bf16],
    ) -> Vec<u8> {
        let (rows, experts, tall) = (self.rows(), self.counts.len(), TILES[tile]);
        let tiles = rows.min((rows + experts * (tall - 1)) / tall).max(1);
        let bytes = if epilogue == SET { 4 * rows * self.n } else { rows * self.n };
        let case = Case::new(&[tile, epilogue, order, tiles, experts, self.n, self.k])
            .u32(&self.starts())
            .bf16(x)
            .bf16(w)
            .output(bytes);
        program.answer(case, &format!("{:?} rows, tile {tile}, epilogue {epilogue}", self.counts))
    }

    pub fn check(&self, epilogue: usize, x: &[bf16], w: &[bf16], answer: &[u8]) {
        let Grouped { counts, n, k } = *self;
        let expert_of = counts.iter().enumerate().flat_map(|(expert, count)| vec![expert; *count]);
        for (row, expert) in expert_of.enumerate() {
            let x = &x[row * k..][..k];
            // The sum and the sum of magnitudes.
            let sum = |of: usize| {
                let w = &w[(expert * n + of) * k..][..k];
                let terms = x.iter().zip(w).map(|(x, w)| x.to_f64() * w.to_f64());
                terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
            };
            let slack = k as f64 * f64::from(f32::EPSILON);
            let what = format!("{counts:?} rows of {k} by {n}, row {row}");
            if epilogue == SET {
                for of in 0..n {
                    let bytes = answer[4 * (row * n + of)..][..4].try_into().expect("bug: 4 bytes");
                    let (got, (want, size)) = (f64::from(f32::from_ne_bytes(bytes)), sum(of));
                    assert!((got - want).abs() <= size * slack, "{what}, {of}: {got} for {want}");
                }
                continue;
            }
            for i in 0..n / 2 {
                let bytes = answer[2 * (row * n / 2 + i)..][..2].try_into().expect("bug: 2 bytes");
                let got = bf16::from_bits(u16::from_ne_bytes(bytes)).to_f64();
                let ((gate, _), (up, _)) = (sum(i / 8 * 16 + i % 8), sum(i / 8 * 16 + 8 + i % 8));
                let y = match epilogue {
                    GELU => 2.0 * 0.797_884_560_802_865_4 * (gate + 0.044715 * gate.powi(3)),
                    _ => gate,
                };
                let want = gate / (1.0 + (-y).exp()) * up;
                assert!((got - want).abs() <= want.abs() / 250.0 + 1e-3, "{what}, {i}: {got} for {want}");
            }
        }
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn every_row_is_multiplied_with_the_weight_of_its_expert() {
    let program = Program::build("expert_product");
    let mut cases = 0;
    // Empty experts first, between and last; all rows to one; one row; tiles that are full, short by one, one too long;
    // more experts than are read at once.
    let counts: [&[usize]; 7] = [
        &[0, 3, 0, 17, 1, 0, 0, 0],
        &[0, 0, 0, 0, 0, 0, 0, 1],
        &[40, 0],
        &[16, 15, 17, 0],
        &[0, 1, 0, 0, 0, 0, 0, 2, 0, 5, 0],
        &[130, 2, 64],
        &[1],
    ];
    for (i, counts) in counts.into_iter().enumerate() {
        let (n, k) = [(64, 72), (144, 8), (80, 136), (16, 64)][i % 4];
        let grouped = Grouped { counts, n, k };
        let (x, w) = (halves(61, grouped.rows() * k), halves(62, counts.len() * n * k));
        for epilogue in [SET, SILU, GELU] {
            let mut bits: Option<Vec<u8>> = None;
            for tile in 0..TILES.len() {
                let answer = grouped.run(&program, (tile, epilogue, ORDERS[(tile + i) % 3]), &x, &w);
                match &bits {
                    None => grouped.check(epilogue, &x, &w, &answer),
                    Some(bits) => assert!(answer == *bits, "{counts:?}: tile {tile} gives other bits"),
                }
                bits.get_or_insert(answer);
                cases += 1;
            }
        }
    }
    eprintln!("grouped: {cases} cases");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_grouped_row_has_the_same_bits_alone_and_beside_others() {
    let program = Program::build("expert_product");
    let (n, k) = (48, 200);
    let w = halves(64, 3 * n * k);
    let counts = [5, 0, 20];
    let x = halves(63, 25 * k);
    let together = Grouped { counts: &counts, n, k }.run(&program, (0, SET, 0), &x, &w);
    for (row, alone) in [(0, [1, 0, 0]), (4, [1, 0, 0]), (5, [0, 0, 1]), (24, [0, 0, 1])] {
        let x = &x[row * k..][..k];
        for tile in [0, 1] {
            let answer = Grouped { counts: &alone, n, k }.run(&program, (tile, SET, 2), x, &w);
            assert!(answer == together[4 * row * n..][..4 * n], "row {row}, tile {tile}");
        }
    }
}
