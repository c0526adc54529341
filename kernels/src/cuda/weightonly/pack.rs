//! Weights of fewer bits on the host: rows into panels, and what number became of each.

use half::bf16;

use super::format::{Format, GROUP, PANEL, STEP, place};
use super::kquant;

/// Packs at most 16 rows of the same length. `numbers` and `scales` are as long as [`Format::panel_bytes`] says; panels
/// lie behind one another and may be packed by different threads.
pub fn pack_panel(format: Format, rows: &[&[f32]], numbers: &mut [u8], scales: &mut [u8]) {
    let k = rows.first().map_or(0, |row| row.len());
    assert!(rows.len() <= PANEL && rows.iter().all(|row| row.len() == k), "bug: not the rows of a panel");
    assert!((numbers.len(), scales.len()) == format.panel_bytes(k), "bug: not the room of a panel");
    // A nibble of 8 is zero.
    numbers.fill(if format == Format::Int4 { 0x88 } else { 0 });
    scales.fill(0);
    if let Some(kind) = format.blocks() {
        return kquant::pack_panel(format, kind, rows, numbers, scales);
    }
    for (r, row) in rows.iter().enumerate() {
        let mut put = |column: usize, bits: u8| {
            let (byte, shift) = place(format, r, column);
            let mask = if format == Format::Int4 { 0xf << shift } else { 0xff };
            numbers[byte] = numbers[byte] & !mask | bits << shift & mask;
        };
        match format {
            Format::Int8 => {
                for (step, group) in row.chunks(STEP).enumerate() {
                    // Rounded up, so that the largest number is not cut.
                    let exact = largest(group).abs() / 127.0;
                    let near = bf16::from_f32(exact);
                    let scale =
                        if near.to_f32() < exact { bf16::from_bits(near.to_bits() + 1) } else { near };
                    for (i, number) in group.iter().enumerate() {
                        let whole = ratio(*number, scale.to_f32()).clamp(-127.0, 127.0);
                        put(step * STEP + i, whole as i8 as u8);
                    }
                    scales[(step * PANEL + r) * 2..][..2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            Format::E4m3 => {
                let scale = largest(row).abs() / 448.0;
                for (column, number) in row.iter().enumerate() {
                    put(column, if scale > 0.0 { e4m3(number / scale) } else { 0 });
                }
                scales[r * 4..][..4].copy_from_slice(&scale.to_le_bytes());
            }
            Format::Int4 => {
                for (group, part) in row.chunks(GROUP).enumerate() {
                    // The largest becomes -8, the only number without a partner.
                    let scale = bf16::from_f32(largest(part) / -8.0).to_f32();
                    let whole = |number: f32| ratio(number, scale).clamp(-8.0, 7.0);
                    // With the numbers chosen, the scale that is nearest to all of them.
                    let (mut both, mut square) = (0.0, 0.0);
                    for (i, number) in part.iter().enumerate() {
                        let whole = whole(*number);
                        (both, square) = (both + whole * number, square + whole * whole);
                        put(group * GROUP + i, (whole + 8.0) as u8);
                    }
                    let scale = bf16::from_f32(if square > 0.0 { both / square } else { 0.0 });
                    let at = ((group / 4 * PANEL + r) * 4 + group % 4) * 2;
                    scales[at..][..2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            Format::Q8_0 | Format::Q6K | Format::Q4K => unreachable!("bug: candle's blocks are packed above"),
        }
    }
}

/// The number of the largest magnitude.
fn largest(numbers: &[f32]) -> f32 {
    numbers.iter().copied().fold(0.0, |most, x| if x.abs() > f32::abs(most) { x } else { most })
}

/// A number in whole scales.
fn ratio(number: f32, scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { (number / scale).round_ties_even() }
}

/// The nearest e4m3, ties to even; what is too large becomes the largest, 448.
fn e4m3(number: f32) -> u8 {
    let (sign, size) = ((number.to_bits() >> 24) as u8 & 0x80, number.abs());
    let bits = if size < 1.0 / 64.0 {
        // Below the smallest exponent: eighths of it. Eight of them are its first number.
        (size * 512.0).round_ties_even() as u32
    } else {
        let bits = size.to_bits();
        ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20) - ((127 - 7) << 3)
    };
    sign | bits.min(0x7e) as u8
}

/// The value of an e4m3.
fn of_e4m3(bits: u8) -> f32 {
    let magnitude = match (bits >> 3 & 15, bits & 7) {
        (0, mantissa) => f32::from(mantissa) / 512.0,
        (exponent, mantissa) => (1.0 + f32::from(mantissa) / 8.0) * f32::from(exponent).exp2() / 128.0,
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

/// A packed weight of `n` rows and `k` columns, on the host.
#[derive(Clone, Debug)]
pub struct Packed {
    pub format: Format,
    pub n: usize,
    pub k: usize,
    pub numbers: Vec<u8>,
    pub scales: Vec<u8>,
}

impl Packed {
    /// Packs `weight`, `[n, k]` row-major, whose rows are in the order of the product ([`gate_row`](super::product::gate_row)).
    pub fn of(format: Format, (n, k): (usize, usize), weight: &[f32]) -> Self {
        assert!(n > 0 && k > 0 && weight.len() == n * k, "bug: {} numbers of {n} x {k}", weight.len());
        let panels = n.div_ceil(PANEL);
        let (bytes, scale_bytes) = format.panel_bytes(k);
        let mut packed =
            Self { format, n, k, numbers: vec![0; panels * bytes], scales: vec![0; panels * scale_bytes] };
        let room = packed.numbers.chunks_exact_mut(bytes).zip(packed.scales.chunks_exact_mut(scale_bytes));
        for (panel, (numbers, scales)) in weight.chunks(PANEL * k).zip(room) {
            let rows: Vec<&[f32]> = panel.chunks_exact(k).collect();
            pack_panel(format, &rows, numbers, scales);
        }
        packed
    }

    /// The number that products multiply with.
    pub fn number(&self, row: usize, column: usize) -> f32 {
        let (bytes, scale_bytes) = self.format.panel_bytes(self.k);
        let (panel, row) = (row / PANEL, row % PANEL);
        let (numbers, scales) = (&self.numbers[panel * bytes..], &self.scales[panel * scale_bytes..]);
        if let Some(kind) = self.format.blocks() {
            return kquant::number(self.format, kind, numbers, scales, row, column);
        }
        let (byte, shift) = place(self.format, row, column);
        let bits = numbers[byte] >> shift;
        let half = |i: usize| bf16::from_le_bytes([scales[2 * i], scales[2 * i + 1]]).to_f32();
        match self.format {
            Format::Int8 => f32::from(bits as i8) * half(column / STEP * PANEL + row),
            Format::E4m3 => {
                let scale = scales[4 * row..].first_chunk().expect("bug: a scale for each row");
                of_e4m3(bits) * f32::from_le_bytes(*scale)
            }
            Format::Int4 => {
                let group = column / GROUP;
                (f32::from(bits & 15) - 8.0) * half((group / 4 * PANEL + row) * 4 + group % 4)
            }
            Format::Q8_0 | Format::Q6K | Format::Q4K => {
                unreachable!("bug: candle's blocks are widened above")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::wave;
    use super::*;

    #[test]
    fn packed_numbers_are_near_the_ones_they_stand_for() {
        let (n, k) = (21, 200);
        let mut weight = wave(n * k);
        weight[3 * k..][..STEP].fill(0.0);
        weight[4 * k + 7] = 1000.0;
        for (format, most) in [(Format::Int8, 0.006), (Format::E4m3, 0.03), (Format::Int4, 0.09)] {
            let packed = Packed::of(format, (n, k), &weight);
            let (mut error, mut norm) = (0.0, 0.0);
            for (i, exact) in weight.iter().enumerate() {
                let near = packed.number(i / k, i % k);
                if i / k == 3 && i % k < STEP {
                    assert_eq!(near, 0.0);
                }
                // The row with one large number is the price of coarse scales.
                if i / k != 4 {
                    (error, norm) = (error + (near - exact).powi(2), norm + exact * exact);
                }
            }
            let relative = (error / norm).sqrt();
            assert!(relative < most, "{}: {relative}", format.name());
            let large = packed.number(4, 7);
            assert!((large - 1000.0).abs() <= 4.0, "{}: {large}", format.name());
        }
    }

    #[test]
    fn e4m3_is_the_nearest_of_its_numbers_and_the_even_one_between_two() {
        for bits in (0..=0x7e).chain(0x80..=0xfe) {
            assert_eq!(e4m3(of_e4m3(bits)), bits);
        }
        for bits in 0..0x7e {
            let (low, high) = (of_e4m3(bits), of_e4m3(bits + 1));
            assert!(low < high);
            assert_eq!(e4m3((low + high) / 2.0), bits + (bits & 1));
            assert_eq!(e4m3(low * 0.49 + high * 0.51), bits + 1);
        }
        assert_eq!((e4m3(1e9), e4m3(-449.0), of_e4m3(0x7e)), (0x7e, 0xfe, 448.0));
    }
}
