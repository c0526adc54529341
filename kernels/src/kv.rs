//! The keys and values of all sequences: blocks of [`BLOCK`] positions, numbered, in every layer.
//!
//! Inside a block, head after head, first the keys, then the values of the head:
//!
//! ```text
//! keys     bf16 [dim / 2][16 positions][2]   f16, f32 [dim][16 positions]   a column of scores per register
//! values   bf16 [8 pairs of positions][dim][2]   f16, f32 [16 positions][dim]
//! ```
//!
//! Both are the order of a packed weight, positions in the place of outputs for keys and of inputs for values, so that
//! vectors and tiles read them without turning anything around.

use candle_core::DType;
use half::{bf16, f16};

use crate::buffer::{Aligned, Shared};
use crate::cpu::product::round;
use crate::paged::BLOCK;
use crate::{Context, Error};

/// What a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    pub layers: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub blocks: usize,
    /// BF16, F16 or F32.
    pub dtype: DType,
}

impl KvShape {
    /// Memory of one block in all layers.
    pub fn block_bytes(&self) -> usize {
        self.layers * self.layer_block() * self.dtype.size_in_bytes()
    }

    /// Numbers of one block in one layer.
    fn layer_block(&self) -> usize {
        self.kv_heads * self.head()
    }

    /// Numbers of one head of a block: its keys and its values.
    fn head(&self) -> usize {
        2 * BLOCK * self.head_dim
    }

    /// Where the keys of a head begin.
    pub(crate) fn keys(&self, layer: usize, block: usize, head: usize) -> usize {
        (layer * self.blocks + block) * self.layer_block() + head * self.head()
    }

    /// Where the values of a head begin.
    pub(crate) fn values(&self, layer: usize, block: usize, head: usize) -> usize {
        self.keys(layer, block, head) + BLOCK * self.head_dim
    }

    /// Place of a number of a key behind the start of its head.
    pub(crate) fn key_at(&self, offset: usize, d: usize) -> usize {
        match self.dtype {
            DType::BF16 => d / 2 * 2 * BLOCK + offset * 2 + d % 2,
            _ => d * BLOCK + offset,
        }
    }

    /// Place of a number of a value behind the start of its head.
    pub(crate) fn value_at(&self, offset: usize, d: usize) -> usize {
        match self.dtype {
            DType::BF16 => offset / 2 * 2 * self.head_dim + d * 2 + offset % 2,
            _ => offset * self.head_dim + d,
        }
    }
}

/// Keys and values in memory of the device, zeroed at first.
pub struct KvCache {
    shape: KvShape,
    pub(crate) store: KvStore,
}

pub(crate) enum KvStore {
    Bf16(Aligned<u16>),
    F16(Aligned<u16>),
    F32(Aligned<f32>),
}

impl KvCache {
    pub fn new(_ctx: &Context, shape: KvShape) -> Result<Self, Error> {
        if !shape.head_dim.is_multiple_of(2) {
            return Err(Error::Shape {
                op: "KvCache::new",
                operand: "head_dim",
                got: vec![shape.head_dim],
                want: "an even head dimension".to_owned(),
            });
        }
        let numbers = shape
            .blocks
            .checked_mul(shape.layers * shape.layer_block())
            .ok_or(Error::Memory { bytes: usize::MAX })?;
        let store = match shape.dtype {
            DType::BF16 => KvStore::Bf16(Aligned::zeroed(numbers)?),
            DType::F16 => KvStore::F16(Aligned::zeroed(numbers)?),
            DType::F32 => KvStore::F32(Aligned::zeroed(numbers)?),
            other => {
                let supported = "bf16, f16, f32";
                return Err(Error::Type { op: "KvCache::new", dtype: format!("{other:?}"), supported });
            }
        };
        Ok(Self { shape, store })
    }

    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Positions of a block.
    pub fn block_size(&self) -> usize {
        BLOCK
    }

    pub fn bytes(&self) -> usize {
        self.shape.blocks * self.shape.block_bytes()
    }

    pub(crate) fn number(&self, at: usize) -> f32 {
        match &self.store {
            KvStore::Bf16(all) => bf16::from_bits(all[at]).to_f32(),
            KvStore::F16(all) => f16::from_bits(all[at]).to_f32(),
            KvStore::F32(all) => all[at],
        }
    }

