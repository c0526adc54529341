//! What a draw is made of: a counter-based generator and probabilities in whole numbers.
//!
//! A weight is e^x for x <= 0 in units of 2^-42. Whole numbers add up exactly, in any order and on any number of
//! threads, so a nucleus and a draw never depend on how a sum was rounded. A token less probable than the best one by
//! more than 2^42 is never drawn. A row of 2^20 tokens still fits: 2^62.
//!
//! The exponential is our own: the platform's may differ in the last bit from one processor to the next.

/// The weight of the most probable token.
pub const UNIT: u64 = 1 << 42;

/// Below this e^x is less than one unit.
const FAINTEST: f64 = -30.0;

/// e^x in units of 2^-42, for x <= 0, cut to a whole number. NaN weighs nothing.
///
/// Relative error below 1e-14: the exponent is split off as a power of two and e^r, |r| <= ln(2)/2, is Taylor's sum of
/// twelve terms.
#[inline]
pub fn weight(x: f64) -> u64 {
    // 1.5 * 2^52: adding it leaves the nearest whole number in the low bits of the sum.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    if x.is_nan() || x < FAINTEST {
        return 0;
    }
    let shifted = x * std::f64::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut sum = 1.0 / 39_916_800.0;
    for factorial in [3_628_800.0, 362_880.0, 40_320.0, 5_040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0f64] {
        sum = sum * r + 1.0 / factorial;
    }
    let exponent = (shifted.to_bits() as i64).wrapping_sub(SHIFT.to_bits() as i64) + 42 + 1023;
    (sum * f64::from_bits((exponent as u64) << 52)) as u64
}

/// 64 random bits of a position of a choice of a request: Philox 4x32 with ten rounds (Salmon et al., "Parallel random
/// numbers: as easy as 1, 2, 3", 2011).
pub fn random(seed: u64, choice: u32, position: u32) -> u64 {
    let [a, b, ..] = philox([position, choice, 0, 0], [seed as u32, (seed >> 32) as u32]);
    u64::from(b) << 32 | u64::from(a)
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let x = 0xd251_1f53 * u64::from(counter[0]);
        let y = 0xcd9e_8d57 * u64::from(counter[2]);
        counter = [
            (y >> 32) as u32 ^ counter[1] ^ key[0],
            y as u32,
            (x >> 32) as u32 ^ counter[3] ^ key[1],
            x as u32,
        ];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

/// A whole number in `0..total` from 64 random bits. Its bias is at most total / 2^64.
pub fn below(random: u64, total: u64) -> u64 {
    ((u128::from(random) * u128::from(total)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the authors' own library (Random123, kat_vectors).
    #[test]
    fn the_generator_gives_its_authors_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn a_weight_is_the_exponential_to_the_last_unit() {
        assert_eq!(weight(0.0), UNIT);
        assert_eq!((weight(f64::NEG_INFINITY), weight(f64::NAN), weight(-31.0)), (0, 0, 0));
        for i in 0..300_000 {
            let x = -f64::from(i) * 1e-4;
            let exact = x.exp() * UNIT as f64;
            assert!((weight(x) as f64 - exact).abs() <= 1.0 + exact * 1e-14, "e^{x}: {} {exact}", weight(x));
        }
    }

    #[test]
    fn weights_never_grow_as_the_exponent_falls() {
        let weights: Vec<_> = (0..1_000_000).map(|i| weight(-f64::from(i) * 3.1e-5)).collect();
        assert!(weights.windows(2).all(|w| w[0] >= w[1]));
    }

    #[test]
    fn scaled_random_bits_stay_below_the_total() {
        assert_eq!(below(u64::MAX, 10), 9);
        assert_eq!(below(0, 10), 0);
        assert_eq!(below(u64::MAX, 1 << 62), (1 << 62) - 1);
    }
}
