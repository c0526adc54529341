//! Sequences in a paged cache, for the tests of attention: their keys, values and queries depend on the sequence and the
//! position alone, so that a row can be computed again in other company.

use std::sync::LazyLock;

use half::bf16;

use crate::program::{Case, numbers};

pub const PAGE: usize = 16;

/// Some rows of a sequence: `rows` that end at position `context`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub sequence: usize,
    pub rows: usize,
    pub context: usize,
}

/// The heads, and what of its past a row sees.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    pub dim: usize,
    pub kv_heads: usize,
    pub group: usize,
    pub window: Option<usize>,
    /// Keys and values in e4m3, with a scale a head; else in bf16.
    pub e4m3: bool,
}

/// A step over the cache as the kernels are given it.
pub struct Step {
    pub spans: Vec<u32>,
    pub tables: Vec<u32>,
    pub queries: Vec<bf16>,
    pub keys: Vec<u8>,
    pub values: Vec<u8>,
    pub scales: Vec<f32>,
}

/// The longest context of a test.
const LONGEST: usize = 1100;

impl Scene {
    pub fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// Softmax works with powers of two.
    pub fn sharpness(&self) -> f32 {
        std::f32::consts::LOG2_E / (self.dim as f32).sqrt()
    }

    pub fn window(&self) -> usize {
        self.window.unwrap_or(u32::MAX as usize)
    }

    fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// What keys (`of` 0) or values (1) of a head are multiplied with before they are rounded.
    fn scale(&self, of: usize, head: usize) -> f32 {
        if self.e4m3 { [20.0, 90.0][of] + 3.0 * head as f32 } else { 1.0 }
    }

    /// Bytes of a number of a page.
    fn bytes(&self) -> usize {
        if self.e4m3 { 1 } else { 2 }
    }

    /// Keys, then values, of a head of a sequence as they are stored, `[position][dim]`.
    fn stored(&self, sequence: usize, head: usize) -> [Vec<u8>; 2] {
        [0, 1].map(|of| {
            let numbers = numbers((1 + 64 * sequence + 2 * head + of) as u32, LONGEST * self.dim);
            let scale = self.scale(of, head);
            if self.e4m3 {
                numbers.iter().map(|x| to_e4m3(x * scale)).collect()
            } else {
                numbers.iter().flat_map(|x| bf16::from_f32(*x).to_bits().to_ne_bytes()).collect()
            }
        })
    }

    /// What they are worth.
    fn cached(&self, sequence: usize, head: usize) -> [Vec<f64>; 2] {
        let stored = self.stored(sequence, head);
        [0, 1].map(|of| {
            let scale = f64::from(self.scale(of, head));
            if self.e4m3 {
                stored[of].iter().map(|bits| of_e4m3(*bits) / scale).collect()
            } else {
                halves_of(&stored[of]).into_iter().map(f64::from).collect()
            }
        })
    }

    /// The queries of a row. Every second head of the query heads asks nothing: its weights are all the same, which shows
    /// a position too many or too few; the others are sharp.
    fn query(&self, sequence: usize, position: usize) -> Vec<bf16> {
        let query = numbers((7 + 4096 * sequence + position) as u32, self.heads() * self.dim);
        let times = |at: usize| if (at / self.dim).is_multiple_of(2) { 0.0 } else { 6.0 };
        query.into_iter().enumerate().map(|(at, x)| bf16::from_f32(x * times(at))).collect()
    }

    /// Blocks of the sequences alternate, backwards. Whatever no row may read is not a number, and the tables name no
    /// block for what lies before every window.
    pub fn step(&self, parts: &[Part]) -> Step {
        let pages = parts.iter().map(|part| part.context.div_ceil(PAGE)).max().unwrap_or(0);
        let blocks = pages * parts.len() + 1;
        let row_bytes = self.dim * self.bytes();
        let page = PAGE * row_bytes;
        let mut keys = vec![0xff; blocks * self.kv_heads * page];
        let mut values = keys.clone();
        let (mut spans, mut tables, mut queries) = (vec![], vec![], vec![]);
        let mut row = 0;
        for (at, part) in parts.iter().enumerate() {
            let first = part.context - part.rows;
            let seen = self.first_seen(first);
            spans.extend([row, part.rows, first, tables.len()].map(|n| n as u32));
            row += part.rows;
            let block = |i: usize| blocks - 1 - (i * parts.len() + at);
            for i in 0..part.context.div_ceil(PAGE) {
                tables.push(if i < seen / PAGE { u32::MAX } else { block(i) as u32 });
            }
            for head in 0..self.kv_heads {
                let [from_keys, from_values] = self.stored(part.sequence, head);
                for position in seen..part.context {
                    let from = position * row_bytes;
                    let to =
                        (block(position / PAGE) * self.kv_heads + head) * page + position % PAGE * row_bytes;
                    keys[to..][..row_bytes].copy_from_slice(&from_keys[from..][..row_bytes]);
                    values[to..][..row_bytes].copy_from_slice(&from_values[from..][..row_bytes]);
                }
            }
            for position in first..part.context {
                queries.extend(self.query(part.sequence, position));
            }
        }
        let scales =
            [0, 1].iter().flat_map(|of| (0..self.kv_heads).map(|head| self.scale(*of, head))).collect();
        Step { spans, tables, queries, keys, values, scales }
    }

