use super::*;
use proptest::prelude::*;

fn row(sampling: &Sampling) -> SampleRow<'_> {
    SampleRow { row: 0, sampling, choice: 0, position: 0, seen: &[], mask: None, forced: None }
}

fn one(logits: &[f32], row: &SampleRow<'_>) -> Sampled {
    sample(logits, row, &mut Scratch::default())
}

/// The same rules, written down with a full sort and no care for speed.
fn naive(logits: &[f32], row: &SampleRow<'_>) -> Result<u32, RowError> {
    let s = row.sampling;
    if logits.iter().any(|l| l.is_nan() || *l == f32::INFINITY)
        || logits.iter().all(|l| *l == f32::NEG_INFINITY)
    {
        return Err(RowError::NotANumber);
    }
    let mut logits = logits.to_vec();
    for (token, bias) in &s.logit_bias {
        logits[*token as usize] += bias;
    }
    for (token, logit) in logits.iter_mut().enumerate() {
        if row.mask.is_some_and(|mask| mask[token / 32] & (1 << (token % 32)) == 0) {
            *logit = f32::NEG_INFINITY;
        }
        if let Some((_, count)) = row.seen.iter().find(|(seen, _)| *seen as usize == token) {
            *logit = if *logit > 0.0 { *logit / s.repetition_penalty } else { *logit * s.repetition_penalty };
            if *count > 0 {
                *logit -= s.frequency_penalty * *count as f32 + s.presence_penalty;
            }
        }
    }
    let mut order: Vec<usize> = (0..logits.len()).filter(|t| logits[*t] > f32::NEG_INFINITY).collect();
    order.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).unwrap().then(a.cmp(b)));
    let Some(&best) = order.first() else { return Err(RowError::NothingAllowed) };
    if s.temperature == 0.0 {
        return Ok(best as u32);
    }
    let weigh =
        |t: usize| weight((f64::from(logits[t]) - f64::from(logits[best])) / f64::from(s.temperature));
    order.retain(|t| weigh(*t) as f64 >= f64::from(s.min_p) * UNIT as f64);
    if s.top_k > 0 {
        order.truncate(s.top_k as usize);
    }
    if s.top_p < 1.0 {
        let mass: u64 = order.iter().map(|t| weigh(*t)).sum();
        let wanted = ((mass as f64 * f64::from(s.top_p)).ceil() as u64).max(1);
        let (mut sum, mut keep) = (0, 0);
        while sum < wanted {
            sum += weigh(order[keep]);
            keep += 1;
        }
        order.truncate(keep);
    }
    order.sort();
    let total = order.iter().map(|t| weigh(*t)).sum();
    let mut left = below(random(s.seed, row.choice, row.position), total);
    for token in order {
        if left < weigh(token) {
            return Ok(token as u32);
        }
        left -= weigh(token);
    }
    unreachable!()
}

fn result(sampled: Sampled) -> Result<u32, RowError> {
    sampled.error.map_or(Ok(sampled.token), Err)
}

fn logit() -> impl Strategy<Value = f32> {
    // Few distinct values, so that ties are everywhere; some ruled out.
    prop_oneof![
        8 => (-40i32..40).prop_map(|i| i as f32 / 4.0),
        4 => -30.0f32..30.0,
        1 => Just(f32::NEG_INFINITY),
        1 => prop_oneof![Just(0.0f32), Just(-0.0f32)],
    ]
}

