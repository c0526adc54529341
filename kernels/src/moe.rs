//! Mixture of experts: which experts a row goes to, and the feed-forward layers of all experts.
//!
//! Rows are grouped by expert, so that the weights of an expert are read once for all its rows. A row's result does
//! not depend on which others its experts have: products give the same bits for any number of rows, and each row sums
//! its experts in ascending order.

use candle_core::Tensor;

use crate::buffer::{Shared, read, write};
use crate::cpu::lanes::{Kernel, Lanes, dispatch};
use crate::gate::{self, Activation};
use crate::linear::{Gather, Operands, Write, product};
use crate::{Context, Error, Weight};

/// Which rows each expert works on and how much its result counts. Made once for the largest step, filled by
/// [`route`].
pub struct Routes {
    /// Where each expert's rows begin; one more than experts.
    starts: Vec<u32>,
    rows: Vec<u32>,
    weights: Vec<f32>,
    /// Per row its choices, before they are sorted by expert.
    chosen: Vec<(u32, f32)>,
    count: usize,
}

impl Routes {
    pub fn new(capacity: usize, experts: usize, top_k: usize) -> Self {
        Self {
            starts: vec![0; experts + 1],
            rows: vec![0; capacity * top_k],
            weights: vec![0.0; capacity * top_k],
            chosen: vec![(0, 0.0); capacity * top_k],
            count: 0,
        }
    }

    /// The rows of an expert, ascending, each with its weight.
    pub fn expert(&self, expert: usize) -> (&[u32], &[f32]) {
        let range = self.starts[expert] as usize..self.starts[expert + 1] as usize;
        (&self.rows[range.clone()], &self.weights[range])
    }

    pub fn experts(&self) -> usize {
        self.starts.len() - 1
    }
}

/// Sends each row to the `top_k` experts with the largest logits (`[capacity, experts]`), the lower number first among
/// equals. Weights are the softmax over all experts, divided by the sum of the chosen ones when `renormalise`.
pub fn route(
    _ctx: &Context,
    logits: &Tensor,
    rows: usize,
    experts: usize,
    top_k: usize,
    renormalise: bool,
    routes: &mut Routes,
) -> Result<(), Error> {
    let logits = read(("route", "logits"), logits, rows, experts)?;
    if routes.experts() != experts || routes.chosen.len() < rows * top_k || top_k > experts {
        return Err(Error::Shape {
            op: "route",
            operand: "routes",
            got: vec![routes.chosen.len(), routes.experts()],
            want: format!("room for {rows} rows with {top_k} of {experts} experts each"),
        });
    }
    routes.count = rows * top_k;
    routes.starts.fill(0);
    for row in 0..rows {
        let logits = &logits[row * experts..][..experts];
        let chosen = &mut routes.chosen[row * top_k..][..top_k];
        choose(logits, chosen, renormalise);
        for (expert, _) in chosen {
            routes.starts[*expert as usize + 1] += 1;
        }
    }
    for expert in 0..experts {
        routes.starts[expert + 1] += routes.starts[expert];
    }
    // Starts serve as cursors, one expert ahead, and are moved back afterwards.
    for (i, (expert, weight)) in routes.chosen[..routes.count].iter().enumerate() {
        let at = &mut routes.starts[*expert as usize];
        routes.rows[*at as usize] = (i / top_k) as u32;
        routes.weights[*at as usize] = *weight;
        *at += 1;
    }
    routes.starts.rotate_right(1);
    routes.starts[0] = 0;
    Ok(())
}

/// The experts of one row, best first.
fn choose(logits: &[f32], chosen: &mut [(u32, f32)], renormalise: bool) {
    let mut filled = 0;
    for (expert, logit) in logits.iter().enumerate() {
        let place =
            chosen[..filled].iter().position(|(_, best)| logit.total_cmp(best).is_gt()).unwrap_or(filled);
        if place < chosen.len() {
            filled = (filled + 1).min(chosen.len());
            chosen[place..filled].rotate_right(1);
            chosen[place] = (expert as u32, *logit);
        }
    }
    let Some(max) = chosen.first().map(|(_, logit)| *logit) else { return };
    let sum: f32 = if renormalise {
        chosen.iter().map(|(_, logit)| (logit - max).exp()).sum()
    } else {
        logits.iter().map(|logit| (logit - max).exp()).sum()
    };
    chosen.iter_mut().for_each(|(_, logit)| *logit = (*logit - max).exp() / sum);
}

