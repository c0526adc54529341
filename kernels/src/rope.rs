//! Rotary positions, and the way of keys and values into the cache.

use candle_core::Tensor;

use crate::buffer::{Aligned, Shared, write};
use crate::paged::Pages;
use crate::{Context, Error, KvCache};

/// How a row of `q | k | v` divides: `q * dim` numbers, then `kv * dim` of keys, then as many of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub q: usize,
    pub kv: usize,
    pub dim: usize,
}

impl Heads {
    /// Numbers of a row of `q | k | v`.
    pub fn width(&self) -> usize {
        (self.q + 2 * self.kv) * self.dim
    }
}

/// Cosines and sines by position.
pub struct RopeTable {
    /// Per position the cosines, then the sines, of all frequencies.
    turns: Aligned<f32>,
    frequencies: usize,
    positions: usize,
}

impl RopeTable {
    /// `inverse_frequencies` are radians per position, one for each pair of numbers that turns (fewer than half the
    /// head dimension leave the rest of a head as it is); both cosine and sine are multiplied by `factor` (1 for all
    /// but YaRN-like scalings). Takes `positions * frequencies * 8` bytes.
    pub fn new(
        ctx: &Context,
        inverse_frequencies: &[f32],
        factor: f32,
        positions: usize,
    ) -> Result<Self, Error> {
        let frequencies = inverse_frequencies.len();
        let mut turns = Aligned::zeroed(positions * 2 * frequencies)?;
        let to = Shared::new(&mut turns);
        ctx.run(positions, |position| {
            // SAFETY: each task writes its own position.
            let turns = unsafe { to.slice(position * 2 * frequencies, 2 * frequencies) };
            for (i, frequency) in inverse_frequencies.iter().enumerate() {
                // The angle in f32, as the reference implementation has it; its sine then as exactly as f32 can.
                let angle = f64::from(position as f32 * frequency);
                turns[i] = (angle.cos() * f64::from(factor)) as f32;
                turns[frequencies + i] = (angle.sin() * f64::from(factor)) as f32;
            }
        })?;
        Ok(Self { turns, frequencies, positions })
    }

    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Position after position, the cosines of all frequencies, then their sines.
    pub fn turns(&self) -> &[f32] {
        &self.turns
    }

    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        self.turns[position * 2 * self.frequencies..][..2 * self.frequencies].split_at(self.frequencies)
    }
}

/// Turns queries and keys of all rows of the step by their positions, in place, and writes keys and values to their
/// slots. `qkv` is `[capacity, heads.width()]`. The first half of a head turns with the second half (the layout of
/// Hugging Face checkpoints).
pub fn rope_store(
    ctx: &Context,
    qkv: &Tensor,
    heads: Heads,
    rope: &RopeTable,
    pages: &Pages<'_>,
    kv: &mut KvCache,
    layer: usize,
) -> Result<(), Error> {
    let rows = pages.positions.len();
    check(heads, rope, pages, kv, layer)?;
    let writer = kv.writer();
    write(("rope_store", "qkv"), qkv, rows, heads.width(), &[], |qkv| {
        let to = Shared::new(qkv);
        ctx.run(rows, |row| {
            // SAFETY: each task writes its own row.
            let qkv = unsafe { to.slice(row * heads.width(), heads.width()) };
            let (cos, sin) = rope.at(pages.positions[row] as usize);
            let (turning, values) = qkv.split_at_mut((heads.q + heads.kv) * heads.dim);
            turning.chunks_exact_mut(heads.dim).for_each(|head| turn(head, cos, sin));
            let keys = turning[heads.q * heads.dim..].chunks_exact(heads.dim);
            for (head, (key, value)) in keys.zip(values.chunks_exact(heads.dim)).enumerate() {
                // SAFETY: the slot exists (checked above) and belongs to this row alone (the plan's promise).
                unsafe { writer.put(layer, pages.slots[row] as usize, head, key, value) };
            }
        })
    })
}

/// The definition, for one head.
fn turn(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head[..2 * cos.len()].split_at_mut(cos.len());
    for i in 0..cos.len() {
        let (a, b) = (first[i], second[i]);
        first[i] = a * cos[i] - b * sin[i];
        second[i] = b * cos[i] + a * sin[i];
    }
}

