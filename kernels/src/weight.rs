//! A matrix of the checkpoint, packed once at load into the order in which products read it.
//!
//! Outputs are grouped in *panels* of 16, the last one filled with zero rows; columns are filled with zeroes to a
//! multiple of 32. Inside a panel columns follow each other:
//!
//! ```text
//! bf16   [k / 2][16 outputs][2]   64 bytes a pair of columns: a row of an AMX tile, and one AVX-512 register whose
//!                                 even and odd halves are two columns of f32 after a shift and a mask
//! f16    [k][16 outputs]          32 bytes a column
//! f32    [k][16 outputs]          64 bytes a column
//! ```
//!
//! so that one row streams through memory once and in order, and tiles load the same bytes. Packing reads the memory
//! map once, on all threads, and needs no other copy.

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use crate::buffer::{Aligned, Shared};
use crate::cpu::detect::Isa;
use crate::{Context, Error};

/// Outputs of a panel.
pub(crate) const PANEL: usize = 16;
/// Columns of a group: what one tile multiplies, and after which partial sums are joined.
pub(crate) const GROUP: usize = 32;

/// A matrix as it lies in the checkpoint: `rows` outputs of `cols` inputs, row-major, at any address.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// BF16, F16 or F32.
    pub dtype: DType,
    pub rows: usize,
    pub cols: usize,
    pub bytes: &'a [u8],
}

/// Candle's block formats for weights made smaller at load. Their products choose kernels by row count, so they are
/// exempt from the promise of equal bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantize {
    Q8_0,
    Q4K,
    Q6K,
}

impl Quantize {
    pub fn name(self) -> &'static str {
        match self {
            Quantize::Q8_0 => "q8_0",
            Quantize::Q4K => "q4_k",
            Quantize::Q6K => "q6_k",
        }
    }

    /// Columns of a block: a matrix whose columns are no multiple of it stays as it is.
    pub fn block(self) -> usize {
        self.ggml().block_size()
    }

    pub(crate) fn ggml(self) -> GgmlDType {
        match self {
            Quantize::Q8_0 => GgmlDType::Q8_0,
            Quantize::Q4K => GgmlDType::Q4K,
            Quantize::Q6K => GgmlDType::Q6K,
        }
    }
}

/// A packed matrix of `rows` outputs and `cols` inputs.
pub struct Weight {
    pub(crate) store: Store,
    rows: usize,
    cols: usize,
}

pub(crate) enum Store {
    Bf16(Aligned<u16>),
    F16(Aligned<u16>),
    F32(Aligned<f32>),
    Blocks(Box<QMatMul>, Quantize),
}

