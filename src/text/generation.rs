//! From the engine's events to text (step 10 in the life of a request): one stream for all choices of a prompt.
//!
//! Each choice has its own detokenizer and its own stop strings. A choice that reaches a stop string is cancelled in the
//! engine at once. Dropping the generation drops the engine's stream, and with it the sequences.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;

use super::Text;
use super::detokenize::Detokenizer;
use super::stop::{Scan, Stops};
use crate::engine::handle::Tokens;
use crate::engine::request::{Event, Finish, Logprobs};
use crate::log::prompts::{PROMPTS, Recording};

/// How text is made of tokens.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    pub stops: Arc<[String]>,
    /// Leaves the stop string, or the stop token's text, in the answer.
    pub include_stop: bool,
    pub skip_special: bool,
    /// Tokens that end a choice; their text is not part of the answer.
    pub stop_tokens: Arc<[u32]>,
    /// Stop strings are not looked for in this many first tokens.
    pub min_tokens: u32,
}

/// A token of the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    pub token: u32,
    pub logprobs: Option<Logprobs>,
}

/// Why a choice ended, in the user's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A stop string, or a stop token.
    Stop,
    Length,
}

/// What comes out.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    Prompt {
        cached: u32,
        logprobs: Vec<Option<Logprobs>>,
    },
    /// A token, and the text that is settled with it (which may be empty, or belong to earlier tokens).
    Piece {
        choice: u32,
        text: String,
        drawn: Drawn,
    },
    /// The end of a choice with the text that was still held back.
    Finished {
        choice: u32,
        text: String,
        end: End,
    },
    Failed {
        error: String,
    },
}

struct Choice {
    detokenizer: Detokenizer,
    stops: Stops,
    tokens: u32,
    done: bool,
}

pub struct Generation {
    text: Arc<Text>,
    tokens: Tokens,
    shape: Shape,
    stop_tokens: HashSet<u32>,
    choices: Vec<Choice>,
    /// An end that follows the piece handed out last.
    next: Option<Output>,
    /// For the log, while prompts are asked for there.
    recording: Option<Recording>,
}

impl Generation {
    pub fn new(text: Arc<Text>, tokens: Tokens, prompt: &[u32], choices: u32, shape: Shape) -> Self {
        let detokenizer = Detokenizer::after(&text.tokenizer, prompt, shape.skip_special);
        let choices = (0..choices.max(1))
            .map(|_| Choice {
                detokenizer: detokenizer.clone(),
                stops: Stops::new(shape.stops.clone(), shape.include_stop),
                tokens: 0,
                done: false,
            })
            .collect();
        let stop_tokens = shape.stop_tokens.iter().copied().collect();
        Self { text, tokens, shape, stop_tokens, choices, next: None, recording: None }
    }

    /// Tells the log, if prompts are asked for there just now.
    pub fn recorded(mut self, id: &str, model: &str, prompt: &[u32]) -> Self {
        let tokenizer = &self.text.tokenizer;
        self.recording = PROMPTS.recording(id, model, || tokenizer.decode(prompt, false));
        self
    }

    fn token(&mut self, choice: u32, token: u32, logprobs: Option<Logprobs>) -> Option<Output> {
        let state = &mut self.choices[choice as usize];
        if state.done {
            return None;
        }
        state.tokens += 1;
        let mut piece = String::new();
        if self.shape.include_stop || !self.stop_tokens.contains(&token) {
            state.detokenizer.push(&self.text.tokenizer, token, &mut piece);
        }
        let scan = match state.tokens < self.shape.min_tokens {
            true => Scan::Text(piece),
            false => state.stops.push(&piece),
        };
        let text = match scan {
            Scan::Text(text) => text,
            Scan::Stopped { text, .. } => {
                state.done = true;
                self.tokens.cancel(choice);
                self.next = Some(Output::Finished { choice, text: String::new(), end: End::Stop });
                text
            }
        };
        Some(Output::Piece { choice, text, drawn: Drawn { token, logprobs } })
    }

    fn finish(&mut self, choice: u32, reason: Finish) -> Option<Output> {
        let state = &mut self.choices[choice as usize];
        if std::mem::replace(&mut state.done, true) {
            return None;
        }
        let mut rest = String::new();
        state.detokenizer.finish(&self.text.tokenizer, &mut rest);
        let (text, end) = match state.stops.push(&rest) {
            Scan::Text(text) => {
                let end = match reason {
                    Finish::Stop => End::Stop,
                    Finish::Length => End::Length,
                };
                (text + &state.stops.finish(), end)
            }
            Scan::Stopped { text, .. } => (text, End::Stop),
        };
        Some(Output::Finished { choice, text, end })
    }

    fn take(&mut self, event: Event) -> Option<Output> {
        match event {
            Event::Prompt { cached, logprobs } => Some(Output::Prompt { cached, logprobs }),
            Event::Token { choice, token, logprobs } => self.token(choice, token, logprobs),
            Event::Finished { choice, reason } => self.finish(choice, reason),
            Event::Failed { error } => Some(Output::Failed { error }),
        }
    }
}

impl Stream for Generation {
    type Item = Output;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Output>> {
        let this = &mut *self;
        loop {
            if let Some(output) = this.next.take() {
                return Poll::Ready(Some(output));
            }
            if this.choices.iter().all(|c| c.done) {
                return Poll::Ready(None);
            }
            match Pin::new(&mut this.tokens).poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(event)) => {
                    if let Some(output) = this.take(event) {
                        if let (Some(recording), Output::Piece { text, .. } | Output::Finished { text, .. }) =
                            (&mut this.recording, &output)
                        {
                            recording.add(text);
                        }
                        return Poll::Ready(Some(output));
                    }
                }
            }
        }
    }
}
