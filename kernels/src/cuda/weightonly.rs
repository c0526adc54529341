//! The product of 1 to 8 rows with a weight of 8 or 4 bits (`cuda/weightonly.cu`), and how such a weight is packed.
//!
//! A *panel* is 16 rows of the weight, a *step* 128 of its columns, the last of each filled with zeros. Panel by panel and
//! step by step, numbers lie as the lanes of a warp multiply them: row `r` of the panel, column `c` of the step belong to
//! lane `4 (r % 8) + c % 32 / 8`, which has 16 bytes of each *quad* (512 bytes):
//!
//! ```text
//! int8, e4m3   4 quads: quad 2 (c / 64) + r / 8, word c % 64 / 32 * 2 + c % 8 / 4; in the word columns 0, 2, 1, 3
//! int4         2 quads: quad r / 8, word c / 32; in the word, lowest four bits first, columns 0, 2, 4, 6, 1, 3, 5, 7
//! ```
//!
//! so that a mask takes two neighbours out of a word at once. Scales: int8 a bf16 for each row of a step, `[panel][step][16]`;
//! int4 one for each 32 columns of it, `[panel][step][16][4]`; e4m3 an f32 for each row, `[panel][16]`.

use half::bf16;

use super::buffer::Buffer;
use super::driver::{Device, DeviceError, Kernel};
use super::launch::Launch;
use super::product::{EPILOGUES, Finish};

/// Rows that one launch takes.
pub const MAX_ROWS: usize = 8;
/// Rows of a panel and columns of a step.
pub const PANEL: usize = 16;
pub const STEP: usize = 128;
/// Panels of a block.
const PANELS: usize = 2;
/// Numbers of x in 16 bytes: k is a multiple of this, and n.
const CHUNK: usize = 8;
const QUAD: usize = 512;
/// Columns that share a scale of int4.
const GROUP: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// -127 to 127 times a scale for 128 columns of a row.
    Int8,
    /// Four bits of exponent, three of mantissa, times a scale of the row.
    E4m3,
    /// -8 to 7 times a scale for 32 columns of a row.
    Int4,
}

impl Format {
    pub const ALL: [Format; 3] = [Format::Int8, Format::E4m3, Format::Int4];

    pub fn name(self) -> &'static str {
        match self {
            Format::Int8 => "int8",
            Format::E4m3 => "e4m3",
            Format::Int4 => "int4",
        }
    }

    /// As people and settings call it.
    pub fn title(self) -> &'static str {
        match self {
            Format::E4m3 => "fp8",
            other => other.name(),
        }
    }

    /// Columns of a row that share a scale; 1 where the whole row does, however long it is.
    pub fn group(self) -> usize {
        match self {
            Format::Int8 => STEP,
            Format::E4m3 => 1,
            Format::Int4 => GROUP,
        }
    }

    /// Bytes of the numbers and of the scales of a panel with `k` columns.
    pub fn panel_bytes(self, k: usize) -> (usize, usize) {
        let steps = k.div_ceil(STEP);
        match self {
            Format::Int8 => (steps * 4 * QUAD, steps * PANEL * 2),
            Format::E4m3 => (steps * 4 * QUAD, PANEL * 4),
            Format::Int4 => (steps * 2 * QUAD, steps * PANEL * (STEP / GROUP) * 2),
        }
    }
}

/// Where a number lies: its byte in a panel, and how far its bits are from the lowest.
fn place(format: Format, row: usize, column: usize) -> (usize, usize) {
    let (step, c) = (column / STEP, column % STEP);
    let lane = row % 8 * 4 + c % 32 / 8;
    match format {
        Format::Int4 => {
            let nibble = c % 8 / 2 + c % 2 * 4;
            (step * 2 * QUAD + row / 8 * QUAD + lane * 16 + c / 32 * 4 + nibble / 2, nibble % 2 * 4)
        }
        Format::Int8 | Format::E4m3 => {
            let quad = c / 64 * 2 + row / 8;
            let word = c % 64 / 32 * 2 + c % 8 / 4;
            (step * 4 * QUAD + quad * QUAD + lane * 16 + word * 4 + [0, 2, 1, 3][c % 4], 0)
        }
    }
}

