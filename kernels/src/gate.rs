//! The activation of the feed-forward layer, times its second half.

use candle_core::Tensor;

use crate::buffer::{Shared, read, write};
use crate::cpu::lanes::{Kernel, Lanes, dispatch};
use crate::{Context, Error};

/// How the gate is bent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

/// `out[r, i] = act(gu[r, i]) * gu[r, ffn + i]`: `gu` is `[capacity, 2 * ffn]`, gate beside up; `out` is
/// `[capacity, ffn]`.
pub fn gate(ctx: &Context, gu: &Tensor, rows: usize, act: Activation, out: &Tensor) -> Result<(), Error> {
    let width = out.dims().get(1).copied().unwrap_or(0);
    let gu = read(("gate", "gu"), gu, rows, 2 * width)?;
    write(("gate", "out"), out, rows, width, &[&gu], |out| on_rows(ctx, &gu, rows, width, act, out))
}

/// [`gate`] on plain slices.
pub(crate) fn on_rows(
    ctx: &Context,
    gu: &[f32],
    rows: usize,
    width: usize,
    act: Activation,
    out: &mut [f32],
) -> Result<(), Error> {
    let to = Shared::new(out);
    let chunks = width.div_ceil(CHUNK);
    ctx.run(rows * chunks, |task| {
        let (row, start) = (task / chunks, task % chunks * CHUNK);
        let end = width.min(start + CHUNK);
        let (gate, up) = gu[row * 2 * width..][..2 * width].split_at(width);
        // SAFETY: each task writes its own part of its row.
        let out = unsafe { to.slice(row * width + start, end - start) };
        dispatch(ctx, Gate { gate: &gate[start..end], up: &up[start..end], act, out });
    })
}

/// Numbers of a task.
const CHUNK: usize = 2048;

struct Gate<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    act: Activation,
    out: &'a mut [f32],
}

impl Kernel for Gate<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for (i, gate) in self.gate.chunks(16).enumerate() {
            // SAFETY: all pointers stay within slices of one length, and `L` is offered (the caller's promise).
            unsafe {
                let x = L::load_some(gate.as_ptr(), gate.len());
                // Both are x / (1 + e^-y): the tanh of GELU is a sigmoid of twice its argument, less cancellation.
                let minus_y = match self.act {
                    Activation::Silu => L::sub(L::splat(0.0), x),
                    Activation::GeluTanh => {
                        let cube = L::mul(L::mul(x, x), L::mul(x, L::splat(0.044_715)));
                        L::mul(L::splat(-2.0 * SQRT_2_OVER_PI), L::add(x, cube))
                    }
                };
                let bent = L::div(x, L::add(L::splat(1.0), L::exp(minus_y)));
                let up = L::load_some(self.up.as_ptr().add(16 * i), gate.len());
                L::store_some(self.out.as_mut_ptr().add(16 * i), gate.len(), L::mul(bent, up));
            }
        }
    }
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::cpu::detect::Isa;

    #[test]
    fn both_activations_are_near_the_exact_ones_over_their_whole_range() {
        let ctx = Context::cpu_with(Isa::best(), 2).unwrap();
        for (act, width) in [(Activation::Silu, 1001), (Activation::GeluTanh, 1001), (Activation::Silu, 7)] {
            let rows = 3;
            let value = |r: usize, i: usize| ((i as f32 / width as f32) - 0.5) * 24.0 * (r + 1) as f32;
            let gu: Vec<f32> =
                (0..rows * 2 * width).map(|i| value(i / (2 * width), i % (2 * width) % width)).collect();
            let gu = Tensor::from_vec(gu, (rows, 2 * width), &Device::Cpu).unwrap();
            let out = Tensor::zeros((rows, width), DType::F32, &Device::Cpu).unwrap();
            gate(&ctx, &gu, rows, act, &out).unwrap();
            for (r, out) in out.to_vec2::<f32>().unwrap().into_iter().enumerate() {
                for (i, out) in out.into_iter().enumerate() {
                    let x = f64::from(value(r, i));
                    let bent = match act {
                        Activation::Silu => x / (1.0 + (-x).exp()),
                        Activation::GeluTanh => {
                            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                            // 1 + tanh, without the cancellation.
                            x / (1.0 + (-2.0 * inner).exp())
                        }
                    };
                    let (out, want) = (f64::from(out), bent * x);
                    // Where GELU is nearly zero its definition in f32 cancels too.
                    assert!(
                        (out - want).abs() <= 5e-6 * want.abs() + 1e-6 * x * x,
                        "{act:?}({x}): {out} {want}"
                    );
                }
            }
        }
    }
}
