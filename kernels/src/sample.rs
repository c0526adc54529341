//! Sampling: from a row of logits to a token, by a counter-based generator.
//!
//! The draw depends on `(seed, choice, position)` and on the row's logits alone, so a sequence gives the same tokens
//! alone, in a batch, and after it was preempted.
//!
//! Order of application, as in vLLM: logit bias; mask; repetition penalty (over prompt and output: a positive logit is
//! divided by it, a negative one multiplied); frequency and presence penalty (over the output); temperature; min-p;
//! top-k; top-p over what top-k left; the draw. Where two tokens are equal the lower id counts as the better one, at
//! the edge of top-k and top-p and for greedy. The draw walks the tokens that are left in the order of their ids.
//!
//! Cost on a row of n logits: two or three passes. Top-k and top-p select by a threshold that rises as the row is read
//! and keep a short list; a nucleus longer than [`SHORT`] is found by weighted quickselect, still without a sort.

use crate::draw::{UNIT, below, random, weight};

/// How tokens are drawn. `Default` is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// In (0, 1]; 1 is off.
    pub top_p: f32,
    /// In [0, 1]; 0 is off.
    pub min_p: f32,
    /// Over prompt and output, multiplicative; 1 is off.
    pub repetition_penalty: f32,
    /// Over the output, additive, once; 0 is off.
    pub presence_penalty: f32,
    /// Over the output, additive, per occurrence; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits before anything else; sorted by token.
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: u64,
    /// How many alternatives to report beside the drawn token's log probability; `None` reports nothing.
    pub logprobs: Option<u8>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

/// One row to sample in a step.
#[derive(Clone, Copy, Debug)]
pub struct SampleRow<'a> {
    /// Index among the rows of logits of the step.
    pub row: u32,
    pub sampling: &'a Sampling,
    /// Which of the request's `n` choices this is.
    pub choice: u32,
    /// Position of the token that is drawn.
    pub position: u32,
    /// Distinct tokens of prompt and output, each with its count in the output (0 if only in the prompt). Empty when
    /// no penalty is on.
    pub seen: &'a [(u32, u32)],
    /// One bit per token, set where the token is allowed; `None` allows all.
    pub mask: Option<&'a [u32]>,
    /// `Some(token)`: do not draw, report this token's log probability (prompt tokens, forced tokens).
    pub forced: Option<u32>,
}

/// Why a row could not be drawn from. It concerns that row alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    #[error("the model's output is not a number: its weights or its cache are damaged")]
    NotANumber,
    #[error("no token may come next: the mask or the biases rule out every one")]
    NothingAllowed,
}

/// What came of a row. Log probabilities are of the distribution before temperature, filters and penalties.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// Meaningless where there is an error.
    pub token: u32,
    pub error: Option<RowError>,
    /// `None` unless asked for.
    pub logprob: Option<f32>,
    /// The most probable tokens, best first, at most as many as asked for.
    pub top: Vec<(u32, f32)>,
}

/// Nuclei up to this many tokens are cut from a sorted list.
const SHORT: usize = 256;

/// Memory of the sampler, kept between rows.
#[derive(Default)]
pub struct Scratch {
    /// The row after bias, mask and penalties.
    changed: Vec<f32>,
    /// Candidates: logit and token.
    best: Vec<(f32, u32)>,
}

/// Draws from one row of logits, or reports the forced token. Allocates only for the alternatives that are asked for.
pub fn sample(logits: &[f32], row: &SampleRow<'_>, scratch: &mut Scratch) -> Sampled {
    match draw(logits, row, scratch) {
        Ok(sampled) => sampled,
        Err(error) => Sampled { error: Some(error), ..Sampled::default() },
    }
}