    pub(crate) fn writer(&mut self) -> KvWriter {
        let to = match &mut self.store {
            KvStore::Bf16(all) => KvPlaces::Bf16(Shared::new(all)),
            KvStore::F16(all) => KvPlaces::F16(Shared::new(all)),
            KvStore::F32(all) => KvPlaces::F32(Shared::new(all)),
        };
        KvWriter { shape: self.shape, to }
    }
}

/// Writes keys and values of different slots from several threads.
#[derive(Clone, Copy)]
pub(crate) struct KvWriter {
    shape: KvShape,
    to: KvPlaces,
}

#[derive(Clone, Copy)]
enum KvPlaces {
    Bf16(Shared<u16>),
    F16(Shared<u16>),
    F32(Shared<f32>),
}

impl KvWriter {
    /// Writes the key and the value of one head at a slot, rounded to the type of the cache.
    ///
    /// # Safety
    /// Layer, slot and head exist, key and value are `head_dim` long, and no other thread uses this slot meanwhile.
    pub unsafe fn put(&self, layer: usize, slot: usize, head: usize, key: &[f32], value: &[f32]) {
        let (block, offset) = (slot / BLOCK, slot % BLOCK);
        let keys = self.shape.keys(layer, block, head);
        let values = self.shape.values(layer, block, head);
        let (key_at, value_at) =
            (keys + self.shape.key_at(offset, 0), values + self.shape.value_at(offset, 0));
        // SAFETY: the places lie in this slot's part of the cache by the caller's promise. Their strides are those of
        // `key_at` and `value_at`.
        unsafe {
            match self.to {
                KvPlaces::Bf16(to) => {
                    let (keys, values) = (to.at(key_at), to.at(value_at));
                    for (pair, x) in key.as_chunks::<2>().0.iter().enumerate() {
                        *keys.add(pair * 2 * BLOCK) = round(x[0]);
                        *keys.add(pair * 2 * BLOCK + 1) = round(x[1]);
                    }
                    value.iter().enumerate().for_each(|(d, x)| *values.add(2 * d) = round(*x));
                }
                KvPlaces::F16(to) => {
                    let (keys, values) = (to.at(key_at), to.at(value_at));
                    key.iter()
                        .enumerate()
                        .for_each(|(d, x)| *keys.add(d * BLOCK) = f16::from_f32(*x).to_bits());
                    value.iter().enumerate().for_each(|(d, x)| *values.add(d) = f16::from_f32(*x).to_bits());
                }
                KvPlaces::F32(to) => {
                    let (keys, values) = (to.at(key_at), to.at(value_at));
                    key.iter().enumerate().for_each(|(d, x)| *keys.add(d * BLOCK) = *x);
                    value.iter().enumerate().for_each(|(d, x)| *values.add(d) = *x);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::detect::Isa;

    #[test]
    fn slots_do_not_overlap_and_every_number_comes_back() {
        let ctx = Context::cpu_with(Isa::Scalar, 1).unwrap();
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let shape = KvShape { layers: 2, kv_heads: 2, head_dim: 6, blocks: 3, dtype };
            let mut cache = KvCache::new(&ctx, shape).unwrap();
            assert_eq!(cache.bytes(), 3 * 2 * 2 * 2 * 16 * 6 * dtype.size_in_bytes());
            let number = |layer, slot, head, d| ((layer * 48 + slot) * 2 + head) as f32 + d as f32 / 16.0;
            let each = |mut f: Box<dyn FnMut(usize, usize, usize) + '_>| {
                for layer in 0..2 {
                    for slot in 0..48 {
                        for head in 0..2 {
                            f(layer, slot, head);
                        }
                    }
                }
            };
            let writer = cache.writer();
            each(Box::new(|layer, slot, head| {
                let key: Vec<f32> = (0..6).map(|d| number(layer, slot, head, d)).collect();
                let value: Vec<f32> = key.iter().map(|x| -x).collect();
                // SAFETY: one thread, and all indices exist.
                unsafe { writer.put(layer, slot, head, &key, &value) };
            }));
            let round = |x: f32| match dtype {
                DType::BF16 => bf16::from_f32(x).to_f32(),
                DType::F16 => f16::from_f32(x).to_f32(),
                _ => x,
            };
            each(Box::new(|layer, slot, head| {
                for d in 0..6 {
                    let key = shape.keys(layer, slot / BLOCK, head) + shape.key_at(slot % BLOCK, d);
                    let value = shape.values(layer, slot / BLOCK, head) + shape.value_at(slot % BLOCK, d);
                    let want = round(number(layer, slot, head, d));
                    assert_eq!((cache.number(key), cache.number(value)), (want, -want));
                }
            }));
        }
    }
}
