//! What a dialect wants written, in text, and the answer as it comes (between steps 3 and 4 in the life of a request).
//!
//! The gateway speaks in these terms to whatever serves a model: the engine in this process, or a listed upstream.
//! Dropping an [`Answer`] ends the work behind it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use futures::{Stream, StreamExt};

pub use crate::text::chat::Message;
pub use crate::text::generation::End;

/// One text to be written.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Correlation id, in every log line down to the engine's.
    pub id: Arc<str>,
    pub input: Input,
    /// Tokens at most; less where the model's context leaves less.
    pub max_tokens: u32,
    pub temperature: f32,
    pub top_p: f32,
    pub stops: Vec<String>,
    /// The form of the answer, as a grammar in llguidance's notation.
    pub grammar: Option<Arc<str>>,
    /// How long the caller waits. What cannot begin by then is refused, and what has not ended by then fails.
    pub patience: Option<Duration>,
    /// For how long the caller waits for the beginning of an answer that then takes its time. What waits longer in the
    /// queue of a model of this process is refused at once.
    pub begin: Option<Duration>,
}

impl Ask {
    /// Greedy, with no other condition.
    pub fn new(id: Arc<str>, input: Input, max_tokens: u32) -> Self {
        Self {
            id,
            input,
            max_tokens,
            temperature: 0.0,
            top_p: 1.0,
            stops: Vec::new(),
            grammar: None,
            patience: None,
            begin: None,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Input {
    /// The text between the two, in the family's own fill-in-the-middle tokens and no chat template.
    Fill { prefix: String, suffix: String },
    /// The assistant's next message. It begins with `begun`, which is not part of the answer.
    Chat { messages: Vec<Message>, begun: String },
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    Text(String),
    /// The last one.
    End {
        end: End,
        usage: Usage,
    },
}

/// Tokens of a request and of its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub input: u32,
    pub output: u32,
}

/// Why there is no answer, or no more of it. The text names what was asked, the limit and the next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("{message}")]
    Busy { message: String, retry_after: u32 },
    /// The work would end, or has not ended, in the time that the caller waits.
    #[error("{0}")]
    Late(String),
    #[error("{0}")]
    TooLong(String),
    /// The model cannot do this at all.
    #[error("{0}")]
    Unable(String),
    #[error("{0}")]
    Stopping(String),
    /// The step failed, or its reader was too slow.
    #[error("{0}")]
    Lost(String),
    /// No such model is served here; the text names those that are.
    #[error("{0}")]
    Unknown(String),
    /// An upstream answered with this status, or with 502 could not be reached or broke off.
    #[error("{message}")]
    Upstream { status: StatusCode, message: String },
}

impl Failure {
    /// The status that a model server would have given.
    pub fn status(&self) -> StatusCode {
        match self {
            Failure::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Failure::Late(_) => StatusCode::GATEWAY_TIMEOUT,
            Failure::Unknown(_) => StatusCode::NOT_FOUND,
            Failure::TooLong(_) | Failure::Unable(_) => StatusCode::BAD_REQUEST,
            Failure::Stopping(_) => StatusCode::SERVICE_UNAVAILABLE,
            Failure::Lost(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Failure::Upstream { status, .. } => *status,
        }
    }
}

type Pieces = Pin<Box<dyn Stream<Item = Result<Piece, Failure>> + Send>>;

/// An answer in the making: pieces of text, then [`Piece::End`] or a failure, then nothing.
pub struct Answer {
    pieces: Pieces,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Whole {
    pub text: String,
    pub end: End,
    pub usage: Usage,
}

impl Answer {
    pub fn new(pieces: impl Stream<Item = Result<Piece, Failure>> + Send + 'static) -> Self {
        Self { pieces: Box::pin(pieces) }
    }

    pub async fn next(&mut self) -> Option<Result<Piece, Failure>> {
        self.pieces.next().await
    }

    /// All of it.
    pub async fn whole(mut self) -> Result<Whole, Failure> {
        let mut text = String::new();
        while let Some(piece) = self.next().await {
            match piece? {
                Piece::Text(piece) => text += &piece,
                Piece::End { end, usage } => return Ok(Whole { text, end, usage }),
            }
        }
        Err(Failure::Lost("the answer broke off".to_owned()))
    }
}

impl Stream for Answer {
    type Item = Result<Piece, Failure>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.pieces.as_mut().poll_next(context)
    }
}
