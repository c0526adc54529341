//! The formats of weights of fewer bits, and where each number of a panel lies.

use crate::Quantize;

/// Rows of a panel and columns of a step.
pub const PANEL: usize = 16;
pub const STEP: usize = 128;
pub(super) const QUAD: usize = 512;
/// Columns that share a scale of int4, of Q8_0 and of Q4_K.
pub(super) const GROUP: usize = 32;

/// In the order of `cuda/formats.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// -127 to 127 times a scale for 128 columns of a row.
    Int8,
    /// Four bits of exponent, three of mantissa, times a scale of the row.
    E4m3,
    /// -8 to 7 times a scale for 32 columns of a row.
    Int4,
    /// candle's blocks: -127 to 127 times a scale for 32 columns of a row.
    Q8_0,
    /// candle's: -32 to 31 times a scale for 16 columns, which has 8 bits and counts in a unit of 256 columns.
    Q6K,
    /// candle's: 0 to 15 times a scale, less a minimum, both for 32 columns, of 6 bits, in units of 256 columns.
    Q4K,
}

impl Format {
    pub const ALL: [Format; 6] =
        [Format::Int8, Format::E4m3, Format::Int4, Format::Q8_0, Format::Q6K, Format::Q4K];

    pub fn name(self) -> &'static str {
        match self {
            Format::Int8 => "int8",
            Format::E4m3 => "e4m3",
            Format::Int4 => "int4",
            Format::Q8_0 => "q8_0",
            Format::Q6K => "q6_k",
            Format::Q4K => "q4_k",
        }
    }

    /// As people and settings call it.
    pub fn title(self) -> &'static str {
        match self {
            Format::E4m3 => "fp8",
            other => other.name(),
        }
    }

    /// The format of the processor that has the same numbers.
    pub fn blocks(self) -> Option<Quantize> {
        match self {
            Format::Int8 | Format::E4m3 | Format::Int4 => None,
            Format::Q8_0 => Some(Quantize::Q8_0),
            Format::Q6K => Some(Quantize::Q6K),
            Format::Q4K => Some(Quantize::Q4K),
        }
    }

    /// Whether weights of `k` columns are packed. candle's blocks are whole: what does not divide into them stays as it is.
    pub fn takes(self, k: usize) -> bool {
        self.blocks().is_none_or(|blocks| k.is_multiple_of(blocks.block()))
    }

    /// So many columns, or the next that are whole blocks.
    pub fn whole(self, k: usize) -> usize {
        self.blocks().map_or(k, |blocks| k.next_multiple_of(blocks.block()))
    }

    /// Columns of a row that share a scale, or all that scales count in; 1 where the whole row does, however long it is.
    pub fn group(self) -> usize {
        match self {
            Format::Int8 => STEP,
            Format::E4m3 => 1,
            Format::Int4 => GROUP,
            Format::Q8_0 | Format::Q6K | Format::Q4K => self.blocks().map_or(1, Quantize::block),
        }
    }

    /// Of a number, without its share of the scales.
    pub fn bits(self) -> usize {
        match self {
            Format::Int8 | Format::E4m3 | Format::Q8_0 => 8,
            Format::Q6K => 6,
            Format::Int4 | Format::Q4K => 4,
        }
    }

    /// Bytes of the scales of a panel's step; none where a row has one.
    pub(super) fn step_scales(self) -> usize {
        PANEL
            * match self {
                Format::Int8 => 2,
                Format::E4m3 => 0,
                Format::Int4 | Format::Q8_0 => STEP / GROUP * 2,
                Format::Q6K => 8 + 2,
                Format::Q4K => STEP / GROUP * 2 + 4,
            }
    }

    /// Bytes of the numbers and of the scales of a panel with `k` columns.
    pub fn panel_bytes(self, k: usize) -> (usize, usize) {
        let steps = k.div_ceil(STEP);
        let scales = if self == Format::E4m3 { PANEL * 4 } else { steps * self.step_scales() };
        (steps * PANEL * STEP * self.bits() / 8, scales)
    }
}

/// Where bits of a number lie: their byte in a panel, and how far the lowest of them is from the byte's.
pub(super) type Place = (usize, usize);

/// Where a number lies; of six bits the lower four.
pub(super) fn place(format: Format, row: usize, column: usize) -> Place {
    let (step, c) = (column / STEP, column % STEP);
    let lane = row % 8 * 4 + c % 32 / 8;
    match format {
        Format::Int4 | Format::Q4K => {
            let nibble = c % 8 / 2 + c % 2 * 4;
            (step * 2 * QUAD + row / 8 * QUAD + lane * 16 + c / 32 * 4 + nibble / 2, nibble % 2 * 4)
        }
        Format::Q6K => {
            let lane = row % 8 * 4 + c % 16 / 4;
            let nibble = c % 32 / 16 * 2 + c % 4 / 2 + c % 2 * 4;
            (step * 3 * QUAD + row / 8 * QUAD + lane * 16 + c / 32 * 4 + nibble / 2, nibble % 2 * 4)
        }
        Format::Int8 | Format::E4m3 | Format::Q8_0 => {
            let quad = c / 64 * 2 + row / 8;
            let word = c % 64 / 32 * 2 + c % 8 / 4;
            (step * 4 * QUAD + quad * QUAD + lane * 16 + word * 4 + [0, 2, 1, 3][c % 4], 0)
        }
    }
}

/// Where the upper two of the six bits of a number lie.
pub(super) fn upper_place(row: usize, column: usize) -> Place {
    let (step, c) = (column / STEP, column % STEP);
    let lane = row % 8 * 4 + c % 16 / 4;
    let pair = c % 64 / 16 * 2 + c % 4 / 2 + c % 2 * 8;
    (step * 3 * QUAD + 2 * QUAD + lane * 16 + row / 8 * 8 + c / 64 * 4 + pair / 4, pair % 4 * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_every_number_has_a_place_of_its_own() {
        for format in Format::ALL {
            let mut places: Vec<usize> = (0..PANEL * 2 * STEP)
                .flat_map(|i| {
                    let (row, column) = (i / (2 * STEP), i % (2 * STEP));
                    let bits =
                        |(byte, shift): Place, count: usize| (0..count).map(move |i| byte * 8 + shift + i);
                    let upper = if format == Format::Q6K { 2 } else { 0 };
                    let lower = bits(place(format, row, column), format.bits() - upper);
                    lower.chain(bits(upper_place(row, column), upper))
                })
                .collect();
            places.sort();
            places.dedup();
            assert_eq!(places.len(), PANEL * 2 * STEP * format.bits(), "{}", format.name());
            assert_eq!(places.len() / 8, format.panel_bytes(2 * STEP).0, "{}", format.name());
        }
    }
}
