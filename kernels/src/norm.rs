//! Root-mean-square normalisation, before attention, before the feed-forward layer and before the head.

use candle_core::Tensor;

use crate::buffer::{Shared, read, read_vector, write};
use crate::cpu::lanes::{Kernel, Lanes, dispatch};
use crate::{Context, Error};

/// `out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * w`, with `w` the `weight` `[width]`, or one more than it when
/// `unit_offset` (Gemma).
pub fn rms_norm(
    ctx: &Context,
    x: &Tensor,
    rows: usize,
    weight: &Tensor,
    eps: f32,
    unit_offset: bool,
    out: &Tensor,
) -> Result<(), Error> {
    let width = weight.elem_count();
    let weight = read_vector(("rms_norm", "weight"), weight, width)?;
    let x = read(("rms_norm", "x"), x, rows, width)?;
    write(("rms_norm", "out"), out, rows, width, &[&x, &weight], |out| {
        let to = Shared::new(out);
        // A few thousand numbers are worth a task.
        let chunk = (8192 / width.max(1)).max(1);
        ctx.run(rows.div_ceil(chunk), |task| {
            for row in task * chunk..rows.min((task + 1) * chunk) {
                // SAFETY: each task writes its own rows.
                let out = unsafe { to.slice(row * width, width) };
                let x = &x[row * width..][..width];
                dispatch(
                    ctx,
                    Norm { x, weight: &weight, eps, offset: f32::from(u8::from(unit_offset)), out },
                );
            }
        })
    })
}

/// One row. Squares are summed in 32 chains, so the order is the same on every processor.
struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    offset: f32,
    out: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let width = self.x.len();
        // SAFETY: all pointers stay within slices of length `width`, and `L` is offered (the caller's promise).
        unsafe {
            let mut squares = [L::splat(0.0); 2];
            for (i, x) in self.x.chunks(16).enumerate() {
                let x = L::load_some(x.as_ptr(), x.len());
                squares[i % 2] = L::fma(x, x, squares[i % 2]);
            }
            let mean = L::sum(L::add(squares[0], squares[1])) / width as f32;
            let scale = L::splat(1.0 / (mean + self.eps).sqrt());
            for (i, x) in self.x.chunks(16).enumerate() {
                let weight = L::load_some(self.weight.as_ptr().add(16 * i), x.len());
                let weight = L::add(L::splat(self.offset), weight);
                let scaled = L::mul(L::load_some(x.as_ptr(), x.len()), scale);
                L::store_some(self.out.as_mut_ptr().add(16 * i), x.len(), L::mul(scaled, weight));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::cpu::detect::Isa;

    #[test]
    fn writing_over_the_input_is_refused() {
        let ctx = Context::cpu_with(Isa::best(), 1).unwrap();
        let x = Tensor::zeros((2, 32), DType::F32, &Device::Cpu).unwrap();
        let weight = Tensor::zeros(32, DType::F32, &Device::Cpu).unwrap();
        let error = rms_norm(&ctx, &x, 2, &weight, 1e-5, false, &x.clone()).unwrap_err();
        assert_eq!(error.to_string(), "rms_norm: out shares its memory with an input");
    }

    #[test]
    fn rows_are_scaled_to_unit_mean_square_and_weighted() {
        let ctx = Context::cpu_with(Isa::best(), 2).unwrap();
        for width in [1, 16, 50, 192, 1000] {
            for unit_offset in [false, true] {
                let rows = 5;
                let x: Vec<f32> = (0..rows * width).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
                let w: Vec<f32> = (0..width).map(|i| (i as f32 * 0.3).cos()).collect();
                let tensor = Tensor::from_slice(&x, (rows, width), &Device::Cpu).unwrap();
                let weight = Tensor::from_slice(&w, width, &Device::Cpu).unwrap();
                let out = Tensor::zeros((rows, width), DType::F32, &Device::Cpu).unwrap();
                rms_norm(&ctx, &tensor, rows - 1, &weight, 1e-5, unit_offset, &out).unwrap();
                let out = out.to_vec2::<f32>().unwrap();
                for r in 0..rows - 1 {
                    let x = &x[r * width..][..width];
                    let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                    for i in 0..width {
                        let w = f64::from(w[i]) + if unit_offset { 1.0 } else { 0.0 };
                        let want = f64::from(x[i]) / (mean + 1e-5).sqrt() * w;
                        assert!((f64::from(out[r][i]) - want).abs() <= 2e-6 * want.abs() + 1e-9);
                    }
                }
                assert_eq!(out[rows - 1], vec![0.0; width]);
            }
        }
    }
}
