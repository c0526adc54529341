//! Products of activations with a packed weight: projections, feed-forward layers, the head.
//!
//! `out[r, n] = sum over k of x[r, k] * w[n, k] (+ bias[n]) (+ out[r, n])`, with the input rounded to bf16 first when
//! the weight is bf16. Every kernel sums in one order, that of AMX: in each group of 32 columns one chain of fused
//! multiply-adds over the even and one over the odd columns, both from zero; then `sum += even + odd`, groups
//! ascending, denormals flushed. So bits do not depend on the instructions, the number of rows or the threads, and
//! the number of rows may choose the kernel. Quantized weights go through candle and are exempt.

use candle_core::{Module, Tensor};
use half::bf16;

use crate::buffer::{Aligned, Shared, read, read_vector, write};
use crate::weight::{GROUP, PANEL, Store};
use crate::{Context, Error, Weight};

/// What becomes of the numbers in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Set,
    /// Adds to what is there: the residual.
    Add,
}

/// Multiplies the first `rows` rows of `x` `[capacity, cols]` with `weight` `[rows, cols]` into the first `rows` rows
/// of `out` `[capacity, weight rows]`; `bias` is `[weight rows]`.
pub fn linear(
    ctx: &Context,
    x: &Tensor,
    rows: usize,
    weight: &Weight,
    bias: Option<&Tensor>,
    out: &Tensor,
    how: Write,
) -> Result<(), Error> {
    on_tensors(ctx, x, rows, Gather::First(rows), weight, bias, out, how)
}

/// As [`linear`], for the listed rows of `x` only: row `i` of `out` is the product of row `list[i]`.
pub fn linear_rows(
    ctx: &Context,
    x: &Tensor,
    list: &[u32],
    weight: &Weight,
    bias: Option<&Tensor>,
    out: &Tensor,
    how: Write,
) -> Result<(), Error> {
    let reach = list.iter().max().map_or(0, |row| *row as usize + 1);
    on_tensors(ctx, x, reach, Gather::List(list), weight, bias, out, how)
}

#[allow(clippy::too_many_arguments)]
fn on_tensors(
    ctx: &Context,
    x: &Tensor,
    reach: usize,
    rows: Gather<'_>,
    weight: &Weight,
    bias: Option<&Tensor>,
    out: &Tensor,
    how: Write,
) -> Result<(), Error> {
    let x = read(("linear", "x"), x, reach, weight.cols())?;
    let bias = bias.map(|bias| read_vector(("linear", "bias"), bias, weight.rows())).transpose()?;
    write(("linear", "out"), out, rows.len(), weight.rows(), |out| {
        let scratch = &mut *ctx.scratch();
        product(ctx, &mut scratch.staged, &x, rows, weight, bias.as_deref(), out, how)
    })
}

/// Which rows of an input are multiplied.
#[derive(Clone, Copy)]
pub(crate) enum Gather<'a> {
    First(usize),
    List(&'a [u32]),
}

impl Gather<'_> {
    pub fn len(self) -> usize {
        match self {
            Gather::First(rows) => rows,
            Gather::List(list) => list.len(),
        }
    }

    pub fn row(self, i: usize) -> usize {
        match self {
            Gather::First(_) => i,
            Gather::List(list) => list[i] as usize,
        }
    }
}

/// The product on plain slices: `x` has rows of `weight.cols()`, `out` has `rows.len()` rows of `weight.rows()`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn product(
    ctx: &Context,
    staged: &mut Aligned<f32>,
    x: &[f32],
    rows: Gather<'_>,
    weight: &Weight,
    bias: Option<&[f32]>,
    out: &mut [f32],
    how: Write,
) -> Result<(), Error> {
    if rows.len() == 0 || weight.rows() == 0 {
        return Ok(());
    }
    if let Store::Blocks(blocks, _) = &weight.store {
        return quantized(x, rows, blocks, weight, bias, out, how);
    }
    reference(ctx, staged, x, rows, weight, bias, out, how)
}

