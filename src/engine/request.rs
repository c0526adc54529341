//! What is asked of the engine and what comes back.

use std::sync::Arc;
use std::time::Duration;

pub use hearth_kernels::sample::Sampling;

/// A source of token masks, advanced by each token of one choice. A grammar, for one.
pub trait Mask: Send {
    /// Writes which tokens may come next: one bit per token, `allowed.len() == vocab.div_ceil(32)`.
    fn fill(&mut self, allowed: &mut [u32]) -> Result<(), String>;

    /// Takes the token that was drawn.
    fn accept(&mut self, token: u32) -> Result<(), String>;

    /// A fresh copy in the current state, for another choice of the same request.
    fn fork(&self) -> Box<dyn Mask>;
}

/// A request in tokens, already checked against the field limits of its dialect.
pub struct Request {
    /// Correlation id, in every log line.
    pub id: Arc<str>,
    pub prompt: Arc<[u32]>,
    /// How many independent continuations.
    pub choices: u32,
    pub sampling: Sampling,
    /// Tokens per choice at most. `u32::MAX`: as many as the context holds; 0: only the prompt is computed, and only
    /// if its log probabilities are asked for.
    pub max_tokens: u32,
    /// Tokens that end a choice; they are reported as the last token. The model's own end tokens are the caller's to
    /// list here, unless the end of text is to be ignored.
    pub stop_tokens: Arc<[u32]>,
    /// Stop tokens cannot be drawn before this many tokens.
    pub min_tokens: u32,
    /// Log probabilities of the prompt's own tokens, with this many alternatives.
    pub prompt_logprobs: Option<u8>,
    pub mask: Option<Box<dyn Mask>>,
    /// Who may share cached prefixes with this request: equal salts share.
    pub salt: u64,
    /// Fails what has not ended this long after it was submitted.
    pub deadline: Option<Duration>,
    /// Refuses what would not begin this long after it is submitted; what has begun may take its time.
    pub begin: Option<Duration>,
}

impl Request {
    /// One greedy continuation of a prompt to the end of the context, and nothing else asked for.
    pub fn new(prompt: impl Into<Arc<[u32]>>) -> Self {
        Self {
            id: "".into(),
            prompt: prompt.into(),
            choices: 1,
            sampling: Sampling::default(),
            max_tokens: u32::MAX,
            stop_tokens: Arc::default(),
            min_tokens: 0,
            prompt_logprobs: None,
            mask: None,
            salt: 0,
            deadline: None,
            begin: None,
        }
    }
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was drawn.
    Stop,
    /// `max_tokens`, or the model's context, was reached.
    Length,
}

/// Log probabilities of one token.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    pub logprob: f32,
    /// The most probable tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// What the stream of a request yields. A stream ends exactly once: after every choice finished or was cancelled, or
/// after `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The prompt is computed. `cached` of its tokens came from the prefix cache. One entry per prompt token if
    /// asked for, the first of them `None`.
    Prompt {
        cached: u32,
        logprobs: Vec<Option<Logprobs>>,
    },
    Token {
        choice: u32,
        token: u32,
        logprobs: Option<Logprobs>,
    },
    Finished {
        choice: u32,
        reason: Finish,
    },
    /// The step failed, the engine is stopping, the deadline passed, or the reader was too slow. The text is for the
    /// user.
    Failed {
        error: String,
    },
}

/// Why a request was not taken. Nothing of it remains in the engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "the queue is full: {queued} requests with {queued_tokens} prompt tokens wait; retry in {retry_after} s"
    )]
    Full { queued: u32, queued_tokens: u64, retry_after: u32 },
    #[error(
        "the prompt has {prompt} tokens and {max_tokens} more are asked for; the model's context is {context} tokens"
    )]
    TooLong { prompt: u32, max_tokens: u32, context: u32 },
    #[error(
        "the prompt has {prompt} tokens and {max_tokens} more are asked for; the memory given to this model's cache \
         holds {cache} tokens"
    )]
    TooBig { prompt: u32, max_tokens: u32, cache: u32 },
    #[error("there is no token {token}: the model's vocabulary ends at {}", vocab - 1)]
    UnknownToken { token: u32, vocab: u32 },
    #[error("the prompt is empty: at least one token is needed")]
    Empty,
    /// It would not even begin in the time that its caller waits.
    #[error(
        "about {wait} s of work wait and the caller waits {deadline} s at most: not begun; retry when fewer requests run"
    )]
    Late { wait: u32, deadline: u32 },
    #[error("the engine is stopping")]
    Stopping,
}