fn sampling() -> impl Strategy<Value = Sampling> {
    let filters = (
        prop_oneof![Just(0.0f32), Just(1.0), 0.05f32..3.0, Just(1e-30), Just(1e30)],
        prop_oneof![Just(0u32), 1u32..20, Just(5000)],
        prop_oneof![Just(1.0f32), 0.0001f32..1.0, Just(1e-30)],
        prop_oneof![Just(0.0f32), 0.0f32..=1.0, Just(1.0)],
    );
    let penalties = (
        prop_oneof![Just(1.0f32), 0.5f32..2.0],
        prop_oneof![Just(0.0f32), -2.0f32..2.0],
        prop_oneof![Just(0.0f32), -2.0f32..2.0],
    );
    let bias = prop::collection::btree_map(0u32..40, -100.0f32..100.0, 0..4);
    (filters, penalties, bias, any::<u64>()).prop_map(
        |((temperature, top_k, top_p, min_p), (repetition, presence, frequency), bias, seed)| Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty: repetition,
            presence_penalty: presence,
            frequency_penalty: frequency,
            logit_bias: bias.into_iter().collect(),
            seed,
            logprobs: None,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn every_row_gives_the_token_of_the_naive_reference(
        logits in prop::collection::vec(logit(), 40..700),
        sampling in sampling(),
        seen in prop::collection::btree_map(0u32..40, 0u32..4, 0..8),
        mask in prop::option::of(prop::collection::vec(any::<u32>(), 22)),
        choice in 0u32..4,
        position in 0u32..10_000,
    ) {
        let seen: Vec<_> = seen.into_iter().collect();
        let row = SampleRow { row: 0, sampling: &sampling, choice, position, seen: &seen, mask: mask.as_deref(), forced: None };
        prop_assert_eq!(result(one(&logits, &row)), naive(&logits, &row));
    }
}

#[test]
fn a_long_nucleus_over_a_large_vocabulary_is_that_of_the_reference() {
    let logits: Vec<f32> =
        (0..100_000u32).map(|i| ((i.wrapping_mul(2_654_435_761)) >> 12) as f32 / 4e5).collect();
    for (seed, top_p) in [(1, 0.3f32), (2, 0.6), (3, 0.9), (4, 0.999)] {
        let sampling = Sampling { temperature: 1.3, top_p, seed, ..Sampling::default() };
        assert_eq!(result(one(&logits, &row(&sampling))), naive(&logits, &row(&sampling)), "top_p {top_p}");
    }
}

#[test]
fn greedy_takes_the_lowest_of_equal_tokens() {
    assert_eq!(one(&[1.0, 3.0, 3.0, -1.0], &row(&Sampling::default())).token, 1);
    let many: Vec<f32> = (0..1000).map(|i| if i >= 500 { 2.0 } else { 1.0 }).collect();
    assert_eq!(one(&many, &row(&Sampling::default())).token, 500);
}

#[test]
fn the_draw_depends_on_seed_choice_and_position_and_on_nothing_else() {
    let logits = vec![0.0; 5000];
    let a = Sampling { temperature: 1.0, seed: 1, ..Sampling::default() };
    let b = Sampling { seed: 2, ..a.clone() };
    let mut scratch = Scratch::default();
    let mut token = |s: &Sampling, choice, position| {
        sample(&logits, &SampleRow { choice, position, ..row(s) }, &mut scratch).token
    };
    let first = token(&a, 0, 7);
    assert_ne!(first, token(&b, 0, 7));
    assert_ne!(first, token(&a, 1, 7));
    assert_ne!(first, token(&a, 0, 8));
    assert_eq!(first, token(&a, 0, 7), "the memory of other rows does not show");
}

/// Pearson's statistic of 200,000 draws against the exact probabilities of the tokens that may be drawn. The bounds
/// are the 99.99th percentile of chi-square; the seeds are fixed, so the outcome is too.
#[test]
fn the_tokens_are_drawn_as_often_as_their_probabilities_say() {
    let logits: Vec<f32> = (0..64).map(|i| ((i * 37) % 64) as f32 / 16.0).collect();
    let base = Sampling { temperature: 0.8, seed: 42, ..Sampling::default() };
    let cases = [
        (base.clone(), 64, 113.0),
        (Sampling { top_k: 10, ..base.clone() }, 10, 34.0),
        (Sampling { top_p: 0.5, ..base.clone() }, 12, 38.0),
        (Sampling { min_p: 0.2, ..base.clone() }, 21, 53.0),
    ];
    for (sampling, about, bound) in cases {
        let draws = 200_000;
        let mut counts = vec![0u32; logits.len()];
        let mut scratch = Scratch::default();
        for position in 0..draws {
            counts
                [sample(&logits, &SampleRow { position, ..row(&sampling) }, &mut scratch).token as usize] +=
                1;
        }
        let drawn: Vec<usize> = (0..64).filter(|t| counts[*t] > 0).collect();
        assert!(drawn.len().abs_diff(about) <= 3, "{} tokens are left: {sampling:?}", drawn.len());
        let mass = |t: usize| (f64::from(logits[t]) / 0.8).exp();
        let total: f64 = drawn.iter().map(|t| mass(*t)).sum();
        let statistic: f64 = drawn
            .iter()
            .map(|t| {
                let expected = mass(*t) / total * f64::from(draws);
                (f64::from(counts[*t]) - expected).powi(2) / expected
            })
            .sum();
        assert!(statistic < bound, "chi-square {statistic:.1} over {} tokens: {sampling:?}", drawn.len());
    }
}

#[test]
fn log_probabilities_are_those_of_the_untouched_row_whatever_is_drawn() {
    let logits = [2.0f32, 0.5, -1.0, 1.0, f32::NEG_INFINITY];
    let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
    let exact = |t: usize| (f64::from(logits[t]) - sum.ln()) as f32;
    let sampling = Sampling { logprobs: Some(3), logit_bias: vec![(2, 50.0)], ..Sampling::default() };
    let sampled = one(&logits, &row(&sampling));
    assert_eq!(sampled.token, 2, "the bias decides");
    assert!((sampled.logprob.unwrap() - exact(2)).abs() < 1e-6);
    let tokens: Vec<u32> = sampled.top.iter().map(|(token, _)| *token).collect();
    assert_eq!(tokens, [0, 3, 1]);
    assert!(sampled.top.iter().all(|(t, p)| (p - exact(*t as usize)).abs() < 1e-6));
    let forced = one(&logits, &SampleRow { forced: Some(4), ..row(&sampling) });
    assert_eq!((forced.token, forced.logprob), (4, Some(f32::NEG_INFINITY)));
    assert_eq!(one(&logits, &row(&Sampling { logprobs: Some(200), ..Sampling::default() })).top.len(), 4);
    assert_eq!(one(&logits, &row(&Sampling { logprobs: Some(0), ..Sampling::default() })).top, []);
    assert_eq!(one(&logits, &row(&Sampling::default())).logprob, None);
}

#[test]
fn a_row_that_is_not_a_number_is_an_error_wherever_the_number_is_missing() {
    for bad in [f32::NAN, f32::INFINITY] {
        for at in [0, 15, 16, 17, 99] {
            let mut logits = vec![0.5; 100];
            logits[at] = bad;
            for sampling in
                [Sampling::default(), Sampling { temperature: 1.0, top_p: 0.5, ..Sampling::default() }]
            {
                assert_eq!(one(&logits, &row(&sampling)).error, Some(RowError::NotANumber), "{bad} at {at}");
                let forced = SampleRow { forced: Some(1), ..row(&sampling) };
                assert_eq!(one(&logits, &forced).error, Some(RowError::NotANumber));
            }
        }
    }
    assert_eq!(one(&[f32::NEG_INFINITY; 4], &row(&Sampling::default())).error, Some(RowError::NotANumber));
}

#[test]
fn a_mask_that_allows_nothing_is_an_error_and_one_that_allows_one_token_decides() {
    let logits: Vec<f32> = (0..70).map(|i| i as f32).collect();
    for temperature in [0.0, 1.0] {
        let sampling = Sampling { temperature, top_p: 0.9, ..Sampling::default() };
        let masked = |mask: &[u32]| one(&logits, &SampleRow { mask: Some(mask), ..row(&sampling) });
        assert_eq!(masked(&[0, 0, 0]).error, Some(RowError::NothingAllowed));
        assert_eq!(masked(&[0, 1 << 3, 0]).token, 35);
        assert_eq!(masked(&[1]).token, 0, "tokens past the end of the mask are not allowed");
    }
}

#[test]
fn penalties_count_the_prompt_once_and_the_output_by_occurrence() {
    let logits = [1.0f32, 1.0, 1.0, 0.9];
    let greedy =
        |sampling: Sampling, seen: &[(u32, u32)]| one(&logits, &SampleRow { seen, ..row(&sampling) }).token;
    let repetition = Sampling { repetition_penalty: 1.5, ..Sampling::default() };
    assert_eq!(greedy(repetition, &[(0, 0), (1, 2)]), 2);
    let presence = Sampling { presence_penalty: 0.5, ..Sampling::default() };
    assert_eq!(greedy(presence, &[(0, 0), (1, 2)]), 0, "the prompt alone is no presence");
    let frequency = Sampling { frequency_penalty: 0.05, ..Sampling::default() };
    assert_eq!(greedy(frequency.clone(), &[(0, 1), (1, 1), (2, 1)]), 0);
    assert_eq!(greedy(frequency, &[(0, 3), (1, 4), (2, 3)]), 3);
}