/// The definition of the product: every sum by itself, in the order given above.
#[allow(clippy::too_many_arguments)]
pub(crate) fn reference(
    ctx: &Context,
    staged: &mut Aligned<f32>,
    x: &[f32],
    rows: Gather<'_>,
    weight: &Weight,
    bias: Option<&[f32]>,
    out: &mut [f32],
    how: Write,
) -> Result<(), Error> {
    let (outputs, cols) = (weight.rows(), weight.cols());
    let padded = cols.next_multiple_of(GROUP);
    staged.reserve(rows.len() * padded)?;
    for i in 0..rows.len() {
        let from = &x[rows.row(i) * cols..][..cols];
        let to = &mut staged[i * padded..][..padded];
        match weight.store {
            Store::Bf16(_) => to.iter_mut().zip(from).for_each(|(to, x)| *to = bf16::from_f32(*x).to_f32()),
            _ => to[..cols].copy_from_slice(from),
        }
        to[cols..].fill(0.0);
    }
    let (staged, to, rows) = (&*staged, Shared::new(out), rows.len());
    ctx.run(outputs.div_ceil(PANEL), |panel| {
        for n in panel * PANEL..outputs.min((panel + 1) * PANEL) {
            for r in 0..rows {
                let x = &staged[r * padded..][..padded];
                let mut sum = 0.0;
                for group in (0..padded).step_by(GROUP) {
                    let (mut even, mut odd) = (0.0f32, 0.0f32);
                    for k in (group..group + GROUP).step_by(2) {
                        let w = |k| if k < cols { weight.at(n, k).expect("bug: not packed") } else { 0.0 };
                        even = x[k].mul_add(w(k), even);
                        odd = x[k + 1].mul_add(w(k + 1), odd);
                    }
                    sum += even + odd;
                }
                // SAFETY: each task writes the columns of its own panel.
                let out = unsafe { &mut *to.at(r * outputs + n) };
                let sum = bias.map_or(sum, |bias| sum + bias[n]);
                *out = if how == Write::Add { *out + sum } else { sum };
            }
        }
    })
}