/// Packs at most 16 rows of the same length. `numbers` and `scales` are as long as [`Format::panel_bytes`] says; panels
/// lie behind one another and may be packed by different threads.
pub fn pack_panel(format: Format, rows: &[&[f32]], numbers: &mut [u8], scales: &mut [u8]) {
    let k = rows.first().map_or(0, |row| row.len());
    assert!(rows.len() <= PANEL && rows.iter().all(|row| row.len() == k), "bug: not the rows of a panel");
    assert!((numbers.len(), scales.len()) == format.panel_bytes(k), "bug: not the room of a panel");
    // A nibble of 8 is zero.
    numbers.fill(if format == Format::Int4 { 0x88 } else { 0 });
    scales.fill(0);
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
        let (byte, shift) = place(self.format, row, column);
        let bits = self.numbers[panel * bytes + byte] >> shift;
        let scales = &self.scales[panel * scale_bytes..];
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
        }
    }
}

/// A packed weight on a device.
#[derive(Debug)]
pub struct Weight {
    pub format: Format,
    pub n: usize,
    pub k: usize,
    pub numbers: Buffer<u8>,
    pub scales: Buffer<u8>,
}

impl Weight {
    pub fn of(device: &Device, packed: &Packed) -> Result<Self, DeviceError> {
        let Packed { format, n, k, ref numbers, ref scales } = *packed;
        Ok(Self { format, n, k, numbers: Buffer::of(device, numbers)?, scales: Buffer::of(device, scales)? })
    }
}

#[derive(Debug)]
pub struct WeightOnly {
    device: Device,
    /// By format and epilogue.
    kernels: Vec<Vec<Kernel>>,
}

impl WeightOnly {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        let of = |format: Format| -> Result<Vec<Kernel>, DeviceError> {
            let name = |epilogue: &str| format!("weightonly_{}_{epilogue}", format.name());
            EPILOGUES.iter().map(|epilogue| device.kernel(&name(epilogue), 0)).collect()
        };
        let kernels = Format::ALL.into_iter().map(of).collect::<Result<_, _>>()?;
        Ok(Self { device: device.clone(), kernels })
    }

    /// `y[row, n] = sum over k of x[row, k] * w[n, k] (+ bias[n])` for the first `count` rows, at most `bucket`, which
    /// is at most [`MAX_ROWS`]. A row's bits depend on nothing but itself, the weight and its format.
    pub fn launch(
        &self,
        bucket: usize,
        count: &Buffer<u32>,
        x: &Buffer<bf16>,
        w: &Weight,
        bias: Option<&Buffer<f32>>,
        finish: Finish<'_>,
    ) -> Result<(), DeviceError> {
        let Weight { format, n, k, ref numbers, ref scales } = *w;
        assert!((1..=MAX_ROWS).contains(&bucket) && !count.is_empty(), "bug: a product of {bucket} rows");
        assert!(
            n > 0 && n.is_multiple_of(CHUNK) && k > 0 && k.is_multiple_of(CHUNK),
            "bug: {n} x {k} numbers are no whole chunks"
        );
        let panels = n.div_ceil(PANEL);
        let (bytes, scale_bytes) = format.panel_bytes(k);
        assert!(
            x.len() >= bucket * k
                && numbers.len() >= panels * bytes
                && scales.len() >= panels * scale_bytes
                && bias.is_none_or(|bias| bias.len() >= n),
            "bug: a buffer is smaller than its shape"
        );
        let y = finish.room(bucket, n);
        let kernel = self.kernels[format as usize][finish.index()];
        let launch =
            Launch::new(kernel, panels.div_ceil(PANELS), 256).buffer(x).buffer(numbers).buffer(scales);
        let launch = launch.address(bias.map_or(0, Buffer::address)).address(y).buffer(count);
        // SAFETY: the arguments are the kernel's; the buffers hold the shape of the bucket (asserted above) and begin at
        // 256 bytes.
        unsafe { launch.count(n).count(k).on(&*self.device) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.37).sin() * (1.0 + (i % 97) as f32 / 50.0)).collect()
    }

    #[test]
    fn every_number_has_a_place_of_its_own() {
        for format in Format::ALL {
            let mut places: Vec<_> =
                (0..PANEL * 2 * STEP).map(|i| place(format, i / (2 * STEP), i % (2 * STEP))).collect();
            places.sort();
            places.dedup();
            assert_eq!(places.len(), PANEL * 2 * STEP);
            let bits = if format == Format::Int4 { 4 } else { 8 };
            assert_eq!(places.len() * bits / 8, format.panel_bytes(2 * STEP).0);
        }
    }

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
