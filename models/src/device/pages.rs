//! The pages of a layer's keys and values, in one of two types.

use half::bf16;
use hearth_kernels::Heads;
use hearth_kernels::cuda::attention::Cache;
use hearth_kernels::cuda::buffer::Buffer;
use hearth_kernels::cuda::driver::{Device, DeviceError};

use super::weights::Layer;

/// What a key or a value is stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    #[default]
    Bf16,
    /// e4m3 with a scale a head: half the memory, four significant bits.
    Fp8,
}

impl KvType {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            KvType::Bf16 => 2,
            KvType::Fp8 => 1,
        }
    }
}

#[derive(Debug)]
pub enum Pages {
    Bf16 {
        keys: Buffer<bf16>,
        values: Buffer<bf16>,
    },
    /// `scales` are what the keys of each head are multiplied with, then the values.
    Fp8 {
        keys: Buffer<u8>,
        values: Buffer<u8>,
        scales: Buffer<f32>,
    },
}

/// The largest e4m3, and how much of it a head's bias may fill: turning a pair of numbers can make one of them 1.4 times
/// as large, and the product comes on top.
const LARGEST: f32 = 448.0;
const FILLED: f32 = 0.25;

impl Pages {
    /// Pages with room for `numbers` keys and as many values.
    pub fn new(
        device: &Device,
        kind: KvType,
        numbers: usize,
        heads: Heads,
        layer: &Layer,
    ) -> Result<Self, DeviceError> {
        Ok(match kind {
            KvType::Bf16 => {
                Self::Bf16 { keys: Buffer::zeros(device, numbers)?, values: Buffer::zeros(device, numbers)? }
            }
            KvType::Fp8 => {
                let bias = layer.qkv.bias.as_ref().map(Buffer::get).transpose()?;
                Self::Fp8 {
                    keys: Buffer::zeros(device, numbers)?,
                    values: Buffer::zeros(device, numbers)?,
                    scales: Buffer::of(device, &scales(heads, bias.as_deref()))?,
                }
            }
        })
    }

    pub fn cache(&self) -> Cache<'_> {
        match self {
            Self::Bf16 { keys, values } => Cache::Bf16 { keys, values },
            Self::Fp8 { keys, values, scales } => Cache::E4m3 { keys, values, scales },
        }
    }
}

/// Scales of the heads of keys, then of values. Without calibration nobody knows how large a product becomes, and e4m3
/// reaches from 2^-9 to 448: 1 does for what norms keep near one. What is known is the bias, and there are models whose
/// keys have biases in the hundreds: a head whose bias is large is made smaller by a power of two.
fn scales(heads: Heads, bias: Option<&[f32]>) -> Vec<f32> {
    let Some(bias) = bias else { return vec![1.0; 2 * heads.kv] };
    let of_head = |head: &[f32]| {
        let largest = head.iter().fold(0f32, |most, number| most.max(number.abs()));
        // Down to a power of two, which rounds nothing.
        (FILLED * LARGEST / largest.max(1.0)).log2().floor().exp2().min(1.0)
    };
    bias[heads.q * heads.dim..].chunks(heads.dim).map(of_head).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_with_a_large_bias_is_made_smaller_and_no_other() {
        let heads = Heads { q: 1, kv: 2, dim: 2 };
        assert_eq!(scales(heads, None), [1.0; 4]);
        // Queries, two heads of keys, two of values.
        let bias = [9000.0, 0.0, 1.0, -2.0, 300.0, -500.0, 0.0, 0.0, 112.0, 0.0];
        assert_eq!(scales(heads, Some(&bias)), [1.0, 0.125, 1.0, 1.0]);
    }
}
