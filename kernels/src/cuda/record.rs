//! A row to sample as a device reads it, and what it answers: flat words, so that a step's rows go there and come back
//! in one copy. `cuda/sample.cu` has the same layout.

use crate::sample::{RowError, SampleRow, Sampled, changes, floor, share};

/// Words of a row.
pub const RECORD: usize = 24;
/// Words of an answer.
pub const OUTCOME: usize = 4;
/// Alternatives that a row may ask for.
pub const ALTERNATIVES: usize = 20;
/// Tokens that a row of logits may have: their weights add up in 63 bits.
pub const MAX_VOCABULARY: usize = 1 << 20;

const FORCED: u32 = 1;
const CHANGED: u32 = 2;
const MASKED: u32 = 4;
const REPORTED: u32 = 8;

/// Writes a row down. What is as long as the row wants (biases, tokens seen, mask) is appended to `lists`, which are
/// those of all rows of the step. Panics when more than [`ALTERNATIVES`] are asked for.
pub fn record(row: &SampleRow<'_>, lists: &mut Vec<u32>) -> [u32; RECORD] {
    let sampling = row.sampling;
    let alternatives = usize::from(sampling.logprobs.unwrap_or(0));
    assert!(alternatives <= ALTERNATIVES, "bug: {alternatives} alternatives were asked for");
    let flag = |on: bool, flag: u32| if on { flag } else { 0 };
    let flags = flag(row.forced.is_some(), FORCED)
        | flag(changes(row), CHANGED)
        | flag(row.mask.is_some(), MASKED)
        | flag(sampling.logprobs.is_some(), REPORTED);
    let mut list = |words: &mut dyn Iterator<Item = u32>, each: usize| {
        let start = lists.len();
        lists.extend(words);
        [start, (lists.len() - start) / each].map(|n| u32::try_from(n).expect("bug: lists of 2^32 words"))
    };
    let [bias, biases] = list(&mut sampling.logit_bias.iter().flat_map(|(t, b)| [*t, b.to_bits()]), 2);
    let [seen, seens] = list(&mut row.seen.iter().flat_map(|(token, count)| [*token, *count]), 2);
    let [mask, masks] = list(&mut row.mask.unwrap_or(&[]).iter().copied(), 1);
    let halves = |n: u64| [n as u32, (n >> 32) as u32];
    let (seed, floor) = (halves(sampling.seed), halves(floor(sampling)));
    let share = halves(share(sampling).to_bits());
    [
        seed[0],
        seed[1],
        floor[0],
        floor[1],
        share[0],
        share[1],
        row.row,
        row.choice,
        row.position,
        flags,
        row.forced.unwrap_or(0),
        alternatives as u32,
        sampling.top_k,
        sampling.temperature.to_bits(),
        sampling.repetition_penalty.to_bits(),
        sampling.presence_penalty.to_bits(),
        sampling.frequency_penalty.to_bits(),
        bias,
        biases,
        seen,
        seens,
        mask,
        masks,
        0,
    ]
}

/// Reads an answer: its [`OUTCOME`] words and its `2 * ALTERNATIVES`, of which those are read that were asked for.
pub fn answer(reported: bool, outcome: &[u32], alternatives: &[u32]) -> Sampled {
    let [token, error, logprob, count] = outcome.try_into().expect("bug: an outcome of other than 4 words");
    let error = match error {
        0 => None,
        1 => Some(RowError::NotANumber),
        2 => Some(RowError::NothingAllowed),
        other => panic!("bug: a device answers with error {other}"),
    };
    if error.is_some() {
        return Sampled { error, ..Sampled::default() };
    }
    let logprob = reported.then(|| f32::from_bits(logprob));
    let (pairs, _) = alternatives.as_chunks::<2>();
    let top = pairs[..count as usize].iter().map(|[token, logprob]| (*token, f32::from_bits(*logprob)));
    Sampled { token, error, logprob, top: top.collect() }
}
