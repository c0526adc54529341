//! Norms' weights and biases: small, and wanted in f32.

use candle_core::DType;
use half::{bf16, f16};

use crate::checkpoint::Checkpoint;
use crate::layout::Block;

/// The numbers of a block of vectors, one after another, and how many bytes they take in the checkpoint.
pub(crate) fn widen(checkpoint: &Checkpoint, block: &Block) -> (Vec<f32>, usize) {
    let mut wide: Vec<f32> = Vec::with_capacity(block.rows());
    let mut read = 0;
    for part in &block.parts {
        let slice = checkpoint.tensor(&part.name).expect("bug: the checkpoint was checked");
        read += slice.bytes.len();
        match slice.dtype {
            DType::BF16 => {
                wide.extend(slice.bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()))
            }
            DType::F16 => {
                wide.extend(slice.bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()))
            }
            _ => wide.extend(slice.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
        }
    }
    (wide, read)
}
