//! The answers of one request while they are made: every choice of every prompt in one stream, with its index and the
//! count of tokens. Dropping it cancels all of them.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::stream::{SelectAll, StreamExt};
use futures::{Stream, stream};
use serde::Serialize;
use serde_json::{Value, json};

use super::asked::{Asked, Counts};
use super::error::ApiError;
use crate::access::Meter;
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

    /// What a chunk says of it that is not the last; `None`: nothing at all.
    pub fn within(&self, counts: Counts) -> Option<Value> {
        match counts {
            Counts::Nowhere => None,
            Counts::AtTheEnd => Some(Value::Null),
            Counts::Always => Some(self.object()),
        }
    }
}

type Tagged = Pin<Box<dyn Stream<Item = (u32, Output)> + Send>>;

pub struct Answers {
    streams: SelectAll<Tagged>,
    pub usage: Usage,
    /// Whoever asked pays for what was computed, also of an answer that nobody reads to its end.
    meter: Meter,
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
        meter: &Meter,
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
            let generation = Generation::new(text, tokens, &prompt.tokens, asked.choices, shape.clone())
                .recorded(id, &model.name, &prompt.tokens);
            let base = i as u32 * asked.choices;
            let tagged: Tagged = Box::pin(generation.map(move |output| (base + choice(&output), output)));
            streams.push(tagged);
        }
        meter.tokens(usage.prompt);
        Ok(Self { streams, usage, meter: meter.clone() })
    }

    /// The next output and the index of its choice. `Prompt` comes with the index of the prompt's first choice.
    pub async fn next(&mut self) -> Option<(u32, Output)> {
        let next = self.streams.next().await;
        match &next {
            Some((_, Output::Prompt { cached, .. })) => self.usage.cached += u64::from(*cached),
            Some((_, Output::Piece { .. })) => {
                self.usage.completion += 1;
                self.meter.tokens(1);
            }
            _ => {}
        }
        next
    }

    /// As a stream of what `say` makes of each output and of the tokens until then, until a failure or the end; `last`
    /// has the last word.
    pub fn speak<S: Send + 'static>(
        self,
        state: S,
        say: impl Fn(&mut S, u32, Output, &Usage) -> Vec<String> + Send + 'static,
        last: impl Fn(&mut S, &Usage) -> Vec<String> + Send + 'static,
    ) -> impl Stream<Item = String> + Send {
        let begin = (Some(self), state, say, last);
        stream::unfold(begin, |(answers, mut state, say, last)| async move {
            let mut answers = answers?;
            let (lines, rest) = match answers.next().await {
                Some((_, Output::Failed { error })) => {
                    (vec![ApiError::failed(error).object().to_string()], None)
                }
                Some((index, output)) => {
                    let lines = say(&mut state, index, output, &answers.usage);
                    (lines, Some(answers))
                }
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
    /// `place` is where the token's text begins; it is moved to where the next one does.
    pub fn push(&mut self, text: &Text, token: u32, logprobs: Option<&Logprobs>, place: &mut Place) {
        let name = token_text(text, token);
        self.text_offset.push(place.characters);
        if !text.tokenizer.is_control(token) {
            place.pass(&text.tokenizer.bytes(token));
        }
        self.token_logprobs.push(logprobs.map(|l| finite(l.logprob)));
        self.top_logprobs.push(logprobs.map(|l| {
            let best = l.top.iter().map(|(id, p)| (token_text(text, *id), json!(finite(*p))));
            best.chain([(name.clone(), json!(finite(l.logprob)))]).collect()
        }));
        self.tokens.push(name);
    }

    /// Moves every token towards the beginning: a text that began with a blank of its first token is shown without it.
    pub fn shift(&mut self, characters: usize) {
        for offset in &mut self.text_offset {
            *offset = offset.saturating_sub(characters);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// A place in a text that arrives token by token, where a token may be a part of a character.
#[derive(Clone, Debug, Default)]
pub struct Place {
    pub characters: usize,
    /// The first bytes of the character that is under way.
    begun: Vec<u8>,
}

impl Place {
    pub fn after(text: &str) -> Self {
        Self { characters: text.chars().count(), begun: Vec::new() }
    }

    pub fn pass(&mut self, bytes: &[u8]) {
        self.begun.extend_from_slice(bytes);
        let mut read = 0;
        for chunk in self.begun.utf8_chunks() {
            self.characters += chunk.valid().chars().count();
            read += chunk.valid().len() + chunk.invalid().len();
            // At the end the beginning of a character that may go on; elsewhere shown as a replacement character.
            match std::str::from_utf8(chunk.invalid()) {
                Ok(_) => {}
                Err(e) if e.error_len().is_none() && read == self.begun.len() => {
                    read -= chunk.invalid().len()
                }
                Err(_) => self.characters += 1,
            }
        }
        self.begun.drain(..read);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_counted_once_however_their_bytes_are_cut() {
        for text in ["a日本 😀é\n", "", "plain"] {
            for size in 1..5 {
                let mut place = Place::default();
                for piece in text.as_bytes().chunks(size) {
                    place.pass(piece);
                }
                assert_eq!(place.characters, text.chars().count(), "{text:?} in pieces of {size}");
            }
        }
        let mut place = Place::after("日本");
        for (bytes, then) in [(&b"\xf0"[..], 2), (b"\x9f\x98", 2), (b"\x80x", 4), (b"\xff", 5), (b"\xe6a", 7)]
        {
            place.pass(bytes);
            assert_eq!(place.characters, then, "{bytes:?}");
        }
    }
}
