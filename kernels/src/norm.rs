//! Root-mean-square normalisation, before attention, before the feed-forward layer and before the head.

use candle_core::Tensor;

use crate::buffer::{Shared, read, read_vector, write};
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
    write(("rms_norm", "out"), out, rows, width, |out| {
        let to = Shared::new(out);
        ctx.run(rows, |row| {
            // SAFETY: each task writes its own row.
            let out = unsafe { to.slice(row * width, width) };
            reference(&x[row * width..][..width], &weight, eps, unit_offset, out);
        })
    })
}

/// The definition, for one row.
fn reference(x: &[f32], weight: &[f32], eps: f32, unit_offset: bool, out: &mut [f32]) {
    let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    let offset = if unit_offset { 1.0 } else { 0.0 };
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * (offset + w);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::cpu::detect::Isa;

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