impl Weight {
    /// Packs `parts`, stacked along their outputs (q, k and v; gate and up), all of one type and width.
    pub fn pack(ctx: &Context, parts: &[View<'_>]) -> Result<Self, Error> {
        let Stack { dtype, rows, cols } = stack("pack", parts)?;
        let padded = rows.next_multiple_of(PANEL) * cols.next_multiple_of(GROUP);
        let store = match dtype {
            DType::BF16 => Store::Bf16(pack(ctx, parts, Aligned::zeroed(padded)?, pack_pairs)?),
            DType::F16 => Store::F16(pack(ctx, parts, Aligned::zeroed(padded)?, pack_columns::<2, u16>)?),
            _ => Store::F32(pack(ctx, parts, Aligned::zeroed(padded)?, pack_columns::<4, f32>)?),
        };
        Ok(Self { store, rows, cols })
    }

    /// Quantizes `parts`, stacked along their outputs, into blocks of candle's format. The columns must be a multiple
    /// of [`Quantize::block`].
    pub fn quantize(ctx: &Context, parts: &[View<'_>], kind: Quantize) -> Result<Self, Error> {
        let Stack { rows, cols, .. } = stack("quantize", parts)?;
        // candle's threads inherit the cores of whoever asks for them first; a pinned engine thread must not be that.
        candle_core::utils::barrier_pool();
        let block = kind.block();
        if !cols.is_multiple_of(block) {
            return Err(Error::QuantBlock { kind: kind.name(), rows, cols, block });
        }
        let row_bytes = cols / block * kind.ggml().type_size();
        let mut bytes = Aligned::<u8>::zeroed(rows * row_bytes)?;
        let out = Shared::new(&mut bytes);
        // A few rows at a time, so that the widened copy stays small.
        let chunk = (65536 / cols).max(1);
        let failed = std::sync::Mutex::new(None);
        ctx.run(rows.div_ceil(chunk), |i| {
            let start = i * chunk;
            let end = rows.min(start + chunk);
            let quantized = || -> Result<(), Error> {
                let mut wide = Vec::with_capacity((end - start) * cols);
                for row in start..end {
                    let (view, row) = part_of(parts, row);
                    wide.extend((0..cols).map(|col| element(view, row, col)));
                }
                let wide = Tensor::from_vec(wide, (end - start, cols), &Device::Cpu)?;
                let blocks = QTensor::quantize(&wide, kind.ggml())?;
                // SAFETY: tasks write different rows.
                let to = unsafe { out.slice(start * row_bytes, (end - start) * row_bytes) };
                to.copy_from_slice(&blocks.data()?);
                Ok(())
            };
            if let Err(error) = quantized() {
                *failed.lock().expect("bug: nothing panics while this is held") = Some(error);
            }
        })?;
        if let Some(error) = failed.into_inner().expect("bug: nothing panics while this is held") {
            return Err(error);
        }
        let storage = QStorage::from_data(std::borrow::Cow::Borrowed(&bytes), ctx.device(), kind.ggml())?;
        let product = QMatMul::from_qtensor(QTensor::new(storage, (rows, cols))?)?;
        Ok(Self { store: Store::Blocks(Box::new(product), kind), rows, cols })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn dtype_name(&self) -> &'static str {
        match &self.store {
            Store::Bf16(_) => "bf16",
            Store::F16(_) => "f16",
            Store::F32(_) => "f32",
            Store::Blocks(_, kind) => kind.name(),
        }
    }

    /// Memory that the matrix takes.
    pub fn bytes(&self) -> usize {
        match &self.store {
            Store::Bf16(all) | Store::F16(all) => 2 * all.len(),
            Store::F32(all) => 4 * all.len(),
            Store::Blocks(_, kind) => Self::quantized_bytes(*kind, self.rows, self.cols),
        }
    }

    /// Memory that a packed matrix of this shape takes.
    pub fn packed_bytes(dtype: DType, rows: usize, cols: usize) -> usize {
        rows.next_multiple_of(PANEL) * cols.next_multiple_of(GROUP) * dtype.size_in_bytes()
    }

    /// Memory that a quantized matrix of this shape takes: its blocks, and the copies in the order of vector
    /// instructions that candle makes beside them at the first products, with scales widened to f32 and, for tiles,
    /// numbers widened to bytes.
    pub fn quantized_bytes(kind: Quantize, rows: usize, cols: usize) -> usize {
        let copies = match kind {
            Quantize::Q8_0 => 34,
            Quantize::Q4K if Isa::best() == Isa::Amx => 192 + 320,
            Quantize::Q4K => 192,
            Quantize::Q6K => 320,
        };
        rows * (cols / kind.block()) * (kind.ggml().type_size() + copies)
    }

    /// The number at a row and column; `None` for quantized matrices.
    pub(crate) fn at(&self, row: usize, col: usize) -> Option<f32> {
        let start = row / PANEL * PANEL * self.cols.next_multiple_of(GROUP);
        let lane = row % PANEL;
        match &self.store {
            Store::Bf16(all) => {
                Some(bf16::from_bits(all[start + col / 2 * 2 * PANEL + lane * 2 + col % 2]).to_f32())
            }
            Store::F16(all) => Some(f16::from_bits(all[start + col * PANEL + lane]).to_f32()),
            Store::F32(all) => Some(all[start + col * PANEL + lane]),
            Store::Blocks(..) => None,
        }
    }
}

struct Stack {
    dtype: DType,
    rows: usize,
    cols: usize,
}

fn stack(op: &'static str, parts: &[View<'_>]) -> Result<Stack, Error> {
    let first = parts.first().ok_or(Error::Shape {
        op,
        operand: "parts",
        got: vec![],
        want: "one matrix at least".to_owned(),
    })?;
    if first.cols == 0 {
        let want = "one column at least".to_owned();
        return Err(Error::Shape { op, operand: "part", got: vec![first.rows, 0], want });
    }
    let supported = "bf16, f16, f32";
    for part in parts {
        if part.cols != first.cols {
            let want = format!("{} columns, as in the first part", first.cols);
            return Err(Error::Shape { op, operand: "part", got: vec![part.rows, part.cols], want });
        }
        if part.dtype != first.dtype {
            return Err(Error::Type {
                op,
                dtype: format!("{:?} beside {:?}", part.dtype, first.dtype),
                supported,
            });
        }
        let dtype = match part.dtype {
            DType::BF16 | DType::F16 | DType::F32 => part.dtype.as_str(),
            other => return Err(Error::Type { op, dtype: format!("{other:?}"), supported }),
        };
        let want = part.rows * part.cols * part.dtype.size_in_bytes();
        if part.bytes.len() != want {
            let (rows, cols, got) = (part.rows, part.cols, part.bytes.len());
            return Err(Error::Bytes { dtype, rows, cols, want, got });
        }
    }
    Ok(Stack { dtype: first.dtype, rows: parts.iter().map(|part| part.rows).sum(), cols: first.cols })
}

/// The part that holds an output of the stack, and which of its rows that is.
fn part_of<'a, 'b>(parts: &'b [View<'a>], mut row: usize) -> (&'b View<'a>, usize) {
    for part in parts {
        if row < part.rows {
            return (part, row);
        }
        row -= part.rows;
    }
    unreachable!("bug: a row beyond the parts")
}

