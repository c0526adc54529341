//! Products of activations with a packed weight: projections, feed-forward layers, the head.
//!
//! `out[r, n] = sum over k of x[r, k] * w[n, k] (+ bias[n]) (+ out[r, n])`, with the input rounded to bf16 first when
//! the weight is bf16. Every kernel sums in one order, that of AMX: in each group of 32 columns one chain of fused
//! multiply-adds over the even and one over the odd columns, both from zero; then `sum += even + odd`, groups
//! ascending, denormals flushed. So bits do not depend on the instructions, the number of rows or the threads, and
//! the number of rows may choose the kernel. Quantized weights go through candle and are exempt.

use candle_core::quantized::QMatMul;
use candle_core::{Device, Module, Tensor};

use crate::buffer::{read, read_vector, write};
use crate::cpu;
use crate::cpu::product::Staging;
#[cfg(test)]
use crate::weight::GROUP;
use crate::weight::Store;
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

#[allow(
    clippy::too_many_arguments,
    reason = "the operands of one product; a struct would be built at every call"
)]
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
    write(("linear", "out"), out, rows.len(), weight.rows(), &[&x], |out| {
        let scratch = &mut *ctx.scratch();
        let op = Operands { x: &x, rows, weight, bias: bias.as_deref(), how };
        product(ctx, &mut scratch.staging, &op, out)
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

/// A product on plain slices: `x` has rows of `weight.cols()`, the output has `rows.len()` rows of `weight.rows()`.
pub(crate) struct Operands<'a> {
    pub x: &'a [f32],
    pub rows: Gather<'a>,
    pub weight: &'a Weight,
    pub bias: Option<&'a [f32]>,
    pub how: Write,
}

pub(crate) fn product(
    ctx: &Context,
    staging: &mut Staging,
    op: &Operands<'_>,
    out: &mut [f32],
) -> Result<(), Error> {
    debug_assert!(out.len() >= op.rows.len() * op.weight.rows());
    if op.rows.len() == 0 || op.weight.rows() == 0 {
        return Ok(());
    }
    match &op.weight.store {
        Store::Blocks(blocks, _) => quantized(op, blocks, out),
        _ => cpu::product::run(ctx, staging, op, out),
    }
}

/// Through candle, which allocates its operands and runs on threads of its own.
fn quantized(op: &Operands<'_>, blocks: &QMatMul, out: &mut [f32]) -> Result<(), Error> {
    let (rows, outputs, cols) = (op.rows.len(), op.weight.rows(), op.weight.cols());
    let mut gathered = Vec::with_capacity(rows * cols);
    for i in 0..rows {
        gathered.extend_from_slice(&op.x[op.rows.row(i) * cols..][..cols]);
    }
    let x = Tensor::from_vec(gathered, (rows, cols), &Device::Cpu)?;
    let product = blocks.forward(&x)?;
    let product = read(("linear", "quantized product"), &product, rows, outputs)?;
    for (out, product) in out.chunks_exact_mut(outputs).zip(product.chunks_exact(outputs)) {
        for (n, (out, sum)) in out.iter_mut().zip(product).enumerate() {
            *out = finish(op, n, *sum, *out);
        }
    }
    Ok(())
}

/// Bias and residual of one number.
fn finish(op: &Operands<'_>, n: usize, sum: f32, before: f32) -> f32 {
    let sum = op.bias.map_or(sum, |bias| sum + bias[n]);
    if op.how == Write::Add { before + sum } else { sum }
}

/// The definition of the product: every sum by itself, in the order given above. Denormals must be flushed.
#[cfg(test)]
fn reference(op: &Operands<'_>, out: &mut [f32]) {
    let (outputs, cols) = (op.weight.rows(), op.weight.cols());
    for i in 0..op.rows.len() {
        let x = &op.x[op.rows.row(i) * cols..][..cols];
        let x = |k| match op.weight.store {
            _ if k >= cols => 0.0,
            Store::Bf16(_) => half::bf16::from_f32(x[k]).to_f32(),
            _ => x[k],
        };
        for n in 0..outputs {
            let w = |k| if k < cols { op.weight.at(n, k).expect("bug: not packed") } else { 0.0 };
            let mut sum = 0.0;
            for group in (0..cols).step_by(GROUP) {
                let (mut even, mut odd) = (0.0f32, 0.0f32);
                for k in (group..group + GROUP).step_by(2) {
                    even = x(k).mul_add(w(k), even);
                    odd = x(k + 1).mul_add(w(k + 1), odd);
                }
                sum += even + odd;
            }
            let out = &mut out[i * outputs + n];
            *out = finish(op, n, sum, *out);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use half::bf16;
    use proptest::prelude::*;

    use super::*;
    use crate::cpu::detect::Isa;
    use crate::cpu::pool::FlushDenormals;
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

    /// Numbers of every kind that the order of sums can tell apart: large ones that cancel, denormals, infinities.
    fn kind(choice: u32, i: u32) -> f32 {
        let hash = (i.wrapping_add(choice << 20))
            .wrapping_mul(0x9e37_79b1)
            .rotate_left(13)
            .wrapping_mul(0x85eb_ca6b);
        let x = (hash >> 8) as f32 / (1 << 23) as f32 - 1.0;
        match choice % 4 {
            0 => x,
            // Magnitudes from 2^-40 to 2^40.
            1 => x * 2f32.powi((hash & 0xff) as i32 % 81 - 40),
            // Products around the smallest normal numbers, and denormals themselves.
            2 => x * 2f32.powi(-58 - (hash & 7) as i32 * 10),
            _ => match hash & 0xfff {
                0 => f32::INFINITY,
                1 => f32::MAX,
                2 => -0.0,
                _ => x * 1e3,
            },
        }
    }

    struct Case {
        rows: usize,
        outputs: usize,
        cols: usize,
        dtype: DType,
        choice: u32,
        bias: bool,
        how: Write,
    }

    impl Case {
        fn x(&self) -> Vec<f32> {
            (0..(self.rows * self.cols) as u32).map(|i| kind(self.choice, i)).collect()
        }

        fn weight(&self, ctx: &Context) -> Weight {
            let numbers = (0..(self.outputs * self.cols) as u32).map(|i| kind(self.choice / 4, i + 77));
            let bytes: Vec<u8> = numbers
                .flat_map(|x| match self.dtype {
                    DType::BF16 => bf16::from_f32(x).to_le_bytes().to_vec(),
                    DType::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
                    _ => x.to_le_bytes().to_vec(),
                })
                .collect();
            let view = View { dtype: self.dtype, rows: self.outputs, cols: self.cols, bytes: &bytes };
            Weight::pack(ctx, &[view]).unwrap()
        }

        /// Bits of the product of some of the rows; one bit pattern for all that is no number.
        fn bits(&self, run: impl Fn(&Operands<'_>, &mut [f32]), weight: &Weight, rows: &[u32]) -> Vec<u32> {
            let bias = wave(self.outputs, 0.9);
            let x = self.x();
            let bias = self.bias.then_some(&bias[..]);
            let op = Operands { x: &x, rows: Gather::List(rows), weight, bias, how: self.how };
            let mut out = vec![0.5; rows.len() * self.outputs];
            run(&op, &mut out);
            out.into_iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
        }
    }

    fn contexts() -> Vec<Context> {
        let of = |isa| [1, 3].into_iter().filter_map(move |threads| Context::cpu_with(isa, threads).ok());
        Isa::ALL.into_iter().flat_map(of).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn every_instruction_set_row_count_and_thread_count_gives_the_bits_of_the_definition(
            rows in 1usize..70,
            outputs in 1usize..90,
            cols in 1usize..300,
            dtype in prop::sample::select(vec![DType::BF16, DType::BF16, DType::F16, DType::F32]),
            choice in 0u32..16,
            bias: bool,
            add: bool,
        ) {
            let how = if add { Write::Add } else { Write::Set };
            let case = Case { rows, outputs, cols, dtype, choice, bias, how };
            let contexts = contexts();
            let weight = case.weight(&contexts[0]);
            let all: Vec<u32> = (0..rows as u32).collect();
            let want = {
                let _flush = FlushDenormals::on();
                case.bits(reference, &weight, &all)
            };
            for ctx in &contexts {
                let run = |op: &Operands<'_>, out: &mut [f32]| product(ctx, &mut Staging::empty(), op, out).unwrap();
                prop_assert!(case.bits(run, &weight, &all) == want, "{:?} {} threads", ctx.isa(), ctx.threads());
                let (one, rest) = all.split_at(1);
                prop_assert!(case.bits(run, &weight, one) == want[..outputs], "{:?} one row", ctx.isa());
                prop_assert!(case.bits(run, &weight, rest) == want[outputs..], "{:?} other rows", ctx.isa());
            }
        }
    }
}