fn check(heads: Heads, rope: &RopeTable, pages: &Pages<'_>, kv: &KvCache, layer: usize) -> Result<(), Error> {
    let shape = kv.shape();
    let wrong =
        |operand, got: Vec<usize>, want: String| Err(Error::Shape { op: "rope_store", operand, got, want });
    if (heads.kv, heads.dim) != (shape.kv_heads, shape.head_dim) {
        let want = format!("{} heads of {} for keys", shape.kv_heads, shape.head_dim);
        return wrong("heads", vec![heads.kv, heads.dim], want);
    }
    if 2 * rope.frequencies > heads.dim {
        return wrong("rope", vec![rope.frequencies], format!("at most {} frequencies", heads.dim / 2));
    }
    if layer >= shape.layers {
        return wrong("layer", vec![layer], format!("a layer below {}", shape.layers));
    }
    if pages.slots.len() != pages.positions.len() {
        return wrong("slots", vec![pages.slots.len()], format!("{}, a slot a row", pages.positions.len()));
    }
    let slots = shape.blocks * kv.block_size();
    if let Some(slot) = pages.slots.iter().find(|slot| **slot as usize >= slots) {
        return wrong("slot", vec![*slot as usize], format!("a slot below {slots}"));
    }
    if let Some(position) = pages.positions.iter().find(|at| **at as usize >= rope.positions) {
        return wrong("position", vec![*position as usize], format!("a position below {}", rope.positions));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::KvShape;
    use crate::cpu::detect::Isa;

    const HEADS: Heads = Heads { q: 3, kv: 2, dim: 8 };

    #[test]
    fn queries_and_keys_turn_by_position_and_keys_and_values_land_in_their_slots() {
        let ctx = Context::cpu_with(Isa::best(), 2).unwrap();
        // The second case turns only the first half of a head.
        for frequencies in [&[1.0f32, 0.3, 0.1, 0.01][..], &[0.5, 0.2]] {
            let rope = RopeTable::new(&ctx, frequencies, 1.25, 40).unwrap();
            let shape = KvShape { layers: 2, kv_heads: 2, head_dim: 8, blocks: 3, dtype: DType::F32 };
            let mut kv = KvCache::new(&ctx, shape).unwrap();
            let (positions, slots) = ([0, 39, 7], [47, 0, 17]);
            let pages = Pages { positions: &positions, slots: &slots, spans: &[], tables: &[] };
            let before: Vec<f32> = (0..4 * HEADS.width()).map(|i| (i as f32 * 0.3).sin()).collect();
            let qkv = Tensor::from_slice(&before, (4, HEADS.width()), &Device::Cpu).unwrap();
            rope_store(&ctx, &qkv, HEADS, &rope, &pages, &mut kv, 1).unwrap();
            let after = qkv.to_vec2::<f32>().unwrap();
            let half = frequencies.len();
            for row in 0..3 {
                let before = &before[row * HEADS.width()..];
                for i in 0..HEADS.width() {
                    let (head, d) = (i / 8, i % 8);
                    let want = if head >= 5 || d >= 2 * half {
                        f64::from(before[i])
                    } else {
                        let angle = f64::from(positions[row] as f32 * frequencies[d % half]);
                        let (x, y) = (before[head * 8 + d % half], before[head * 8 + d % half + half]);
                        let (x, y) = (1.25 * f64::from(x), 1.25 * f64::from(y));
                        if d < half {
                            x * angle.cos() - y * angle.sin()
                        } else {
                            y * angle.cos() + x * angle.sin()
                        }
                    };
                    assert!((f64::from(after[row][i]) - want).abs() < 1e-6, "row {row}, {i}");
                }
                for head in 0..2 {
                    for d in 0..8 {
                        let (block, offset) = (slots[row] as usize / 16, slots[row] as usize % 16);
                        let key = kv.number(shape.keys(1, block, head) + shape.key_at(offset, d));
                        let value = kv.number(shape.values(1, block, head) + shape.value_at(offset, d));
                        assert_eq!(key, after[row][(3 + head) * 8 + d]);
                        assert_eq!(value, after[row][(5 + head) * 8 + d]);
                    }
                }
            }
            assert_eq!(after[3], before[3 * HEADS.width()..]);
        }
    }

    #[test]
    fn a_slot_or_position_that_does_not_exist_is_refused() {
        let ctx = Context::cpu_with(Isa::best(), 1).unwrap();
        let rope = RopeTable::new(&ctx, &[1.0], 1.0, 10).unwrap();
        let shape = KvShape { layers: 1, kv_heads: 2, head_dim: 8, blocks: 1, dtype: DType::BF16 };
        let mut kv = KvCache::new(&ctx, shape).unwrap();
        let qkv = Tensor::zeros((1, HEADS.width()), DType::F32, &Device::Cpu).unwrap();
        for (position, slot, layer) in [(10, 0, 0), (0, 16, 0), (0, 0, 1)] {
            let pages = Pages { positions: &[position], slots: &[slot], spans: &[], tables: &[] };
            assert!(rope_store(&ctx, &qkv, HEADS, &rope, &pages, &mut kv, layer).is_err());
        }
    }
}