fn draw(logits: &[f32], row: &SampleRow<'_>, scratch: &mut Scratch) -> Result<Sampled, RowError> {
    let best = highest(logits)?;
    if best == f32::NEG_INFINITY {
        return Err(RowError::NotANumber);
    }
    let token = match row.forced {
        Some(token) => token,
        None => choose(logits, best, row, scratch)?,
    };
    let mut sampled = Sampled { token, ..Sampled::default() };
    if let Some(alternatives) = row.sampling.logprobs {
        let total: u64 = logits.iter().map(|logit| weight(f64::from(*logit) - f64::from(best))).sum();
        let log_total = (total as f64 / UNIT as f64).ln();
        let logprob = |logit: f32| (f64::from(logit) - f64::from(best) - log_total) as f32;
        sampled.logprob = Some(logits.get(token as usize).map_or(f32::NEG_INFINITY, |logit| logprob(*logit)));
        top(logits, alternatives.into(), &mut scratch.best);
        sampled.top = scratch.best.iter().map(|(logit, token)| (*token, logprob(*logit))).collect();
    }
    Ok(sampled)
}

/// The highest logit. NaN and +inf are refused.
fn highest(logits: &[f32]) -> Result<f32, RowError> {
    let (mut best, mut sound) = ([f32::NEG_INFINITY; 16], [true; 16]);
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            best[i] = if chunk[i] > best[i] { chunk[i] } else { best[i] };
            sound[i] &= chunk[i] < f32::INFINITY;
        }
    }
    let sound = sound.iter().all(|s| *s) && rest.iter().all(|logit| *logit < f32::INFINITY);
    let best = best.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    if sound { Ok(best) } else { Err(RowError::NotANumber) }
}

fn choose(logits: &[f32], best: f32, row: &SampleRow<'_>, scratch: &mut Scratch) -> Result<u32, RowError> {
    let sampling = row.sampling;
    let Scratch { changed, best: candidates } = scratch;
    let (logits, best) = if changes(row) {
        changed.clear();
        changed.extend_from_slice(logits);
        change(changed, row);
        (&changed[..], highest(changed)?)
    } else {
        (logits, best)
    };
    if best == f32::NEG_INFINITY {
        return Err(RowError::NothingAllowed);
    }
    if sampling.temperature <= 0.0 {
        let first = logits.iter().position(|logit| *logit == best);
        return Ok(first.expect("bug: the highest logit is not in its row") as u32);
    }
    let temperature = f64::from(sampling.temperature);
    let weigh = |logit: f32| weight((f64::from(logit) - f64::from(best)) / temperature);
    let kept = filter(logits, sampling, weigh, candidates);
    let mut left = below(random(sampling.seed, row.choice, row.position), kept.total);
    for (token, logit) in logits.iter().enumerate() {
        if !kept.keeps(*logit, token as u32) {
            continue;
        }
        let weight = weigh(*logit);
        if weight < kept.floor {
            continue;
        }
        if left < weight {
            return Ok(token as u32);
        }
        left -= weight;
    }
    unreachable!("bug: the weights of a row do not add up to their total");
}

pub(crate) fn changes(row: &SampleRow<'_>) -> bool {
    !row.sampling.logit_bias.is_empty() || row.mask.is_some() || !row.seen.is_empty()
}

