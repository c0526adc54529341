//! `cuda/expert_weightonly.cu`, with weights packed as the loader packs them, against `cuda/weightonly.cu` with one expert at a
//! time.

use std::collections::HashMap;

use half::bf16;
use hearth_kernels::cuda::weightonly::{Format, MAX_ROWS, Packed};

use crate::program::{Case, ORDERS, Program, bits, halves, numbers};

const SILU: usize = 0;
const GELU: usize = 1;
const DOWN: usize = 2;

/// One weight of each of some experts.
struct Weights(Vec<Packed>);

impl Weights {
    fn new(format: Format, experts: usize, (n, k): (usize, usize)) -> Self {
        let of = |expert| Packed::of(format, (n, k), &numbers(80 + expert as u32, n * k));
        Self((0..experts).map(of).collect())
    }

    /// Behind one another, as a device has them.
    fn put(&self, case: Case) -> Case {
        let all = |of: fn(&Packed) -> &Vec<u8>| self.0.iter().flat_map(|w| of(w).clone()).collect();
        case.raw(all(|w| &w.numbers)).raw(all(|w| &w.scales))
    }

    /// What weightonly.cu makes of up to eight rows of the weight's k with one expert.
    fn alone(&self, few: &Program, expert: usize, epilogue: usize, x: &[bf16]) -> Vec<u8> {
        let Packed { format, n, k, ref numbers, ref scales } = self.0[expert];
        let rows = (x.len() / k) as u32;
        let mut x = x.to_vec();
        x.resize(MAX_ROWS * k, bf16::NAN);
        let case = Case::new(&[format as usize, epilogue, 0, 0, n, k]).u32(&[rows]).bf16(&x);
        let case = case.raw(numbers.clone()).raw(scales.clone()).f32(&[]);
        few.answer(case.output(if epilogue == 0 { 4 } else { 1 } * MAX_ROWS * n), "the reference")
    }
}

/// Rows, experts, experts a row, and whether all rows go to the last ones.
const ROUTES: [(usize, usize, usize, bool); 6] = [
    (1, 8, 2, false),
    (8, 8, 2, false),
    (5, 3, 1, true),
    (3, 8, 2, true),
    (7, 16, 3, false),
    (1, 8, 1, false),
];

/// Which experts the pairs of a case go to, those of a row ascending.
fn chosen((_, experts, top_k, last): (usize, usize, usize, bool)) -> Vec<u32> {
    let row = |row: usize| {
        let first = if last { experts - top_k } else { row / 2 * 3 + 1 };
        let step = if last { 1 } else { 2 };
        let mut own: Vec<u32> = (0..top_k).map(|choice| ((first + choice * step) % experts) as u32).collect();
        own.sort_unstable();
        own
    };
    (0..MAX_ROWS).flat_map(row).collect()
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn gate_and_up_of_packed_experts_have_the_bits_of_one_expert_alone() {
    let (program, few) = (Program::build("expert_weightonly"), Program::build("weightonly"));
    // A part of a panel and of a step; several blocks; more steps than warps.
    let shapes = [(56, 8), (264, 40), (1160, 24)];
    let mut cases = 0;
    for format in Format::ALL {
        for (i, route) in ROUTES.into_iter().enumerate() {
            let (rows, experts, top_k, _) = route;
            let (width, ffn) = shapes[(i + format as usize) % shapes.len()];
            let width = format.whole(width);
            let weights = Weights::new(format, experts, (2 * ffn, width));
            let chosen = chosen(route);
            let mut x = halves(83, rows * width);
            x.resize(MAX_ROWS * width, bf16::NAN);
            let activation = [SILU, GELU][(i + format as usize) % 2];
            let what = format!("{} {route:?} of {width} by {ffn}", format.name());
            let grid = (2 * ffn).div_ceil(32);
            let order = ORDERS[i % ORDERS.len()];
            let case =
                Case::new(&[format as usize, activation, order, grid, MAX_ROWS * top_k, width, ffn, top_k]);
            let case = weights.put(case.u32(&[rows as u32]).u32(&chosen).bf16(&x));
            let answer = program.answer(case.output(2 * MAX_ROWS * top_k * ffn), &what);
            let (written, beyond) = answer.split_at(2 * rows * top_k * ffn);
            assert!(beyond.iter().all(|b| *b == 0xff), "{what}: pairs beyond the count are left alone");
            let mut wanted: HashMap<u32, Vec<u8>> = HashMap::new();
            for (pair, got) in written.chunks_exact(2 * ffn).enumerate() {
                let expert = chosen[pair];
                let alone = || weights.alone(&few, expert as usize, 2 + activation, &x[..rows * width]);
                let wanted = &wanted.entry(expert).or_insert_with(alone)[pair / top_k * 2 * ffn..][..2 * ffn];
                assert!(got == wanted, "{what}: pair {pair} has other bits than alone");
            }
            cases += 1;
        }
    }
    eprintln!("packed gate and up: {cases} cases");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn down_of_packed_experts_adds_those_of_a_row_one_after_the_other() {
    let (program, few) = (Program::build("expert_weightonly"), Program::build("weightonly"));
    // A part of a panel and of a step; rounds of steps in flight that are full, and one that is not.
    let shapes = [(8, 56), (40, 1304), (32, 4240)];
    let mut cases = 0;
    for format in Format::ALL {
        for (i, route) in ROUTES.into_iter().enumerate() {
            let (rows, experts, top_k, _) = route;
            let (width, ffn) = shapes[(i + format as usize) % shapes.len()];
            let ffn = format.whole(ffn);
            let weights = Weights::new(format, experts, (width, ffn));
            let chosen = chosen(route);
            let pairs = rows * top_k;
            // Rows that are not counted are no numbers.
            let mut bent = halves(85, pairs * ffn);
            bent.resize(MAX_ROWS * top_k * ffn, bf16::NAN);
            let counts: Vec<f32> = numbers(86, MAX_ROWS * top_k).iter().map(|x| 0.5 + 0.4 * x).collect();
            let mut residual = numbers(87, rows * width);
            residual.resize(MAX_ROWS * width, f32::from_bits(u32::MAX));
            let what = format!("{} {route:?} of {ffn} by {width}, down", format.name());
            let order = ORDERS[(i + 1) % ORDERS.len()];
            let case = Case::new(&[format as usize, DOWN, order, width.div_ceil(16), 1, width, ffn, top_k]);
            let case = case.u32(&[rows as u32]).u32(&chosen).f32(&counts).bf16(&bent);
            let got = program.reals(weights.put(case).f32(&residual), &what);
            let mut wanted = residual;
            for expert in 0..experts {
                let own: Vec<usize> = (0..pairs).filter(|pair| chosen[*pair] as usize == expert).collect();
                if own.is_empty() {
                    continue;
                }
                let x: Vec<bf16> = own.iter().flat_map(|pair| &bent[pair * ffn..][..ffn]).copied().collect();
                let products = weights.alone(&few, expert, 0, &x);
                for (pair, product) in own.iter().zip(products.chunks_exact(4 * width)) {
                    let product = product.as_chunks::<4>().0.iter().map(|b| f32::from_ne_bytes(*b));
                    for (to, value) in wanted[pair / top_k * width..][..width].iter_mut().zip(product) {
                        *to = counts[*pair].mul_add(value, *to);
                    }
                }
            }
            assert!(bits(&got) == bits(&wanted), "{what}: other bits");
            cases += 1;
        }
    }
    eprintln!("packed down: {cases} cases");
}
