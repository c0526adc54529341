//! candle's blocks repacked: the numbers, scales and minima are those that candle chooses, in the order of panels.

use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};
use half::f16;

use super::format::{Format, GROUP, PANEL, STEP, place, upper_place};
use crate::Quantize;

/// Columns of a block of Q6_K and Q4_K.
const BLOCK: usize = 256;
/// A scale of Q6_K is stored as many more, so that it is a byte without a sign.
const BIAS: i16 = 128;

/// Packs rows into a panel that is all zeros.
pub(super) fn pack_panel(
    format: Format,
    kind: Quantize,
    rows: &[&[f32]],
    numbers: &mut [u8],
    scales: &mut [u8],
) {
    let k = rows.first().map_or(0, |row| row.len());
    assert!(format.takes(k), "bug: {k} columns are no whole blocks of {}", format.name());
    let blocks = quantized(kind, rows, k);
    for (r, row) in blocks.chunks_exact(blocks.len() / rows.len()).enumerate() {
        let mut put = |(byte, shift): (usize, usize), bits: u8| numbers[byte] |= bits << shift;
        match kind {
            Quantize::Q8_0 => {
                for (group, block) in row.chunks_exact(2 + GROUP).enumerate() {
                    let (scale, whole) = block.split_at(2);
                    for (i, number) in whole.iter().enumerate() {
                        put(place(format, r, group * GROUP + i), *number);
                    }
                    scales[((group / 4 * PANEL + r) * 4 + group % 4) * 2..][..2].copy_from_slice(scale);
                }
            }
            Quantize::Q6K => {
                for (b, block) in row.chunks_exact(210).enumerate() {
                    let (lower, rest) = block.split_at(128);
                    let (upper, rest) = rest.split_at(64);
                    let (of_groups, unit) = rest.split_at(16);
                    for c in 0..BLOCK {
                        // Of 128 columns: a quarter of them after the other in the bits of the same bytes.
                        let (half, quarter, i) = (c / 128, c % 128 / 32, c % 32);
                        let four = lower[half * 64 + quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 15;
                        let two = upper[half * 32 + i] >> (quarter * 2) & 3;
                        put(place(format, r, b * BLOCK + c), four);
                        put(upper_place(r, b * BLOCK + c), two);
                    }
                    for (half, of_groups) in of_groups.chunks_exact(8).enumerate() {
                        let step = &mut scales[(b * 2 + half) * format.step_scales()..];
                        let groups = of_groups.iter().map(|scale| (i16::from(*scale as i8) + BIAS) as u8);
                        step[r * 8..][..8].iter_mut().zip(groups).for_each(|(to, scale)| *to = scale);
                        step[PANEL * 8 + r * 2..][..2].copy_from_slice(unit);
                    }
                }
            }
            Quantize::Q4K => {
                for (b, block) in row.chunks_exact(144).enumerate() {
                    let (units, rest) = block.split_at(4);
                    let (six, whole) = rest.split_at(12);
                    for c in 0..BLOCK {
                        let number = whole[c / 64 * 32 + c % 32] >> (c % 64 / 32 * 4) & 15;
                        put(place(format, r, b * BLOCK + c), number);
                    }
                    for half in 0..2 {
                        let step = &mut scales[(b * 2 + half) * format.step_scales()..];
                        for group in 0..4 {
                            let pair = scale_and_minimum(six, half * 4 + group);
                            step[r * 8 + group * 2..][..2].copy_from_slice(&pair);
                        }
                        step[PANEL * 8 + r * 4..][..4].copy_from_slice(units);
                    }
                }
            }
        }
    }
}

/// The blocks that candle makes of rows.
fn quantized(kind: Quantize, rows: &[&[f32]], k: usize) -> Vec<u8> {
    let wide = Tensor::from_vec(rows.concat(), (rows.len(), k), &Device::Cpu);
    let blocks = wide.and_then(|wide| QTensor::quantize(&wide, kind.ggml()));
    let bytes = blocks.and_then(|blocks| Ok(blocks.data()?.into_owned()));
    bytes.unwrap_or_else(|error| panic!("bug: whole blocks of the processor are quantized: {error}"))
}

/// Of a group of Q4_K, out of the twelve bytes that a block has for its eight.
fn scale_and_minimum(six: &[u8], group: usize) -> [u8; 2] {
    match group {
        0..4 => [six[group] & 63, six[group + 4] & 63],
        _ => [six[group + 4] & 15 | six[group - 4] >> 6 << 4, six[group + 4] >> 4 | six[group] >> 6 << 4],
    }
}

/// The number in a row and column of a panel, exactly as candle widens it.
pub(super) fn number(
    format: Format,
    kind: Quantize,
    numbers: &[u8],
    scales: &[u8],
    row: usize,
    column: usize,
) -> f32 {
    let at = |(byte, shift): (usize, usize)| numbers[byte] >> shift;
    let bits = at(place(format, row, column));
    let step = &scales[column / STEP * format.step_scales()..];
    let half = |at: usize| f16::from_le_bytes([step[at], step[at + 1]]).to_f32();
    let c = column % STEP;
    match kind {
        Quantize::Q8_0 => half((row * 4 + c / GROUP) * 2) * f32::from(bits as i8),
        Quantize::Q6K => {
            let whole = i16::from(bits & 15 | (at(upper_place(row, column)) & 3) << 4) - 32;
            let scale = i16::from(step[row * 8 + c / 16]) - BIAS;
            half(PANEL * 8 + row * 2) * f32::from(scale) * f32::from(whole)
        }
        Quantize::Q4K => {
            let (scale, minimum) = (step[row * 8 + c / GROUP * 2], step[row * 8 + c / GROUP * 2 + 1]);
            let units = PANEL * 8 + row * 4;
            let (scale, minimum) = (half(units) * f32::from(scale), half(units + 2) * f32::from(minimum));
            scale * f32::from(bits & 15) - minimum
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Packed, wave};
    use super::*;

    #[test]
    fn packed_blocks_are_candles_to_the_last_number() {
        for format in [Format::Q8_0, Format::Q6K, Format::Q4K] {
            let kind = format.blocks().unwrap();
            // A part of a panel; for Q8_0 a part of a step as well.
            for (n, k) in [(21, 3 * BLOCK), (16, if format == Format::Q8_0 { 160 } else { BLOCK })] {
                let mut weight = wave(n * k);
                weight[3 * k..][..k].fill(0.0);
                weight[4 * k..][..k].iter_mut().for_each(|v| *v = v.abs() + 0.5);
                weight[5 * k..][..k].iter_mut().for_each(|v| *v = -v.abs() - 0.5);
                weight[6 * k + 7] = 1000.0;
                weight[7 * k..][..k].iter_mut().for_each(|v| *v *= 1e-6);
                let packed = Packed::of(format, (n, k), &weight);
                let rows: Vec<&[f32]> = weight.chunks_exact(k).collect();
                let wide = Tensor::from_vec(weight.clone(), (n, k), &Device::Cpu).unwrap();
                let blocks = QTensor::quantize(&wide, kind.ggml()).unwrap();
                assert_eq!(quantized(kind, &rows, k), blocks.data().unwrap().as_ref());
                let wanted: Vec<f32> =
                    blocks.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
                for (i, wanted) in wanted.into_iter().enumerate() {
                    assert_eq!(packed.number(i / k, i % k), wanted, "{} {} {}", format.name(), i / k, i % k);
                }
            }
        }
    }

    #[test]
    fn only_whole_blocks_are_packed() {
        for (format, takes) in [(Format::Q8_0, [true, true, false]), (Format::Q4K, [true, false, false])] {
            assert_eq!([512, 320, 328].map(|k| format.takes(k)), takes, "{}", format.name());
        }
        assert!(Format::ALL[..3].iter().all(|format| format.takes(328)));
    }
}