fn element(view: &View<'_>, row: usize, col: usize) -> f32 {
    let size = view.dtype.size_in_bytes();
    let start = (row * view.cols + col) * size;
    match (view.dtype, &view.bytes[start..start + size]) {
        (DType::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        (DType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        _ => unreachable!("bug: the types were checked"),
    }
}

/// Fills `out` panel by panel on all threads. Rows and columns of the filling stay zero.
fn pack<T: Copy + Send>(
    ctx: &Context,
    parts: &[View<'_>],
    mut out: Aligned<T>,
    pack_panel: fn(&[&[u8]], &mut [T]),
) -> Result<Aligned<T>, Error> {
    let rows: usize = parts.iter().map(|part| part.rows).sum();
    let cols = parts[0].cols;
    let panel_len = PANEL * cols.next_multiple_of(GROUP);
    let to = Shared::new(&mut out);
    ctx.run(rows.div_ceil(PANEL), |panel| {
        let first = panel * PANEL;
        let count = PANEL.min(rows - first);
        let mut sources: [&[u8]; PANEL] = [&[]; PANEL];
        for (lane, source) in sources[..count].iter_mut().enumerate() {
            let (view, row) = part_of(parts, first + lane);
            let row_bytes = cols * view.dtype.size_in_bytes();
            *source = &view.bytes[row * row_bytes..(row + 1) * row_bytes];
        }
        // SAFETY: each task writes its own panel.
        pack_panel(&sources[..count], unsafe { to.slice(panel * panel_len, panel_len) });
    })?;
    Ok(out)
}

/// Pairs of 16-bit columns, output by output.
fn pack_pairs(sources: &[&[u8]], panel: &mut [u16]) {
    // A group of columns at a time, so that the part of the panel that is written stays in the first-level cache
    // while the rows are read a cache line each.
    let groups = panel.as_chunks_mut::<2>().0.as_chunks_mut::<{ GROUP / 2 * PANEL }>().0;
    for (block, group) in groups.iter_mut().enumerate() {
        for (lane, source) in sources.iter().enumerate() {
            let source = &source[(block * GROUP * 2).min(source.len())..];
            // A whole group has a length known to the compiler, which takes the checks and the loop away.
            if let Some(pairs) = source.as_chunks::<4>().0.first_chunk::<{ GROUP / 2 }>() {
                for (i, pair) in pairs.iter().enumerate() {
                    group[i * PANEL + lane] = u16_pair(*pair);
                }
                continue;
            }
            let (pairs, odd) = source.as_chunks::<4>();
            for (i, pair) in pairs.iter().enumerate() {
                group[i * PANEL + lane] = u16_pair(*pair);
            }
            if let [a, b] = odd {
                group[pairs.len() * PANEL + lane] = u16_pair([*a, *b, 0, 0]);
            }
        }
    }
}

fn u16_pair([a, b, c, d]: [u8; 4]) -> [u16; 2] {
    [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])]
}

trait Number<const SIZE: usize>: Copy {
    fn of(bytes: [u8; SIZE]) -> Self;
}

impl Number<2> for u16 {
    fn of(bytes: [u8; 2]) -> Self {
        u16::from_le_bytes(bytes)
    }
}

impl Number<4> for f32 {
    fn of(bytes: [u8; 4]) -> Self {
        f32::from_le_bytes(bytes)
    }
}

/// Columns one after another, output by output.
fn pack_columns<const SIZE: usize, T: Number<SIZE>>(sources: &[&[u8]], panel: &mut [T]) {
    for (block, group) in panel.as_chunks_mut::<{ GROUP * PANEL }>().0.iter_mut().enumerate() {
        for (lane, source) in sources.iter().enumerate() {
            let (columns, _) = source[(block * GROUP * SIZE).min(source.len())..].as_chunks::<SIZE>();
            // As above: the same for a length known to the compiler and for the last columns.
            match columns.first_chunk::<GROUP>() {
                Some(columns) => {
                    columns
                        .iter()
                        .enumerate()
                        .for_each(|(i, column)| group[i * PANEL + lane] = T::of(*column));
                }
                None => {
                    columns
                        .iter()
                        .enumerate()
                        .for_each(|(i, column)| group[i * PANEL + lane] = T::of(*column));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `rows * cols` numbers that tell their place, as bytes of a type.
    fn numbers(dtype: DType, rows: usize, cols: usize, from: usize) -> Vec<u8> {
        let number = |i: usize| (from + i) as f32 / 128.0 - 1.0;
        (0..rows * cols)
            .flat_map(|i| match dtype {
                DType::BF16 => bf16::from_f32(number(i)).to_le_bytes().to_vec(),
                DType::F16 => f16::from_f32(number(i)).to_le_bytes().to_vec(),
                _ => number(i).to_le_bytes().to_vec(),
            })
            .collect()
    }

    #[test]
    fn every_number_of_stacked_parts_is_found_at_its_row_and_column() {
        let ctx = Context::cpu_with(Isa::Scalar, 2).unwrap();
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            for (rows, cols) in [([1, 0], 1), ([5, 20], 33), ([16, 17], 64), ([3, 40], 7)] {
                // An odd start, as in a memory map.
                let all: Vec<Vec<u8>> = rows
                    .iter()
                    .enumerate()
                    .map(|(part, rows)| [vec![0], numbers(dtype, *rows, cols, part * 77)].concat())
                    .collect();
                let views: Vec<View<'_>> = rows
                    .iter()
                    .zip(&all)
                    .map(|(rows, bytes)| View { dtype, rows: *rows, cols, bytes: &bytes[1..] })
                    .collect();
                let weight = Weight::pack(&ctx, &views).unwrap();
                assert_eq!((weight.rows(), weight.cols()), (rows[0] + rows[1], cols));
                assert_eq!(weight.bytes(), Weight::packed_bytes(dtype, weight.rows(), cols));
                for row in 0..weight.rows() {
                    let (view, inner) = part_of(&views, row);
                    for col in 0..cols {
                        assert_eq!(
                            weight.at(row, col),
                            Some(element(view, inner, col)),
                            "{dtype:?} {row} {col}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn columns_that_do_not_divide_into_blocks_are_refused_with_the_shape() {
        let ctx = Context::cpu_with(Isa::Scalar, 1).unwrap();
        let bytes = numbers(DType::BF16, 2, 320, 0);
        let view = View { dtype: DType::BF16, rows: 2, cols: 320, bytes: &bytes };
        let quantized = Weight::quantize(&ctx, &[view], Quantize::Q8_0).unwrap();
        assert_eq!((quantized.dtype_name(), quantized.bytes()), ("q8_0", 2 * 10 * (34 + 34)));
        let error = Weight::quantize(&ctx, &[view], Quantize::Q4K).err().expect("320 is no multiple of 256");
        assert_eq!(
            error.to_string(),
            "a matrix of 2 x 320 cannot be quantized to q4_k: 320 columns are no multiple of 256"
        );
    }

    #[test]
    fn parts_that_do_not_fit_together_are_refused() {
        let ctx = Context::cpu_with(Isa::Scalar, 1).unwrap();
        let bytes = numbers(DType::BF16, 2, 32, 0);
        let view = View { dtype: DType::BF16, rows: 2, cols: 32, bytes: &bytes };
        let other = View { dtype: DType::F16, ..view };
        let narrow = View { rows: 4, cols: 16, ..view };
        let short = View { bytes: &bytes[1..], ..view };
        let integers = View { dtype: DType::I16, ..view };
        for bad in [&[view, other][..], &[view, narrow], &[short], &[integers], &[]] {
            assert!(Weight::pack(&ctx, bad).is_err());
        }
    }
}
