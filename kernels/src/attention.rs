//! Attention over paged keys and values: prompts and single tokens in one call.
//!
//! Row `i` of a span is at position `context - rows + i` and sees the positions up to its own, the last `window` of
//! them at most. Several query heads share a head of keys and values.

use candle_core::Tensor;

use crate::buffer::{Shared, read, write};
use crate::cpu::attend;
use crate::paged::{BLOCK, Pages, Span};
use crate::rope::Heads;
use crate::{Context, Error, KvCache};

/// What one call computes, besides its tensors.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub heads: Heads,
    pub pages: &'a Pages<'a>,
    pub kv: &'a KvCache,
    pub layer: usize,
    pub scale: f32,
    pub window: Option<u32>,
}

/// `out[r]`, `[capacity, q * dim]`, becomes the attention of the queries in row `r` of `qkv` (turned already) over the
/// cached positions that the row sees; keys and values of the step's own rows are in the cache already.
#[allow(clippy::too_many_arguments, reason = "the operands of one operation, as in the other files")]
pub fn attention(
    ctx: &Context,
    qkv: &Tensor,
    heads: Heads,
    pages: &Pages<'_>,
    kv: &KvCache,
    layer: usize,
    scale: f32,
    window: Option<u32>,
    out: &Tensor,
) -> Result<(), Error> {
    let rows = pages.positions.len();
    let job = Job { heads, pages, kv, layer, scale, window };
    check(&job)?;
    let qkv = read(("attention", "qkv"), qkv, rows, heads.width())?;
    write(("attention", "out"), out, rows, heads.q * heads.dim, &[&qkv], |out| {
        if attend::offers(heads.dim) {
            return attend::run(ctx, &mut ctx.scratch().attention, &job, &qkv, out);
        }
        let to = Shared::new(out);
        ctx.run(pages.spans.len() * heads.q, |task| {
            let (span, head) = (&pages.spans[task / heads.q], task % heads.q);
            for i in 0..span.rows as usize {
                let row = span.row as usize + i;
                let query = &qkv[row * heads.width() + head * heads.dim..][..heads.dim];
                // SAFETY: spans have different rows, and each task writes its own head.
                let out = unsafe { to.slice((row * heads.q + head) * heads.dim, heads.dim) };
                reference(&job, span, i, head, query, out);
            }
        })
    })
}

impl Job<'_> {
    /// The positions that row `i` of a span sees.
    pub fn seen(&self, span: &Span, i: usize) -> std::ops::Range<usize> {
        let end = (span.context - span.rows) as usize + i + 1;
        let start = self.window.map_or(0, |window| end.saturating_sub(window as usize));
        start..end
    }

    /// The block of the cache that holds a position of a span.
    pub fn block(&self, span: &Span, position: usize) -> usize {
        self.pages.tables[span.table as usize + position / BLOCK] as usize
    }
}

/// The definition, for one head of one row: softmax of scaled products, in f32, of all positions at once. It serves
/// the head dimensions that no kernel is written for.
fn reference(job: &Job<'_>, span: &Span, i: usize, head: usize, query: &[f32], out: &mut [f32]) {
    let (kv, shape) = (job.kv, job.kv.shape());
    let kv_head = head / (job.heads.q / job.heads.kv);
    let seen = job.seen(span, i);
    let mut scores: Vec<f32> = seen
        .clone()
        .map(|position| {
            let start = shape.keys(job.layer, job.block(span, position), kv_head);
            let key = |d| kv.number(start + shape.key_at(position % BLOCK, d));
            query.iter().enumerate().map(|(d, q)| q * key(d)).sum::<f32>() * job.scale
        })
        .collect();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = (*score - max).exp());
    let sum: f32 = scores.iter().sum();
    out.fill(0.0);
    for (position, score) in seen.zip(scores) {
        let start = shape.values(job.layer, job.block(span, position), kv_head);
        for (d, out) in out.iter_mut().enumerate() {
            *out += score / sum * kv.number(start + shape.value_at(position % BLOCK, d));
        }
    }
}