/// The feed-forward layers: `gate_up[e]` is `[2 * ffn, width]`, `down[e]` `[width, ffn]`; `out` is `[capacity, width]`.
/// Each row gets the weighted results of its experts, in ascending order of experts, added to zero or to what is there.
#[allow(clippy::too_many_arguments, reason = "the operands of one operation, as in the other files")]
pub fn experts(
    ctx: &Context,
    x: &Tensor,
    rows: usize,
    routes: &Routes,
    gate_up: &[Weight],
    down: &[Weight],
    act: Activation,
    out: &Tensor,
    how: Write,
) -> Result<(), Error> {
    let count = routes.experts();
    if gate_up.len() != count || down.len() != count {
        let want = format!("{count} experts");
        return Err(Error::Shape {
            op: "experts",
            operand: "weights",
            got: vec![gate_up.len(), down.len()],
            want,
        });
    }
    let (width, ffn) = down.first().map_or((0, 0), |down| (down.rows(), down.cols()));
    for (gate_up, down) in gate_up.iter().zip(down) {
        let shapes = [gate_up.rows(), gate_up.cols(), down.rows(), down.cols()];
        if shapes != [2 * ffn, width, width, ffn] {
            let want = format!("gate and up [{}, {width}], down [{width}, {ffn}]", 2 * ffn);
            return Err(Error::Shape { op: "experts", operand: "expert", got: shapes.to_vec(), want });
        }
    }
    let x = read(("experts", "x"), x, rows, width)?;
    write(("experts", "out"), out, rows, width, &[&x], |out| {
        if how == Write::Set {
            out.fill(0.0);
        }
        let scratch = &mut *ctx.scratch();
        let [both, bent, result] = &mut scratch.expert;
        for expert in 0..count {
            let (list, weights) = routes.expert(expert);
            if list.is_empty() {
                continue;
            }
            if let Some(row) = list.iter().find(|row| **row as usize >= rows) {
                let want = format!("rows below {rows}");
                return Err(Error::Shape {
                    op: "experts",
                    operand: "routes",
                    got: vec![*row as usize],
                    want,
                });
            }
            let count = list.len();
            both.reserve(count * 2 * ffn)?;
            bent.reserve(count * ffn)?;
            result.reserve(count * width)?;
            let both = &mut both[..count * 2 * ffn];
            let bent = &mut bent[..count * ffn];
            let result = &mut result[..count * width];
            let staging = &mut scratch.staging;
            let op = |x, rows, weight| Operands { x, rows, weight, bias: None, how: Write::Set };
            product(ctx, staging, &op(&x, Gather::List(list), &gate_up[expert]), both)?;
            gate::on_rows(ctx, both, count, ffn, act, bent)?;
            product(ctx, staging, &op(bent, Gather::First(count), &down[expert]), result)?;
            let to = Shared::new(out);
            let result = &*result;
            ctx.run(count.div_ceil(SCALED_ROWS), |task| {
                for i in task * SCALED_ROWS..count.min((task + 1) * SCALED_ROWS) {
                    // SAFETY: the rows of an expert differ, and each is below `rows` (checked above).
                    let out = unsafe { to.slice(list[i] as usize * width, width) };
                    dispatch(ctx, Scaled { weight: weights[i], from: &result[i * width..][..width], out });
                }
            })?;
        }
        Ok(())
    })
}

/// Rows whose results a task adds up.
const SCALED_ROWS: usize = 4;

