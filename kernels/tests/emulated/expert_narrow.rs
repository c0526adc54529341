//! `cuda/expert_narrow.cu`, with weights packed as the loader packs them, against `cuda/expert_product.cu` with the weights
//! widened.

use half::bf16;
use hearth_kernels::cuda::weightonly::{Format, Packed};

use crate::program::{Case, ORDERS, Program, halves, numbers};

/// Rows of the tiles that there are.
const TILES: [usize; 3] = [16, 64, 128];
/// Of the reference, by the number of its format.
const WIDE: usize = 99;
const WIDE_ROWS: usize = 64;
const SET: usize = 0;
const EPILOGUES: usize = 3;

/// The weights of some experts as a device has them, and what they are widened to.
struct Weights {
    format: Format,
    experts: usize,
    n: usize,
    k: usize,
    numbers: Vec<u8>,
    scales: Vec<u8>,
    wide: Vec<bf16>,
}

impl Weights {
    fn new(format: Format, experts: usize, (n, k): (usize, usize)) -> Self {
        let mut all =
            Self { format, experts, n, k, numbers: Vec::new(), scales: Vec::new(), wide: Vec::new() };
        for expert in 0..experts {
            let mut weight = numbers(70 + expert as u32, n * k);
            // Small numbers too, of few bits in e4m3.
            weight.iter_mut().step_by(3).for_each(|v| *v *= 1e-3);
            let packed = Packed::of(format, (n, k), &weight);
            all.wide.extend((0..n * k).map(|i| bf16::from_f32(packed.number(i / k, i % k))));
            all.numbers.extend(packed.numbers);
            all.scales.extend(packed.scales);
        }
        all
    }

    /// The bytes of the output, over as many tiles as the launch code makes for that many rows; `tile` is `None` for the
    /// reference.
    fn run(
        &self,
        program: &Program,
        counts: &[usize],
        tile: Option<usize>,
        (epilogue, order): (usize, usize),
        x: &[bf16],
    ) -> Vec<u8> {
        let Self { format, experts, n, k, .. } = *self;
        let rows: usize = counts.iter().sum();
        let (of, tall) = tile.map_or((WIDE, WIDE_ROWS), |tile| (format as usize, TILES[tile]));
        let tiles = rows.min((rows + experts * (tall - 1)) / tall).max(1);
        let starts = counts.iter().scan(0, |at, count| {
            *at += *count as u32;
            Some(*at)
        });
        let starts: Vec<u32> = std::iter::once(0).chain(starts).collect();
        let case = Case::new(&[of, tile.unwrap_or(0), epilogue, order, tiles, experts, n, k]);
        let case = case.u32(&starts).bf16(x);
        let case = if tile.is_none() { case.bf16(&self.wide) } else { case.raw(self.numbers.clone()) };
        let case = case.raw(self.scales.clone());
        let bytes = if epilogue == SET { 4 * rows * n } else { rows * n };
        let what = format!("{} {counts:?} rows, tile {tile:?}, epilogue {epilogue}", format.name());
        program.answer(case.output(bytes), &what)
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn grouped_rows_with_narrow_numbers_have_the_bits_of_those_with_the_numbers_widened() {
    let program = Program::build("expert_narrow");
    let mut cases = 0;
    // Empty experts first, between and last; all rows to one; one row; tiles that are full, short by one, one too long;
    // more experts than are read at once.
    let counts: [&[usize]; 7] = [
        &[0, 3, 0, 17, 1, 0, 0, 0],
        &[0, 0, 0, 0, 0, 0, 0, 1],
        &[40, 0],
        &[16, 15, 17, 0],
        &[0, 1, 0, 0, 0, 0, 0, 2, 0, 5, 0],
        &[130, 2, 64],
        &[1],
    ];
    for format in Format::ALL {
        for (i, counts) in counts.into_iter().enumerate() {
            // A part of a panel and of a step, and one step more than whole ones; gates want whole turns.
            let (n, k) = [(64, 72), (40, 136), (144, 8), (80, 264)][(i + format as usize) % 4];
            let k = format.whole(k);
            let weights = Weights::new(format, counts.len(), (n, k));
            let x = halves(71, counts.iter().sum::<usize>() * k);
            for epilogue in 0..if n % 16 == 0 { EPILOGUES } else { 1 } {
                let wanted = weights.run(&program, counts, None, (epilogue, 0), &x);
                for tile in 0..TILES.len() {
                    // Each of them with one epilogue at least.
                    if epilogue != SET && tile != (i + epilogue) % 3 {
                        continue;
                    }
                    let order = ORDERS[(tile + i) % ORDERS.len()];
                    let got = weights.run(&program, counts, Some(tile), (epilogue, order), &x);
                    assert!(
                        got == wanted,
                        "{} {counts:?} rows of {k} by {n}, tile {tile}, epilogue {epilogue}: other bits",
                        format.name()
                    );
                    cases += 1;
                }
            }
        }
    }
    eprintln!("grouped, packed: {cases} cases");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn a_grouped_row_with_narrow_numbers_has_the_same_bits_alone_and_beside_others() {
    let program = Program::build("expert_narrow");
    for format in Format::ALL {
        let (n, k) = (40, format.whole(200));
        let weights = Weights::new(format, 3, (n, k));
        let x = halves(73, 25 * k);
        let together = weights.run(&program, &[5, 0, 20], Some(0), (SET, 0), &x);
        for (row, alone) in [(0, [1, 0, 0]), (4, [1, 0, 0]), (24, [0, 0, 1])] {
            for tile in 0..TILES.len() {
                let order = ORDERS[(row + tile) % ORDERS.len()];
                let answer = weights.run(&program, &alone, Some(tile), (SET, order), &x[row * k..][..k]);
                assert!(
                    answer == together[4 * row * n..][..4 * n],
                    "{} row {row}, tile {tile}",
                    format.name()
                );
            }
        }
    }
}