/// Through candle, which allocates its operands and runs on threads of its own.
fn quantized(
    x: &[f32],
    rows: Gather<'_>,
    blocks: &candle_core::quantized::QMatMul,
    weight: &Weight,
    bias: Option<&[f32]>,
    out: &mut [f32],
    how: Write,
) -> Result<(), Error> {
    let (outputs, cols) = (weight.rows(), weight.cols());
    let mut gathered = Vec::with_capacity(rows.len() * cols);
    for i in 0..rows.len() {
        gathered.extend_from_slice(&x[rows.row(i) * cols..][..cols]);
    }
    let x = Tensor::from_vec(gathered, (rows.len(), cols), &candle_core::Device::Cpu)?;
    let product = blocks.forward(&x)?;
    let product = read(("linear", "quantized product"), &product, rows.len(), outputs)?;
    for (out, product) in out.chunks_exact_mut(outputs).zip(product.chunks_exact(outputs)) {
        for (n, (out, sum)) in out.iter_mut().zip(product).enumerate() {
            let sum = bias.map_or(*sum, |bias| sum + bias[n]);
            *out = if how == Write::Add { *out + sum } else { sum };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::cpu::detect::Isa;
    use crate::{Quantize, View};

    fn wave(len: usize, step: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * step).sin()).collect()
    }

    fn weight(ctx: &Context, rows: usize, cols: usize) -> (Weight, Vec<f32>) {
        let numbers = wave(rows * cols, 0.37);
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        let view = View { dtype: DType::BF16, rows, cols, bytes: &bytes };
        let rounded = numbers.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        (Weight::pack(ctx, &[view]).unwrap(), rounded)
    }

    fn tensor(numbers: &[f32], rows: usize) -> Tensor {
        Tensor::from_slice(numbers, (rows, numbers.len() / rows), &Device::Cpu).unwrap()
    }

    #[test]
    fn the_product_with_bias_and_residual_is_near_the_exact_one() {
        let ctx = Context::cpu_with(Isa::best(), 2).unwrap();
        let (n, k, rows) = (37, 71, 5);
        let (weight, w) = weight(&ctx, n, k);
        let x = wave(7 * k, 0.11);
        let bias = Tensor::from_vec(wave(n, 0.5), n, &Device::Cpu).unwrap();
        let out = Tensor::ones((6, n), DType::F32, &Device::Cpu).unwrap();
        linear(&ctx, &tensor(&x, 7), rows, &weight, Some(&bias), &out, Write::Add).unwrap();
        let out = out.to_vec2::<f32>().unwrap();
        let bias = wave(n, 0.5);
        for r in 0..rows {
            for o in 0..n {
                let x = |c: usize| f64::from(bf16::from_f32(x[r * k + c]).to_f32());
                let exact: f64 = (0..k).map(|c| x(c) * f64::from(w[o * k + c])).sum::<f64>();
                let exact = exact + f64::from(bias[o]) + 1.0;
                assert!((f64::from(out[r][o]) - exact).abs() < 1e-5, "{r} {o}: {} {exact}", out[r][o]);
            }
        }
        assert_eq!(out[5], vec![1.0; n], "a row beyond the count changed");
    }

    #[test]
    fn listed_rows_give_what_they_give_among_all_rows() {
        let ctx = Context::cpu_with(Isa::best(), 2).unwrap();
        let (weight, _) = weight(&ctx, 20, 64);
        let x = tensor(&wave(9 * 64, 0.21), 9);
        let all = Tensor::zeros((9, 20), DType::F32, &Device::Cpu).unwrap();
        let some = all.copy().unwrap();
        linear(&ctx, &x, 9, &weight, None, &all, Write::Set).unwrap();
        linear_rows(&ctx, &x, &[8, 0, 3], &weight, None, &some, Write::Set).unwrap();
        let (all, some) = (all.to_vec2::<f32>().unwrap(), some.to_vec2::<f32>().unwrap());
        assert_eq!(&some[..3], &[all[8].clone(), all[0].clone(), all[3].clone()]);
        assert!(linear_rows(&ctx, &x, &[9], &weight, None, &x, Write::Set).is_err());
    }

    #[test]
    fn quantized_products_are_near_the_exact_one() {
        let ctx = Context::cpu_with(Isa::best(), 2).unwrap();
        let (n, k) = (48, 512);
        let noise = |len: u32, seed: u32| -> Vec<f32> {
            let number =
                |i: u32| ((i + seed).wrapping_mul(0x9e37_79b1).rotate_left(15)).wrapping_mul(0x85eb_ca6b);
            (0..len).map(|i| number(i) as f32 / u32::MAX as f32 - 0.5).collect()
        };
        let numbers = noise((n * k) as u32, 0);
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = View { dtype: DType::F32, rows: n, cols: k, bytes: &bytes };
        let x = noise(3 * k as u32, 1 << 20);
        for (kind, most) in [(Quantize::Q8_0, 0.02), (Quantize::Q6K, 0.04), (Quantize::Q4K, 0.12)] {
            let weight = Weight::quantize(&ctx, &[view], kind).unwrap();
            let out = Tensor::ones((3, n), DType::F32, &Device::Cpu).unwrap();
            linear(&ctx, &tensor(&x, 3), 3, &weight, None, &out, Write::Add).unwrap();
            let out = out.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let (mut error, mut norm) = (0.0, 0.0);
            for (i, out) in out.iter().enumerate() {
                let (r, o) = (i / n, i % n);
                let exact: f32 = (0..k).map(|c| x[r * k + c] * numbers[o * k + c]).sum::<f32>();
                error += (out - 1.0 - exact).powi(2);
                norm += exact.powi(2);
            }
            let relative = (error / norm).sqrt();
            assert!(relative < most, "{}: {relative}", kind.name());
        }
    }

    #[test]
    fn an_input_of_the_wrong_width_is_refused_by_name() {
        let ctx = Context::cpu_with(Isa::best(), 1).unwrap();
        let (weight, _) = weight(&ctx, 4, 32);
        let out = tensor(&[0.0; 4], 1);
        let error = linear(&ctx, &tensor(&[0.0; 31], 1), 1, &weight, None, &out, Write::Set).unwrap_err();
        assert!(error.to_string().contains("linear: x has shape [1, 31]"), "{error}");
    }
}
