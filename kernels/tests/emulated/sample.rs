//! `cuda/sample.cu`, against the function that the CPU samples with: the same tokens, errors and alternatives.

use hearth_kernels::cuda::record::{ALTERNATIVES, OUTCOME, RECORD, answer, record};
use hearth_kernels::sample::{RowError, SampleRow, Sampled, Sampling, Scratch, sample};

use crate::program::{Case, ORDERS, Program};

/// What a row is drawn with, and owns.
#[derive(Clone, Debug, Default)]
struct Wish {
    row: u32,
    sampling: Sampling,
    choice: u32,
    position: u32,
    seen: Vec<(u32, u32)>,
    mask: Option<Vec<u32>>,
    forced: Option<u32>,
}

impl Wish {
    fn row(&self) -> SampleRow<'_> {
        SampleRow {
            row: self.row,
            sampling: &self.sampling,
            choice: self.choice,
            position: self.position,
            seen: &self.seen,
            mask: self.mask.as_deref(),
            forced: self.forced,
        }
    }
}

/// Samples on the kernels; one block more than there are rows.
fn on_device(
    program: &Program,
    (order, threads): (usize, usize),
    n: usize,
    logits: &[f32],
    wishes: &[Wish],
) -> (Vec<u32>, Vec<Sampled>) {
    let grid = wishes.len() + 1;
    let mut lists = Vec::new();
    let records: Vec<u32> = wishes.iter().flat_map(|wish| record(&wish.row(), &mut lists)).collect();
    assert_eq!(records.len(), wishes.len() * RECORD);
    let case = Case::new(&[order, threads, grid, n])
        .u32(&[wishes.len() as u32])
        .u32(&records)
        .u32(&lists)
        .f32(logits)
        .output(4 * grid * n)
        .output(4 * grid)
        .output(4 * grid * OUTCOME)
        .output(8 * grid * ALTERNATIVES);
    let words = program.answer(case, &format!("{threads} threads, order {order}, {n} tokens, {wishes:?}"));
    let words: Vec<u32> = words.as_chunks::<4>().0.iter().map(|b| u32::from_ne_bytes(*b)).collect();
    let (drawn, rest) = words.split_at(grid);
    let (outcomes, alternatives) = rest.split_at(grid * OUTCOME);
    assert_eq!(
        (drawn[grid - 1], outcomes[grid * OUTCOME - 1]),
        (u32::MAX, u32::MAX),
        "a row beyond the count"
    );
    let outcomes = outcomes.chunks(OUTCOME).zip(alternatives.chunks(2 * ALTERNATIVES));
    let answers = wishes
        .iter()
        .zip(outcomes)
        .map(|(wish, (o, a))| answer(wish.row().sampling.logprobs.is_some(), o, a))
        .collect();
    (drawn[..wishes.len()].to_vec(), answers)
}

/// Equal in everything but the last bit or two of a logarithm.
fn assert_same(got: &Sampled, want: &Sampled, what: &str) {
    assert_eq!((got.token, got.error), (want.token, want.error), "{what}");
    let tokens = |s: &Sampled| s.top.iter().map(|(token, _)| *token).collect::<Vec<_>>();
    assert_eq!(tokens(got), tokens(want), "{what}");
    assert_eq!(got.logprob.is_some(), want.logprob.is_some(), "{what}");
    let reals = |s: &Sampled| s.logprob.into_iter().chain(s.top.iter().map(|(_, p)| *p)).collect::<Vec<_>>();
    for (got, want) in reals(got).into_iter().zip(reals(want)) {
        let near = (got - want).abs() <= 2.0 * f32::EPSILON * want.abs();
        assert!(got == want || near, "{what}: a log probability of {got} for {want}");
    }
}

fn check(program: &Program, how: (usize, usize), n: usize, logits: &[f32], wishes: &[Wish]) {
    let (drawn, answers) = on_device(program, how, n, logits, wishes);
    for ((wish, got), drawn) in wishes.iter().zip(&answers).zip(drawn) {
        let want = sample(&logits[wish.row as usize * n..][..n], &wish.row(), &mut Scratch::default());
        assert_same(got, &want, &format!("{how:?}, {n} tokens, {wish:?}"));
        assert_eq!(drawn, want.token, "what the next step reads");
    }
}

