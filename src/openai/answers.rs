//! The answers of one request while they are made: every choice of every prompt in one stream, with its index and the
//! count of tokens. Dropping it cancels all of them.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::stream::{SelectAll, StreamExt};
use futures::{Stream, stream};
use serde::Serialize;
use serde_json::{Value, json};

use super::asked::Asked;
use super::error::ApiError;
use crate::engine::request::Logprobs;
use crate::served::Served;
use crate::text::Text;
use crate::text::generation::{Generation, Output, Shape};

/// Tokens of a request, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt: u64,
    pub completion: u64,
    pub cached: u64,
}

impl Usage {
    pub fn object(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

type Tagged = Pin<Box<dyn Stream<Item = (u32, Output)> + Send>>;

pub struct Answers {
    streams: SelectAll<Tagged>,
    pub usage: Usage,
}

/// One prompt of a request.
pub struct Prompt {
    pub tokens: Arc<[u32]>,
    pub max_tokens: u32,
    /// Report the log probabilities of the prompt's own tokens, with so many alternatives.
    pub logprobs: Option<u8>,
}

impl Answers {
    /// Submits every prompt, or none: what was taken before a refusal is cancelled. The first choice of prompt `p` has
    /// index `p * n`. `name` is the field that holds the prompt, for messages.
    pub fn submit(
        model: &Served,
        asked: &Asked,
        shape: &Shape,
        id: &Arc<str>,
        prompts: Vec<Prompt>,
        name: &str,
    ) -> Result<Self, ApiError> {
        let mut streams = SelectAll::new();
        let mut usage = Usage::default();
        let several = prompts.len() > 1;
        for (i, prompt) in prompts.into_iter().enumerate() {
            let mut request = asked.request(id, prompt.tokens.clone(), shape, prompt.max_tokens);
            request.prompt_logprobs = prompt.logprobs;
            let tokens = model.engine.submit(request).map_err(|e| match several {
                true => ApiError::refused(e, &format!("{name}[{i}]"), "max_tokens"),
                false => ApiError::refused(e, name, "max_tokens"),
            })?;
            usage.prompt += prompt.tokens.len() as u64;
            let text = model.text.clone();
            let generation = Generation::new(text, tokens, &prompt.tokens, asked.choices, shape.clone());
            let base = i as u32 * asked.choices;
            let tagged: Tagged = Box::pin(generation.map(move |output| (base + choice(&output), output)));
            streams.push(tagged);
        }
        Ok(Self { streams, usage })
    }

    /// The next output and the index of its choice. `Prompt` comes with the index of the prompt's first choice.
    pub async fn next(&mut self) -> Option<(u32, Output)> {
        let next = self.streams.next().await;
        match &next {
            Some((_, Output::Prompt { cached, .. })) => self.usage.cached += u64::from(*cached),
            Some((_, Output::Piece { .. })) => self.usage.completion += 1,
            _ => {}
        }
        next
    }

    /// As a stream of what `say` makes of each output, until a failure or the end; `last` has the last word.
    pub fn speak<S: Send + 'static>(
        self,
        state: S,
        say: impl Fn(&mut S, u32, Output) -> Vec<String> + Send + 'static,
        last: impl Fn(&mut S, &Usage) -> Vec<String> + Send + 'static,
    ) -> impl Stream<Item = String> + Send {
        let begin = (Some(self), state, say, last);
        stream::unfold(begin, |(answers, mut state, say, last)| async move {
            let mut answers = answers?;
            let (lines, rest) = match answers.next().await {
                Some((_, Output::Failed { error })) => {
                    (vec![ApiError::failed(error).object().to_string()], None)
                }
                Some((index, output)) => (say(&mut state, index, output), Some(answers)),
                None => {
                    let mut lines = last(&mut state, &answers.usage);
                    lines.push("[DONE]".to_owned());
                    (lines, None)
                }
            };
            Some((stream::iter(lines), (rest, state, say, last)))
        })
        .flatten()
    }
}

fn choice(output: &Output) -> u32 {
    match output {
        Output::Piece { choice, .. } | Output::Finished { choice, .. } => *choice,
        Output::Prompt { .. } | Output::Failed { .. } => 0,
    }
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A token as log probabilities name it, and its bytes where they are no text of their own.
pub fn token_text(text: &Text, token: u32) -> String {
    let bytes = text.tokenizer.bytes(token);
    match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => e.as_bytes().iter().map(|b| format!("\\x{b:02x}")).collect::<String>(),
    }
}

/// The log probabilities of a completion: four lists, one entry a token.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LogprobLists {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<serde_json::Map<String, Value>>>,
    /// In characters, from the beginning of the choice's text.
    text_offset: Vec<usize>,
}

impl LogprobLists {
    /// `offset` is where the token's text begins; it is moved to where the next one does.
    pub fn push(&mut self, text: &Text, token: u32, logprobs: Option<&Logprobs>, offset: &mut usize) {
        let name = token_text(text, token);
        self.text_offset.push(*offset);
        *offset += match text.tokenizer.is_control(token) {
            true => 0,
            false => name.chars().count(),
        };
        self.token_logprobs.push(logprobs.map(|l| finite(l.logprob)));
        self.top_logprobs.push(logprobs.map(|l| {
            let best = l.top.iter().map(|(id, p)| (token_text(text, *id), json!(finite(*p))));
            best.chain([(name.clone(), json!(finite(l.logprob)))]).collect()
        }));
        self.tokens.push(name);
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// A token of a chat answer with its log probability.
pub fn chat_logprob(text: &Text, token: u32, logprobs: &Logprobs) -> Value {
    let named = |token: u32, logprob: f32| {
        json!({
            "token": token_text(text, token),
            "logprob": finite(logprob),
            "bytes": text.tokenizer.bytes(token),
        })
    };
    let mut entry = named(token, logprobs.logprob);
    entry["top_logprobs"] = logprobs.top.iter().map(|(id, p)| named(*id, *p)).collect();
    entry
}

/// JSON has no infinity; a masked token's log probability is the lowest one that clients expect.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}