fn change(logits: &mut [f32], row: &SampleRow<'_>) {
    let sampling = row.sampling;
    for (token, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit += bias;
        }
    }
    if let Some(mask) = row.mask {
        for (word, logits) in mask.iter().zip(logits.chunks_mut(32)) {
            if *word != u32::MAX {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
        // A row may be longer than the mask where the head is padded; nothing speaks for those tokens.
        let covered = (32 * mask.len()).min(logits.len());
        logits[covered..].fill(f32::NEG_INFINITY);
    }
    for (token, count) in row.seen {
        let Some(logit) = logits.get_mut(*token as usize) else { continue };
        let repetition = sampling.repetition_penalty;
        *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        if *count > 0 {
            *logit -= sampling.frequency_penalty * *count as f32 + sampling.presence_penalty;
        }
    }
}

/// Which tokens are left: those at least as good as `(logit, token)` that weigh at least `floor`, `total` together.
struct Kept {
    logit: f32,
    token: u32,
    floor: u64,
    total: u64,
}

impl Kept {
    fn keeps(&self, logit: f32, token: u32) -> bool {
        logit > self.logit || (logit == self.logit && token <= self.token)
    }
}

fn filter(
    logits: &[f32],
    sampling: &Sampling,
    weigh: impl Fn(f32) -> u64,
    candidates: &mut Vec<(f32, u32)>,
) -> Kept {
    let floor = floor(sampling);
    let weigh = |logit: f32| Some(weigh(logit)).filter(|weight| *weight >= floor).unwrap_or(0);
    let k = sampling.top_k as usize;
    let (by_count, by_mass) = (k > 0 && k < logits.len(), sampling.top_p < 1.0);
    let all = || logits.iter().map(|logit| weigh(*logit)).sum::<u64>();
    if !by_count && !by_mass {
        return Kept { logit: f32::NEG_INFINITY, token: u32::MAX, floor, total: all() };
    }
    top(logits, if by_count { k } else { SHORT }, candidates);
    let mass = if by_count { candidates.iter().map(|(logit, _)| weigh(*logit)).sum() } else { all() };
    let wanted = if by_mass { ((mass as f64 * share(sampling)).ceil() as u64).clamp(1, mass) } else { mass };
    let mut total = 0;
    for (logit, token) in &*candidates {
        total += weigh(*logit);
        if total >= wanted {
            return Kept { logit: *logit, token: *token, floor, total };
        }
    }
    candidates.clear();
    candidates.extend(
        (0..).zip(logits).filter(|(_, logit)| weigh(**logit) > 0).map(|(token, logit)| (*logit, token)),
    );
    let (logit, token, total) = nucleus(candidates, wanted, weigh);
    Kept { logit, token, floor, total }
}

/// What a token has to weigh at least.
pub(crate) fn floor(sampling: &Sampling) -> u64 {
    ((f64::from(sampling.min_p) * UNIT as f64).ceil() as u64).clamp(1, UNIT)
}

/// The share of the weight that top-p wants; 1 is off.
pub(crate) fn share(sampling: &Sampling) -> f64 {
    f64::from(sampling.top_p).clamp(0.0, 1.0)
}

/// Better tokens first. Rows hold no NaN.
fn better(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.partial_cmp(&a.0).unwrap_or(std::cmp::Ordering::Equal).then(a.1.cmp(&b.1))
}

/// The `k` best tokens that are not ruled out, best first.
fn top(logits: &[f32], k: usize, best: &mut Vec<(f32, u32)>) {
    best.clear();
    if k == 0 {
        return;
    }
    let mut threshold = f32::NEG_INFINITY;
    for (token, logit) in logits.iter().enumerate() {
        // Ids ascend, so a token equal to the k-th best so far is worse than it.
        if *logit > threshold {
            best.push((*logit, token as u32));
            if best.len() == 2 * k {
                threshold = best.select_nth_unstable_by(k - 1, better).1.0;
                best.truncate(k);
            }
        }
    }
    if best.len() > k {
        best.select_nth_unstable_by(k - 1, better);
        best.truncate(k);
    }
    best.sort_unstable_by(better);
}

/// The last token of the shortest run of best tokens that weighs at least `wanted`, and what the run weighs.
fn nucleus(candidates: &mut [(f32, u32)], wanted: u64, weigh: impl Fn(f32) -> u64) -> (f32, u32, u64) {
    let (mut rest, mut before) = (candidates, 0);
    loop {
        let middle = rest.len() / 2;
        let (head, &mut (logit, token), _) = rest.select_nth_unstable_by(middle, better);
        let head: u64 = head.iter().map(|(logit, _)| weigh(*logit)).sum();
        if before + head >= wanted {
            rest = &mut rest[..middle];
        } else if before + head + weigh(logit) >= wanted {
            return (logit, token, before + head + weigh(logit));
        } else {
            before += head + weigh(logit);
            rest = &mut rest[middle + 1..];
        }
    }
}

#[cfg(test)]
#[path = "sample_tests.rs"]
mod tests;