fn check(job: &Job<'_>) -> Result<(), Error> {
    let (heads, shape) = (job.heads, job.kv.shape());
    let wrong =
        |operand, got: Vec<usize>, want: String| Err(Error::Shape { op: "attention", operand, got, want });
    if (heads.kv, heads.dim) != (shape.kv_heads, shape.head_dim) {
        let want = format!("{} heads of {} for keys", shape.kv_heads, shape.head_dim);
        return wrong("heads", vec![heads.kv, heads.dim], want);
    }
    if heads.kv == 0 || !heads.q.is_multiple_of(heads.kv) {
        return wrong("heads", vec![heads.q, heads.kv], "query heads a multiple of key heads".to_owned());
    }
    if job.layer >= shape.layers {
        return wrong("layer", vec![job.layer], format!("a layer below {}", shape.layers));
    }
    let rows = job.pages.positions.len();
    let mut next = 0;
    for span in job.pages.spans {
        let (row, count, context) = (span.row as usize, span.rows as usize, span.context as usize);
        if row < next || row + count > rows || context < count {
            let want = format!("row, rows, context: ascending, within {rows} rows, context at least rows");
            return wrong("span", vec![row, count, context], want);
        }
        next = row + count;
        let table = job.pages.tables.get(span.table as usize..).unwrap_or_default();
        let blocks = context.div_ceil(BLOCK);
        if table.len() < blocks {
            return wrong("tables", vec![table.len()], format!("{blocks} blocks for {context} positions"));
        }
        // Blocks before the window may be gone already.
        let first = job.seen(span, 0).start / BLOCK;
        if let Some(block) = table[first..blocks].iter().find(|block| **block as usize >= shape.blocks) {
            return wrong("block", vec![*block as usize], format!("a block below {}", shape.blocks));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::KvShape;
    use crate::cpu::detect::Isa;

    fn noise(seed: usize, i: usize) -> f32 {
        let mut x = (seed * 1_000_003 + i) as u64;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x >> 40) as f32 / (1 << 23) as f32) - 1.0
    }

    /// Sequences whose keys, values and queries depend on sequence and position alone.
    struct Scene {
        ctx: Context,
        heads: Heads,
        dtype: DType,
        window: Option<u32>,
        lengths: Vec<usize>,
    }

    impl Scene {
        fn row(&self, sequence: usize, position: usize) -> Vec<f32> {
            let width = self.heads.width();
            (0..width).map(|i| 2.0 * noise(sequence, position * width + i)).collect()
        }

        /// The outputs of rows `from..to` of some sequences, in one call. Blocks of different sequences alternate.
        fn run(&self, pieces: &[(usize, std::ops::Range<usize>)]) -> Vec<Vec<f32>> {
            let heads = self.heads;
            let most = self.lengths.iter().max().unwrap().div_ceil(BLOCK);
            let count = self.lengths.len();
            let shape = KvShape {
                layers: 2,
                kv_heads: heads.kv,
                head_dim: heads.dim,
                blocks: most * count,
                dtype: self.dtype,
            };
            let mut kv = KvCache::new(&self.ctx, shape).unwrap();
            // What other sequences left in a block must not matter.
            for at in 0..shape.blocks * shape.block_bytes() / self.dtype.size_in_bytes() {
                match &mut kv.store {
                    crate::kv::KvStore::Bf16(all) => all[at] = half::bf16::NAN.to_bits(),
                    crate::kv::KvStore::F16(all) => all[at] = half::f16::NAN.to_bits(),
                    crate::kv::KvStore::F32(all) => all[at] = f32::NAN,
                }
            }
            let (mut rows, mut positions, mut slots) = (vec![], vec![], vec![]);
            let (mut spans, mut tables) = (vec![], vec![]);
            for (sequence, range) in pieces {
                let block = |i: usize| (i * count + sequence) as u32;
                let writer = kv.writer();
                for position in 0..range.end {
                    let row = self.row(*sequence, position);
                    for head in 0..heads.kv {
                        let key = &row[(heads.q + head) * heads.dim..][..heads.dim];
                        let value = &row[(heads.q + heads.kv + head) * heads.dim..][..heads.dim];
                        let slot = block(position / BLOCK) as usize * BLOCK + position % BLOCK;
                        // SAFETY: one thread, and all indices exist.
                        unsafe { writer.put(1, slot, head, key, value) };
                    }
                }
                spans.push(Span {
                    row: positions.len() as u32,
                    rows: range.len() as u32,
                    table: tables.len() as u32,
                    context: range.end as u32,
                });
                tables.extend((0..range.end.div_ceil(BLOCK)).map(block));
                for position in range.clone() {
                    rows.extend(self.row(*sequence, position));
                    positions.push(position as u32);
                    slots.push(0);
                }
            }
            let pages = Pages { positions: &positions, slots: &slots, spans: &spans, tables: &tables };
            let count = positions.len();
            let qkv = Tensor::from_vec(rows, (count, heads.width()), &Device::Cpu).unwrap();
            let out = Tensor::zeros((count, heads.q * heads.dim), DType::F32, &Device::Cpu).unwrap();
            let scale = 1.0 / (heads.dim as f32).sqrt();
            attention(&self.ctx, &qkv, heads, &pages, &kv, 1, scale, self.window, &out).unwrap();
            out.to_vec2().unwrap()
        }

        /// In f64, without pages.
        fn exact(&self, sequence: usize, position: usize) -> Vec<f64> {
            let Heads { q, kv, dim } = self.heads;
            let round = |x: f32| match self.dtype {
                DType::BF16 => half::bf16::from_f32(x).to_f64(),
                DType::F16 => half::f16::from_f32(x).to_f64(),
                _ => f64::from(x),
            };
            let start = self.window.map_or(0, |w| (position + 1).saturating_sub(w as usize));
            let rows: Vec<Vec<f32>> = (start..=position).map(|p| self.row(sequence, p)).collect();
            let mine = self.row(sequence, position);
            let mut out = vec![];
            for head in 0..q {
                let kv_head = head / (q / kv);
                let scores: Vec<f64> = rows
                    .iter()
                    .map(|row| {
                        (0..dim)
                            .map(|d| f64::from(mine[head * dim + d]) * round(row[(q + kv_head) * dim + d]))
                            .sum::<f64>()
                            / (dim as f64).sqrt()
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                out.extend((0..dim).map(|d| {
                    rows.iter()
                        .zip(&scores)
                        .map(|(row, s)| (s - max).exp() / sum * round(row[(q + kv + kv_head) * dim + d]))
                        .sum::<f64>()
                }));
            }
            out
        }
    }

    fn scenes() -> Vec<Scene> {
        let mut scenes = vec![];
        for (heads, dtype, window) in [
            (Heads { q: 4, kv: 2, dim: 32 }, DType::BF16, None),
            (Heads { q: 8, kv: 1, dim: 64 }, DType::BF16, Some(23)),
            (Heads { q: 2, kv: 2, dim: 128 }, DType::F16, Some(16)),
            (Heads { q: 3, kv: 1, dim: 48 }, DType::F32, None),
            (Heads { q: 19, kv: 1, dim: 32 }, DType::F32, Some(40)),
            (Heads { q: 2, kv: 2, dim: 80 }, DType::BF16, None),
            (Heads { q: 2, kv: 1, dim: 256 }, DType::F32, Some(1)),
            (Heads { q: 2, kv: 1, dim: 20 }, DType::BF16, Some(5)),
        ] {
            let isas = Isa::ALL.into_iter().filter_map(|isa| Context::cpu_with(isa, 1).ok());
            // Threads enough that segments become tasks of their own.
            for ctx in isas.chain([Context::cpu_with(Isa::best(), 9).unwrap()]) {
                scenes.push(Scene { ctx, heads, dtype, window, lengths: vec![70, 33, 1] });
            }
        }
        scenes
    }

    #[test]
    fn a_prompt_attends_as_in_exact_arithmetic() {
        for scene in scenes() {
            for (position, out) in scene.run(&[(0, 0..70)]).iter().enumerate() {
                for (out, want) in out.iter().zip(scene.exact(0, position)) {
                    let error = (f64::from(*out) - want).abs();
                    assert!(error < 3e-6, "{:?} position {position}: {error}", scene.heads);
                }
            }
        }
    }

    #[test]
    fn whole_in_chunks_token_by_token_and_in_a_batch_give_the_same_bits() {
        for scene in scenes() {
            let whole = scene.run(&[(0, 0..70)]);
            for cut in [1, 15, 16, 33, 69] {
                assert_eq!(scene.run(&[(0, 0..cut)]), whole[..cut]);
                assert_eq!(scene.run(&[(0, cut..70)]), whole[cut..]);
                assert_eq!(scene.run(&[(0, cut..cut + 1)]), whole[cut..=cut]);
            }
            let batch = scene.run(&[(1, 20..33), (0, 66..70), (2, 0..1)]);
            assert_eq!(batch[13..17], whole[66..]);
            assert_eq!(batch[..13], scene.run(&[(1, 0..33)])[20..]);
            assert_eq!(batch[17..], scene.run(&[(2, 0..1)]));
        }
    }

    #[test]
    fn instruction_sets_and_threads_do_not_change_a_bit() {
        let scenes = scenes();
        for same in scenes.chunk_by(|a, b| (a.heads, a.dtype, a.window) == (b.heads, b.dtype, b.window)) {
            let pieces = [(1, 20..33), (0, 69..70), (2, 0..1)];
            let want = same[0].run(&pieces);
            assert!(same.iter().all(|scene| scene.run(&pieces) == want), "{:?}", same[0].heads);
        }
    }

    #[test]
    fn a_table_too_short_and_a_block_that_does_not_exist_are_refused() {
        let ctx = Context::cpu_with(Isa::best(), 1).unwrap();
        let heads = Heads { q: 2, kv: 1, dim: 16 };
        let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 16, blocks: 2, dtype: DType::BF16 };
        let kv = KvCache::new(&ctx, shape).unwrap();
        let qkv = Tensor::zeros((1, heads.width()), DType::F32, &Device::Cpu).unwrap();
        let out = Tensor::zeros((1, 32), DType::F32, &Device::Cpu).unwrap();
        for (tables, refused) in [(&[0, 1][..], false), (&[0], true), (&[0, 2], true)] {
            let spans = [Span { row: 0, rows: 1, table: 0, context: 17 }];
            let pages = Pages { positions: &[16], slots: &[16], spans: &spans, tables };
            let outcome = attention(&ctx, &qkv, heads, &pages, &kv, 0, 1.0, None, &out);
            assert_eq!(outcome.is_err(), refused, "{tables:?}");
        }
    }
}
