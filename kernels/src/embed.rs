//! The first operation of a step: token ids to rows of activations.

use candle_core::Tensor;

use crate::buffer::{Shared, write};
use crate::{Context, Error, Weight};

/// Row `i` of `out` `[capacity, cols]` becomes row `ids[i]` of the table, widened to f32, times `scale`. The table is a
/// packed weight, so that a tied head shares it; quantized tables are refused.
pub fn embed(ctx: &Context, table: &Weight, ids: &[u32], scale: f32, out: &Tensor) -> Result<(), Error> {
    let cols = table.cols();
    if let Some(id) = ids.iter().find(|id| **id as usize >= table.rows()) {
        let want = format!("ids below {}", table.rows());
        return Err(Error::Shape { op: "embed", operand: "id", got: vec![*id as usize], want });
    }
    if table.rows() > 0 && table.at(0, 0).is_none() {
        let dtype = table.dtype_name().to_owned();
        return Err(Error::Type { op: "embed", dtype, supported: "bf16, f16, f32" });
    }
    write(("embed", "out"), out, ids.len(), cols, &[], |out| {
        let to = Shared::new(out);
        ctx.run(ids.len(), |row| {
            // SAFETY: each task writes its own row.
            let out = unsafe { to.slice(row * cols, cols) };
            for (col, out) in out.iter_mut().enumerate() {
                *out = table.at(ids[row] as usize, col).expect("bug: the type was checked") * scale;
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use half::bf16;

    use super::*;
    use crate::cpu::detect::Isa;
    use crate::{Quantize, View};

    #[test]
    fn tokens_become_their_rows_scaled() {
        let ctx = Context::cpu_with(Isa::best(), 2).unwrap();
        let (rows, cols) = (40, 50);
        let number = |row: usize, col: usize| bf16::from_f32((row * cols + col) as f32 * 0.01);
        let bytes: Vec<u8> =
            (0..rows * cols).flat_map(|i| number(i / cols, i % cols).to_le_bytes()).collect();
        let table = Weight::pack(&ctx, &[View { dtype: DType::BF16, rows, cols, bytes: &bytes }]).unwrap();
        let out = Tensor::zeros((4, cols), DType::F32, &Device::Cpu).unwrap();
        embed(&ctx, &table, &[39, 0, 17], 1.5, &out).unwrap();
        let out = out.to_vec2::<f32>().unwrap();
        for (out, id) in out.iter().zip([39, 0, 17]) {
            let want: Vec<f32> = (0..cols).map(|col| number(id, col).to_f32() * 1.5).collect();
            assert_eq!(out, &want);
        }
        assert_eq!(out[3], vec![0.0; cols]);
    }

    #[test]
    fn a_token_beyond_the_table_and_a_quantized_table_are_refused() {
        let ctx = Context::cpu_with(Isa::best(), 1).unwrap();
        let bytes = vec![0; 4 * 32 * 4];
        let view = View { dtype: DType::F32, rows: 4, cols: 32, bytes: &bytes };
        let out = Tensor::zeros((4, 32), DType::F32, &Device::Cpu).unwrap();
        let error = embed(&ctx, &Weight::pack(&ctx, &[view]).unwrap(), &[4], 1.0, &out).unwrap_err();
        assert!(error.to_string().contains("ids below 4"), "{error}");
        let table = Weight::quantize(&ctx, &[view], Quantize::Q8_0).unwrap();
        assert!(embed(&ctx, &table, &[0], 1.0, &out).is_err());
    }
}