/// Adds a row's result of one expert, weighted.
struct Scaled<'a> {
    weight: f32,
    from: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Scaled<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for (out, from) in self.out.chunks_mut(16).zip(self.from.chunks(16)) {
            let count = from.len();
            // SAFETY: both slices are `count` long, and `L` is offered (the caller's promise).
            unsafe {
                let from = L::load_some(from.as_ptr(), count);
                let sum = L::fma(L::splat(self.weight), from, L::load_some(out.as_ptr(), count));
                L::store_some(out.as_mut_ptr(), count, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::View;
    use crate::cpu::detect::Isa;

    fn wave(len: usize, step: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    fn rows_go_to_their_best_experts_and_weights_sum_to_one() {
        let ctx = Context::cpu_with(Isa::best(), 1).unwrap();
        let logits: Vec<f32> = [[0.0, 3.0, 1.0, 3.0], [2.0, -1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]].concat();
        let logits = Tensor::from_vec(logits, (3, 4), &Device::Cpu).unwrap();
        let mut routes = Routes::new(5, 4, 2);
        route(&ctx, &logits, 3, 4, 2, true, &mut routes).unwrap();
        let near = |weights: &[f32], want: &[f32]| {
            weights.len() == want.len() && weights.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6)
        };
        let second = 1.0 / (1.0 + 1.5f32.exp());
        assert!(routes.expert(0).0 == [1, 2] && near(routes.expert(0).1, &[1.0 - second, 0.5]));
        assert!(routes.expert(1).0 == [0, 2] && near(routes.expert(1).1, &[0.5, 0.5]));
        assert!(routes.expert(2).0 == [1] && near(routes.expert(2).1, &[second]));
        assert!(routes.expert(3).0 == [0] && near(routes.expert(3).1, &[0.5]));
        route(&ctx, &logits, 3, 4, 2, false, &mut routes).unwrap();
        assert!(near(routes.expert(1).1, &[3.0f32.exp() / (2.0 * 3.0f32.exp() + 1.0f32.exp() + 1.0), 0.25]));
    }

    struct Mixture {
        gate_up: Vec<Weight>,
        down: Vec<Weight>,
        exact: Vec<(Vec<f32>, Vec<f32>)>,
    }

    const WIDTH: usize = 24;
    const FFN: usize = 40;

    fn mixture(ctx: &Context) -> Mixture {
        let mut mixture = Mixture { gate_up: vec![], down: vec![], exact: vec![] };
        for expert in 0..4 {
            let gate_up = wave(2 * FFN * WIDTH, 0.3 + expert as f32 * 0.1);
            let down = wave(WIDTH * FFN, 0.7 + expert as f32 * 0.1);
            let pack = |rows, cols, numbers: &[f32]| {
                let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                Weight::pack(ctx, &[View { dtype: DType::F32, rows, cols, bytes: &bytes }]).unwrap()
            };
            mixture.gate_up.push(pack(2 * FFN, WIDTH, &gate_up));
            mixture.down.push(pack(WIDTH, FFN, &down));
            mixture.exact.push((gate_up, down));
        }
        mixture
    }

    #[test]
    fn a_row_gets_the_weighted_results_of_its_experts_whatever_other_rows_there_are() {
        let ctx = Context::cpu_with(Isa::best(), 2).unwrap();
        let Mixture { gate_up, down, exact } = mixture(&ctx);
        let rows = 9;
        let (x, logits) = (wave(rows * WIDTH, 0.13), wave(rows * 4, 1.7));
        let run = |from: usize, to: usize| {
            let count = to - from;
            let x = Tensor::from_slice(&x[from * WIDTH..to * WIDTH], (count, WIDTH), &Device::Cpu).unwrap();
            let logits = Tensor::from_slice(&logits[from * 4..to * 4], (count, 4), &Device::Cpu).unwrap();
            let out = Tensor::ones((count, WIDTH), DType::F32, &Device::Cpu).unwrap();
            let mut routes = Routes::new(count, 4, 2);
            route(&ctx, &logits, count, 4, 2, true, &mut routes).unwrap();
            experts(&ctx, &x, count, &routes, &gate_up, &down, Activation::Silu, &out, Write::Add).unwrap();
            out.to_vec2::<f32>().unwrap()
        };
        let all = run(0, rows);
        for row in 0..rows {
            assert_eq!(run(row, row + 1)[0], all[row], "row {row} alone");
            let logits = &logits[row * 4..][..4];
            let mut best: Vec<usize> = (0..4).collect();
            best.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            let share = 1.0 / (1.0 + f64::from(logits[best[1]] - logits[best[0]]).exp());
            let mut want = vec![1.0f64; WIDTH];
            for (expert, share) in [(best[0], share), (best[1], 1.0 - share)] {
                let (gate_up, down) = &exact[expert];
                let dot = |n: usize| -> f64 {
                    (0..WIDTH)
                        .map(|k| f64::from(x[row * WIDTH + k]) * f64::from(gate_up[n * WIDTH + k]))
                        .sum()
                };
                let bent: Vec<f64> =
                    (0..FFN).map(|n| dot(n) / (1.0 + (-dot(n)).exp()) * dot(FFN + n)).collect();
                for (n, want) in want.iter_mut().enumerate() {
                    *want += share * (0..FFN).map(|k| bent[k] * f64::from(down[n * FFN + k])).sum::<f64>();
                }
            }
            for (out, want) in all[row].iter().zip(want) {
                assert!(
                    (f64::from(*out) - want).abs() < 1e-4 * want.abs().max(1.0),
                    "row {row}: {out} {want}"
                );
            }
        }
    }
}
