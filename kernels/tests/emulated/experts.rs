//! `cuda/experts.cu`.

use half::bf16;

use crate::program::{Case, ORDERS, Program, halves, numbers};

const ROUTE: usize = 0;
const GATE_UP: usize = 1;
const DOWN: usize = 2;
const GROUP: usize = 3;
const GATHER: usize = 4;
const COMBINE: usize = 5;

fn u32s(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|b| u32::from_ne_bytes(*b)).collect()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_ne_bytes(*b)).collect()
}

fn bf16s(bytes: &[u8]) -> Vec<bf16> {
    bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_bits(u16::from_ne_bytes(*b))).collect()
}

/// The experts of a row, ascending, each with its weight.
fn choose(logits: &[f32], top_k: usize, renormalise: bool) -> Vec<(u32, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    let share = |e: usize| (f64::from(logits[e]) - f64::from(logits[order[0]])).exp();
    let sum: f64 = order[..if renormalise { top_k } else { order.len() }].iter().map(|e| share(*e)).sum();
    let mut chosen: Vec<_> = order[..top_k].iter().map(|e| (*e as u32, share(*e) / sum)).collect();
    chosen.sort_by_key(|(expert, _)| *expert);
    chosen
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn rows_go_to_their_best_experts_the_lower_of_equals() {
    let program = Program::build("experts");
    let mut cases = 0;
    for (experts, top_k) in [(8, 2), (8, 1), (4, 4), (64, 6), (1, 1)] {
        for renormalise in [true, false] {
            for (rows, order) in [(1, 0), (63, 1), (130, 2)] {
                // Ties, zeros of both signs, logits that rule out.
                let logits: Vec<f32> = numbers(31, rows * experts)
                    .iter()
                    .enumerate()
                    .map(|(i, x)| match i / experts % 4 {
                        0 => 0.0,
                        1 => (x * 3.0).round(),
                        2 if i % experts % 5 == 3 => f32::NEG_INFINITY,
                        _ => x * 9.0,
                    })
                    .collect();
                let capacity = rows + 3;
                let case =
                    Case::new(&[ROUTE, order, capacity.div_ceil(64), 1, experts, top_k, renormalise.into()])
                        .u32(&[rows as u32])
                        .f32(&logits)
                        .output(4 * capacity * top_k)
                        .output(4 * capacity * top_k);
                let what = format!("{rows} rows, {top_k} of {experts}, renormalise {renormalise}");
                let answer = program.answer(case, &what);
                let (chosen, weights) = answer.split_at(answer.len() / 2);
                let (chosen, weights) = (u32s(chosen), f32s(weights));
                for row in 0..rows {
                    let own = &logits[row * experts..][..experts];
                    for (i, (expert, weight)) in choose(own, top_k, renormalise).into_iter().enumerate() {
                        let at = row * top_k + i;
                        assert_eq!(chosen[at], expert, "{what}, row {row}");
                        let got = f64::from(weights[at]);
                        assert!(
                            (got - weight).abs() <= 4e-6 * weight,
                            "{what}, row {row}: {got} for {weight}"
                        );
                    }
                }
                assert!(chosen[rows * top_k..].iter().all(|word| *word == u32::MAX), "{what}: rows beyond");
                cases += 1;
            }
        }
    }
    eprintln!("router: {cases} cases");
}

/// Weights of a mixture as the device has them: gate and up in turns of eight rows.
struct Mixture {
    width: usize,
    ffn: usize,
    gate_up: Vec<bf16>,
    down: Vec<bf16>,
}

impl Mixture {
    fn new(experts: usize, width: usize, ffn: usize) -> Self {
        let gate_up = halves(41, experts * 2 * ffn * width);
        Self { width, ffn, gate_up, down: halves(42, experts * width * ffn) }
    }

    /// Row of gate or up for number `i` of the middle.
    fn row(&self, expert: usize, up: bool, i: usize) -> &[bf16] {
        let row = expert * 2 * self.ffn + i / 8 * 16 + usize::from(up) * 8 + i % 8;
        &self.gate_up[row * self.width..][..self.width]
    }
}

fn dot(x: &[bf16], w: &[bf16]) -> f64 {
    x.iter().zip(w).map(|(x, w)| x.to_f64() * w.to_f64()).sum()
}

fn bent(gelu: bool, x: f64) -> f64 {
    let y = if gelu { 2.0 * 0.797_884_560_802_865_4 * (x + 0.044715 * x.powi(3)) } else { x };
    x / (1.0 + (-y).exp())
}

/// Rows that the buffers of few rows hold.
const CAPACITY: usize = 4;

/// Which experts the rows of a case go to: the same two for all, different ones, one for several.
fn routes(rows: usize, experts: usize, top_k: usize) -> Vec<u32> {
    (0..rows)
        .flat_map(|row| {
            let mut own: Vec<u32> =
                (0..top_k).map(|c| ((row / 2 * 3 + c * 2 + 1) % experts) as u32).collect();
            own.sort_unstable();
            own
        })
        .collect()
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn few_rows_go_through_their_experts_one_by_one() {
    let program = Program::build("experts");
    let skinny = Program::build("skinny");
    let mut cases = 0;
    let top_k = 2;
    for (experts, width, ffn) in [(8, 264, 40), (5, 1032, 24), (8, 16, 8)] {
        let mixture = Mixture::new(experts, width, ffn);
        for (rows, gelu, order) in [(1, false, 0), (4, false, 1), (3, true, 2)] {
            let what = format!("{rows} rows, {experts} experts of {width} by {ffn}");
            let x = halves(43, CAPACITY * width);
            let chosen = routes(CAPACITY, experts, top_k);
            let grid = (ffn / 2).div_ceil(8);
            let case = Case::new(&[GATE_UP, order, grid, CAPACITY * top_k, gelu.into(), width, ffn, top_k]);
            let case = case.u32(&[rows as u32]).u32(&chosen).bf16(&x).bf16(&mixture.gate_up);
            let answer = program.answer(case.output(2 * CAPACITY * top_k * ffn), &what);
            let (written, rest) = answer.split_at(2 * rows * top_k * ffn);
            assert!(rest.iter().all(|b| *b == 0xff), "{what}: rows beyond the count are left alone");
            let middle = bf16s(written);
            // The bits of skinny's warp class.
            let (pair, expert) = (rows * top_k - 1, chosen[rows * top_k - 1] as usize);
            let own = &mixture.gate_up[expert * 2 * ffn * width..][..2 * ffn * width];
            let case = Case::new(&[0, 2 + usize::from(gelu), 0, 0, 1, 2 * ffn, width]);
            let case = case.bf16(&x[(rows - 1) * width..][..width]).bf16(own).f32(&[]).output(2 * ffn);
            assert_eq!(middle[pair * ffn..], bf16s(&skinny.answer(case, &what)), "{what}");
            for pair in 0..rows * top_k {
                let x = &x[pair / top_k * width..][..width];
                for i in 0..ffn {
                    let sums = [false, true].map(|up| dot(x, mixture.row(chosen[pair] as usize, up, i)));
                    let want = bent(gelu, sums[0]) * sums[1];
                    let got = middle[pair * ffn + i].to_f64();
                    let allowed = want.abs() / 250.0 + 1e-3;
                    assert!((got - want).abs() <= allowed, "{what}: pair {pair}, {i}: {got} for {want}");
                }
            }
            cases += 1;
        }
    }
    // Whole rounds of four warps and a tail; less than a round.
    for (experts, width, ffn) in [(8, 16, 2072), (3, 40, 304), (5, 4, 8)] {
        let mixture = Mixture::new(experts, width, ffn);
        for (rows, order) in [(1, 0), (4, 1), (3, 2)] {
            let what = format!("{rows} rows, {experts} experts of {width} by {ffn}, down");
            let chosen = routes(CAPACITY, experts, top_k);
            // Rows that are not counted are no numbers.
            let mut middle = halves(51, rows * top_k * ffn);
            middle.resize(CAPACITY * top_k * ffn, bf16::NAN);
            let weights: Vec<f32> = numbers(44, CAPACITY * top_k).iter().map(|x| 0.5 + 0.4 * x).collect();
            let before = numbers(45, CAPACITY * width);
            let case = Case::new(&[DOWN, order, width / 4, CAPACITY, width, ffn, top_k]);
            let case = case.u32(&[rows as u32]).u32(&chosen).f32(&weights).bf16(&middle).bf16(&mixture.down);
            let got = f32s(&program.answer(case.f32(&before), &what));
            // The bits of skinny's block class, weighted and added in the order of experts.
            let mut want = before.clone();
            let (pairs, n) = (rows * top_k, experts * width);
            let case = Case::new(&[1, 0, 0, 0, pairs, n, ffn]).bf16(&middle[..pairs * ffn]);
            let case = case.bf16(&mixture.down).f32(&[]).output(4 * pairs * n);
            let products = skinny.reals(case, &what);
            for pair in 0..pairs {
                let product = &products[pair * n + chosen[pair] as usize * width..][..width];
                for (want, product) in want[pair / top_k * width..].iter_mut().zip(product) {
                    *want = weights[pair].mul_add(*product, *want);
                }
            }
            assert_eq!(got, want, "{what}");
            cases += 1;
        }
    }
    eprintln!("direct: {cases} cases");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn pairs_are_put_in_order_of_experts_and_rows_come_back_to_their_place() {
    let program = Program::build("experts");
    let mut cases = 0;
    for (rows, experts, top_k) in [(1, 8, 2), (5, 8, 2), (40, 8, 2), (33, 64, 3), (100, 3, 1), (70, 2, 2)] {
        for (order, one) in ORDERS.into_iter().zip([false, true, false]) {
            let what = format!("{rows} rows to {top_k} of {experts}, all to the last {one}");
            let capacity = rows + 2;
            let mut chosen = routes(capacity, experts, top_k);
            if one {
                // The last experts alone: all others are empty.
                chosen = (0..capacity * top_k).map(|i| (experts - top_k + i % top_k) as u32).collect();
            }
            let pairs = rows * top_k;
            let case = Case::new(&[GROUP, order, 1, 1, experts, top_k])
                .u32(&[rows as u32])
                .u32(&chosen)
                .output(4 * (experts + 1))
                .output(4 * capacity * top_k)
                .output(4 * capacity * top_k);
            let words = u32s(&program.answer(case, &what));
            let (starts, rest) = words.split_at(experts + 1);
            let (sorted, places) = rest.split_at(capacity * top_k);
            let mut want: Vec<u32> = (0..pairs as u32).collect();
            want.sort_by_key(|pair| (chosen[*pair as usize], *pair));
            assert_eq!(sorted[..pairs], want, "{what}");
            assert!(sorted[pairs..].iter().chain(&places[pairs..]).all(|word| *word == u32::MAX), "{what}");
            for (expert, start) in starts.iter().enumerate() {
                let before = chosen[..pairs].iter().filter(|e| (**e as usize) < expert).count();
                assert_eq!(*start as usize, before, "{what}: expert {expert}");
            }
            for (place, pair) in want.iter().enumerate() {
                assert_eq!(places[*pair as usize] as usize, place, "{what}");
            }

            let width = 24;
            let x = halves(47, capacity * width);
            let case = Case::new(&[GATHER, order, capacity * top_k, 1, width, top_k])
                .u32(&[rows as u32])
                .u32(sorted)
                .bf16(&x)
                .output(2 * capacity * top_k * width);
            let gathered = program.answer(case, &what);
            let (written, rest) = gathered.split_at(2 * pairs * width);
            assert!(rest.iter().all(|b| *b == 0xff), "{what}");
            let expected = want.iter().flat_map(|pair| &x[*pair as usize / top_k * width..][..width]);
            assert!(bf16s(written).iter().eq(expected), "{what}: rows side by side");

            let (results, weights) = (numbers(48, capacity * top_k * width), numbers(49, capacity * top_k));
            let before = numbers(50, capacity * width);
            let case = Case::new(&[COMBINE, order, capacity, 1, width, top_k])
                .u32(&[rows as u32])
                .u32(places)
                .f32(&weights)
                .f32(&results)
                .f32(&before);
            let got = f32s(&program.answer(case, &what));
            let mut after = before;
            for pair in 0..pairs {
                let result = &results[places[pair] as usize * width..][..width];
                for (after, result) in after[pair / top_k * width..].iter_mut().zip(result) {
                    *after = weights[pair].mul_add(*result, *after);
                }
            }
            assert_eq!(got, after, "{what}");
            cases += 3;
        }
    }
    eprintln!("grouping: {cases} cases");
}
