//! Sampling: from a row of logits to a token, by a counter-based generator.
//!
//! The draw depends on `(seed, choice, position)` and on the row's logits alone, so a sequence gives the same tokens
//! alone, in a batch, and after it was preempted.

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

/// What came of a row. Log probabilities are of the distribution before temperature, filters and penalties.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    pub token: u32,
    /// `None` unless asked for.
    pub logprob: Option<f32>,
    /// The most probable tokens, best first, at most as many as asked for.
    pub top: Vec<(u32, f32)>,
}