    /// Panics unless `out`, the rows of `parts`, is the attention in f64 to within what the roundings of the kernels
    /// allow, of the weights and of the result to bf16.
    pub fn assert_attention(&self, parts: &[Part], out: &[bf16], what: &str) {
        let mut rows = out.chunks(self.dim);
        for part in parts {
            let cached: Vec<_> = (0..self.kv_heads).map(|head| self.cached(part.sequence, head)).collect();
            for position in part.context - part.rows..part.context {
                let query = self.query(part.sequence, position);
                for (head, query) in query.chunks(self.dim).enumerate() {
                    let [keys, values] = &cached[head / self.group];
                    let asks = query.iter().any(|x| x.to_f64() != 0.0);
                    let seen = self.first_seen(position)..position + 1;
                    let scores: Vec<f64> = seen
                        .clone()
                        .map(|at| {
                            let key = &keys[at * self.dim..][..self.dim];
                            let dot: f64 = query.iter().zip(key).map(|(q, k)| q.to_f64() * k).sum();
                            dot / (self.dim as f64).sqrt()
                        })
                        .collect();
                    let most = scores.iter().copied().fold(f64::MIN, f64::max);
                    let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                    let got = rows.next().unwrap_or_else(|| panic!("{what}: too few rows"));
                    for (d, got) in got.iter().enumerate() {
                        let (mut want, mut size) = (0.0, 0.0);
                        for (at, score) in seen.clone().zip(&scores) {
                            let term = (score - most).exp() / sum * values[at * self.dim + d];
                            want += term;
                            size += term.abs();
                        }
                        // Weights that are all one are exact.
                        let allowed = want.abs() / 256.0 + size * if asks { 1.0 / 256.0 } else { 1e-5 };
                        let error = (got.to_f64() - want).abs();
                        assert!(
                            error <= allowed,
                            "{what}: {part:?} position {position} head {head} number {d}: {got}, not {want}"
                        );
                    }
                }
            }
        }
        assert!(rows.next().is_none(), "{what}: too many rows");
    }
}

impl Step {
    pub fn rows(&self) -> usize {
        self.spans.chunks(4).map(|span| span[1] as usize).sum()
    }

    /// The first seven buffers of a case.
    pub fn buffers(&self, case: Case) -> Case {
        case.u32(&self.spans)
            .u32(&[(self.spans.len() / 4) as u32])
            .u32(&self.tables)
            .bf16(&self.queries)
            .raw(self.keys.clone())
            .raw(self.values.clone())
            .f32(&self.scales)
    }
}

/// A number of e4m3: a sign, four bits of exponent, three more of the number, nothing infinite.
fn of_e4m3(bits: u8) -> f64 {
    let (exponent, rest) = (i32::from(bits >> 3 & 15), f64::from(bits & 7) / 8.0);
    let size = if exponent == 0 { rest / 64.0 } else { (1.0 + rest) * f64::from(exponent - 7).exp2() };
    if bits >> 7 == 1 { -size } else { size }
}

/// The nearest of them.
fn to_e4m3(x: f32) -> u8 {
    static SIZES: LazyLock<Vec<f64>> = LazyLock::new(|| (0..0x7f).map(of_e4m3).collect());
    let size = f64::from(x.abs());
    let above = SIZES.partition_point(|s| *s < size).clamp(1, SIZES.len() - 1);
    let nearest = if size - SIZES[above - 1] <= SIZES[above] - size { above - 1 } else { above };
    nearest as u8 | if x < 0.0 { 0x80 } else { 0 }
}

/// Numbers in bf16 from an answer.
pub fn halves_of(bytes: &[u8]) -> Vec<bf16> {
    bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_bits(u16::from_ne_bytes(*b))).collect()
}

/// Words from an answer.
pub fn words_of(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|b| u32::from_ne_bytes(*b)).collect()
}

/// The geometries of the supported models: (head size, heads of keys, group), few heads of keys.
pub const GEOMETRIES: [(usize, usize, usize); 9] = [
    (128, 2, 1),
    (128, 2, 4),
    (128, 1, 6),
    (128, 1, 7),
    (128, 1, 8),
    (256, 2, 1),
    (256, 1, 8),
    (64, 2, 2),
    (64, 1, 3),
];
