//! The ceiling of a product with one row: reading the weight and nothing else.

#![allow(unsafe_op_in_unsafe_fn)]

use std::sync::atomic::{AtomicU32, Ordering};

use crate::cpu::lanes::{Kernel, Lanes, dispatch};
use crate::weight::Store;
use crate::{Context, Error, Weight};

/// Reads all of a packed weight on all threads and returns something that depends on every number of it. Benchmarks
/// hold products against it; quantized weights read nothing.
pub fn read_through(ctx: &Context, weight: &Weight) -> Result<u32, Error> {
    let numbers: &[f32] = match &weight.store {
        Store::F32(all) => all,
        // SAFETY: the buffer is aligned to 64 bytes, its length is a multiple of 512 numbers, and any bits are a f32.
        Store::Bf16(all) | Store::F16(all) => unsafe {
            std::slice::from_raw_parts(all.as_ptr().cast(), all.len() / 2)
        },
        Store::Blocks(..) => &[],
    };
    let seen = AtomicU32::new(0);
    let chunk = 1 << 15;
    ctx.run(numbers.len().div_ceil(chunk), |task| {
        let part = &numbers[task * chunk..numbers.len().min((task + 1) * chunk)];
        dispatch(ctx, Read { part, seen: &seen });
    })?;
    Ok(seen.into_inner())
}

struct Read<'a> {
    part: &'a [f32],
    seen: &'a AtomicU32,
}

impl Kernel for Read<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let mut sums = [L::splat(0.0); 4];
        for four in self.part.as_chunks::<64>().0 {
            for (i, sum) in sums.iter_mut().enumerate() {
                let from = four.as_ptr().add(16 * i);
                L::prefetch(from.wrapping_byte_add(4096));
                *sum = L::max(*sum, L::load(from));
            }
        }
        let top = L::top(L::max(L::max(sums[0], sums[1]), L::max(sums[2], sums[3])));
        self.seen.fetch_xor(top.to_bits(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::View;

    #[test]
    fn the_largest_number_is_found_wherever_it_lies() {
        let ctx = Context::cpu(None).unwrap();
        for at in [0, 1000, 32 * 128 - 1] {
            let numbers = (0..32 * 128).map(|i| if i == at { 3.0f32 } else { 1.0 });
            let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
            let view = View { dtype: DType::F32, rows: 32, cols: 128, bytes: &bytes };
            let weight = Weight::pack(&ctx, &[view]).unwrap();
            assert_eq!(f32::from_bits(read_through(&ctx, &weight).unwrap()), 3.0);
        }
    }
}