/// Numbers for cases, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 ^ self.0 >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 11
    }

    fn below(&mut self, count: u32) -> u32 {
        ((self.bits() >> 21) % u64::from(count)) as u32
    }

    fn real(&mut self, from: f32, to: f32) -> f32 {
        from + (to - from) * (self.below(1 << 24) as f32 / 16_777_216.0)
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u32) as usize]
    }

    /// Few distinct values among others, so that ties are everywhere; both zeros, denormals, some ruled out.
    fn logit(&mut self) -> f32 {
        match self.below(16) {
            0 => f32::NEG_INFINITY,
            1 => self.one(&[0.0, -0.0, 1e-40, -1e-40, 1e-20, -3e-9]),
            2..10 => (self.below(80) as f32 - 40.0) / 4.0,
            _ => self.real(-30.0, 30.0),
        }
    }

    fn logits(&mut self, n: usize) -> Vec<f32> {
        match self.below(6) {
            0 => vec![self.logit().max(-5.0); n],
            1 => (0..n).map(|_| self.real(-1e-3, 1e-3)).collect(),
            2 => (0..n).map(|_| self.real(-2e4, 2e4)).collect(),
            _ => (0..n).map(|_| self.logit()).collect(),
        }
    }

    fn wish(&mut self, n: u32) -> Wish {
        let some = |dice: &mut Self, most: u32| -> Vec<u32> {
            let (count, step) = (dice.below(most), 1 + dice.below(7));
            // Some beyond the vocabulary.
            (0..count).map(|i| i * step + n.saturating_sub(5 * dice.below(2))).collect()
        };
        let spread = |dice: &mut Self, most: u32| -> Vec<u32> {
            let mut tokens: Vec<u32> = some(dice, most).iter().map(|t| t % (n + 3)).collect();
            tokens.sort_unstable();
            tokens.dedup();
            tokens
        };
        let (biased, seen) = (spread(self, 6), spread(self, 40));
        let penalised = self.below(2) == 0;
        Wish {
            row: 0,
            sampling: Sampling {
                temperature: match self.below(8) {
                    0 => 0.0,
                    1..4 => 1.0,
                    4 => self.one(&[1e-30, 1e30, 1e-42, 3e38]),
                    _ => self.real(0.05, 3.0),
                },
                top_k: match self.below(4) {
                    0 | 1 => 0,
                    2 => 1 + self.below(20),
                    _ => 1 + self.below(n + 5),
                },
                top_p: match self.below(4) {
                    0 | 1 => 1.0,
                    2 => self.one(&[1e-30, 0.999_999_94, 0.5]),
                    _ => self.real(0.0001, 1.0),
                },
                min_p: match self.below(4) {
                    0 => self.one(&[1.0, 1e-3]),
                    1 => self.real(0.0, 1.0),
                    _ => 0.0,
                },
                repetition_penalty: if penalised { self.real(0.5, 2.0) } else { 1.0 },
                presence_penalty: if penalised { self.real(-2.0, 2.0) } else { 0.0 },
                frequency_penalty: if penalised { self.real(-2.0, 2.0) } else { 0.0 },
                logit_bias: biased.iter().map(|token| (*token, self.real(-100.0, 100.0))).collect(),
                seed: self.bits() << 20 ^ self.bits(),
                logprobs: match self.below(3) {
                    0 => Some(self.below(21) as u8),
                    _ => None,
                },
            },
            choice: self.below(4),
            position: self.below(100_000),
            seen: if penalised {
                seen.iter().map(|token| (*token, self.below(4))).collect()
            } else {
                Vec::new()
            },
            mask: (self.below(4) == 0).then(|| {
                let words = n.div_ceil(32) - self.below(2).min(n.div_ceil(32) - 1);
                (0..words).map(|_| self.one(&[u32::MAX, 0, 0x8421_0f00, 1])).collect()
            }),
            forced: (self.below(12) == 0).then(|| self.below(n + 2)),
        }
    }
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn every_row_gives_what_the_processor_gives_over_every_parameter() {
    let program = Program::build("sample");
    let mut dice = Dice(1);
    let mut cases = 0;
    for round in 0..160 {
        let n = match round % 4 {
            0 => 1 + dice.below(40),
            _ => 40 + dice.below(900),
        };
        // Two rows of logits under three wishes: a row may be drawn from more than once.
        let logits = [dice.logits(n as usize), dice.logits(n as usize)].concat();
        let wishes: Vec<Wish> = (0..3).map(|i| Wish { row: i % 2, ..dice.wish(n) }).collect();
        check(&program, (ORDERS[round % 3], 64), n as usize, &logits, &wishes);
        cases += wishes.len();
    }
    eprintln!("sampling: {cases} cases");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn long_rows_and_whole_blocks_give_what_the_processor_gives() {
    let program = Program::build("sample");
    let mut dice = Dice(2);
    let mut cases = 0;
    for (threads, n, order) in
        [(1024, 1500, 0), (1024, 3001, 1), (1024, 1024, 2), (256, 20_000, 2), (256, 9_999, 1)]
    {
        // As a model's are: a bell, and a few that stand out.
        let logits: Vec<f32> = (0..n)
            .map(|_| (0..6).map(|_| dice.real(-3.0, 3.0)).sum::<f32>() + f32::from(dice.below(50) == 0) * 6.0)
            .collect();
        let base = Sampling { temperature: 1.0, seed: 9, ..Sampling::default() };
        let mut samplings = vec![
            Sampling::default(),
            base.clone(),
            Sampling { temperature: 0.7, top_p: 0.95, ..base.clone() },
            Sampling { top_k: 50, top_p: 0.8, min_p: 0.02, ..base.clone() },
        ];
        samplings.push(Sampling { temperature: 1.6, top_p: 0.999, logprobs: Some(20), ..base });
        let wishes: Vec<Wish> = (0..)
            .zip(samplings)
            .map(|(position, sampling)| Wish { sampling, position, ..Wish::default() })
            .collect();
        check(&program, (order, threads), n, &logits, &wishes);
        cases += wishes.len();
    }
    eprintln!("long rows: {cases} cases");
}

#[test]
#[ignore = "compiles C++ and emulates threads one by one: the full tier runs it"]
fn damaged_rows_and_rows_that_allow_nothing_are_errors_of_their_own() {
    let program = Program::build("sample");
    let drawn = Sampling { temperature: 1.0, top_p: 0.9, logprobs: Some(2), ..Sampling::default() };
    for n in [70, 100] {
        for (at, bad) in [(0, f32::NAN), (n - 1, f32::INFINITY), (33, f32::NAN)] {
            let mut logits = vec![0.5; 2 * n];
            logits[at] = bad;
            let rows = [(0, None), (0, Some(1)), (1, None)];
            let wishes =
                rows.map(|(row, forced)| Wish { row, forced, sampling: drawn.clone(), ..Wish::default() });
            check(&program, (0, 64), n, &logits, &wishes);
            let answers = on_device(&program, (1, 64), n, &logits, &wishes).1;
            let errors: Vec<_> = answers.iter().map(|answer| answer.error).collect();
            assert_eq!(errors, [Some(RowError::NotANumber), Some(RowError::NotANumber), None]);
        }
        let logits: Vec<f32> = (0..n).map(|i| i as f32 / 8.0).collect();
        for sampling in [Sampling::default(), drawn.clone()] {
            // Nothing; one token; a mask that ends before the row does; a bias that is no number.
            let mut wishes = vec![vec![0, 0, 0, 0], vec![0, 8, 0, 0], vec![1]].into_iter();
            let mut wishes: Vec<Wish> = wishes
                .by_ref()
                .map(|mask| Wish { mask: Some(mask), sampling: sampling.clone(), ..Wish::default() })
                .collect();
            let logit_bias = vec![(3, f32::NAN)];
            wishes.push(Wish { sampling: Sampling { logit_bias, ..sampling }, ..Wish::default() });
            check(&program, (2, 64), n, &logits, &wishes);
            let answers = on_device(&program, (0, 64), n, &logits, &wishes).1;
            assert_eq!(answers[0].error, Some(RowError::NothingAllowed));
            assert_eq!((answers[1].token, answers[2].token), (35, 0));
            assert_eq!(answers[3].error, Some(RowError::NotANumber));
        }
        check(&program, (0, 64), n, &vec![f32::NEG_INFINITY; n], &[Wish::default()]);
    }
}
