//! Norms' weights and biases: small, and wanted in f32.

use candle_core::DType;
use half::{bf16, f16};

use crate::checkpoint::Checkpoint;
use crate::layout::Block;
use crate::shard::Shard;

/// The numbers of a rank's part of vectors, one after another, and how many bytes they take in the checkpoint.
pub(crate) fn widen(checkpoint: &Checkpoint, block: &Block, shard: Shard) -> (Vec<f32>, usize) {
    let mut wide: Vec<f32> = Vec::with_capacity(block.rows());
    let mut read = 0;
    for part in &block.parts {
        let dtype = checkpoint.dtype(&part.name).expect("bug: the checkpoint was checked");
        let bytes = shard.cut(checkpoint, part);
        read += bytes.len();
        match dtype {
            DType::BF16 => wide.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
            DType::F16 => wide.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
            _ => wide.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
        }
    }
    (wide, read)
}
