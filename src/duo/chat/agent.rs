//! `/v2/chat/agent` (steps 3 and 10 in the life of a request): one step of a conversation. GitLab sends everything that
//! was said, and gets events, one JSON object a line.
//!
//! | event | when |
//! |---|---|
//! | `final_answer_delta` | while a final answer grows |
//! | `action` | at the end: GitLab runs the tool and calls again |
//! | `unknown` | at the end: words in no form, which GitLab shows as they are |
//! | `error` | instead of the rest |
//! | `usage` | last, since GitLab 19 |
//!
//! A body of this kind always holds an event, and its last line always has its end.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::react::{React, Step};
use super::{asked, tools, turns};
use crate::duo::Gateway;
use crate::duo::body;
use crate::duo::choice::Feature;
use crate::duo::client::Version;
use crate::duo::error::DuoError;
use crate::duo::identity::Caller;
use crate::duo::prompts::usage;
use crate::duo::stream::{self, NDJSON, ascii};
use crate::served::Model;
use crate::served::ask::{Answer, Ask, End, Failure, Piece, Usage};
use crate::server::RequestId;

/// Since then GitLab reads why an answer ended, and the usage; before, it takes an unknown event for an error.
const REASONS: Version = Version::new(19, 0, 0);
/// After this long without a line an empty one says that the work goes on; GitLab looks for objects only.
const SILENCE: Duration = Duration::from_secs(20);

pub async fn post(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, DuoError> {
    let last = Instant::now() + gateway.patience;
    let gitlab = Version::gitlab(request.headers());
    let body = body::read(request).await?;
    let read = turns::read(&body, &caller)?;
    caller.require(&["duo_classic_chat", "duo_chat"], "Unauthorized to access duo chat")?;
    let tools = tools::available(&caller, gitlab);
    let begun = match read {
        Err(refusal) => Err(Event::error(refusal, false)),
        Ok(conversation) => {
            let begun = timeout_at(last, begin(&gateway, &body, conversation, &tools, id, last)).await;
            let late = |_| Err(Failure::Late("the conversation could not be read in time".to_owned()));
            begun.unwrap_or_else(late).map_err(|f| failed(&f))
        }
    };
    let talk = match begun {
        Err(event) => return Ok(stream::response(NDJSON, futures::stream::iter([Ok(event.line())]))),
        Ok((model, answer)) => Talk {
            react: React::new(model.family()),
            model: model.name().to_owned(),
            answer: Some(answer),
            tools: tools.iter().map(|tool| tool.name).collect(),
            reasons: gitlab >= REASONS,
            held: None,
            silence: SILENCE,
            silent: Instant::now() + SILENCE,
        },
    };
    let lines = futures::stream::unfold(talk, |mut talk| async move {
        let line = talk.next().await?;
        Some((Ok(line), talk))
    });
    if gateway.streaming {
        return Ok(stream::response(NDJSON, lines));
    }
    let all: Vec<Result<Bytes, Failure>> = futures::StreamExt::collect(lines).await;
    let all: Vec<u8> = all.into_iter().flatten().flatten().collect();
    Ok(stream::response(NDJSON, futures::stream::iter([Ok(all.into())])))
}

/// Asks the model. What would begin after `last` is refused: GitLab would be gone.
async fn begin(
    gateway: &Gateway,
    body: &body::Object,
    conversation: turns::Conversation,
    tools: &[&tools::Tool],
    id: RequestId,
    last: Instant,
) -> Result<(Model, Answer), Failure> {
    let model = gateway.choose(body, Feature::Chat)?;
    let names: Vec<&str> = tools.iter().map(|tool| tool.name).collect();
    tracing::info!(
        model = model.name(),
        tools = names.join(","),
        turns = conversation.turns.len(),
        steps = conversation.steps.len(),
        "chat"
    );
    let rendered = asked::rendered(&model, conversation, tools).await;
    let ask: Ask = rendered.map_err(|e| Failure::Unable(e.to_string()))?.ask(id.0);
    let ask = Ask { begin: Some(last - Instant::now()), ..ask };
    let answer = gateway.ask(&model, ask).await?;
    Ok((model, answer))
}

struct Event {
    kind: &'static str,
    data: Value,
}

impl Event {
    fn error(message: &str, retryable: bool) -> Self {
        Self { kind: "error", data: json!({"message": message, "retryable": retryable}) }
    }

    fn line(&self) -> Bytes {
        (ascii(&json!({"type": self.kind, "data": self.data})) + "\n").into()
    }
}

/// GitLab tries again where that may help, and knows a prompt that is too long by these words.
fn failed(failure: &Failure) -> Event {
    tracing::warn!(reason = %failure, "chat failed");
    let retryable = matches!(failure, Failure::Busy { .. } | Failure::Stopping(_))
        || matches!(failure.status().as_u16(), 429 | 502 | 503 | 529);
    match failure {
        Failure::TooLong(reason) => Event::error(&format!("prompt is too long: {reason}"), false),
        failure => Event::error(&failure.to_string(), retryable),
    }
}

/// An answer on its way to GitLab.
struct Talk {
    model: String,
    react: React,
    /// Gone when the last line was made.
    answer: Option<Answer>,
    /// Names of the tools that the model knows of.
    tools: Vec<&'static str>,
    /// Whether the last piece says why it is the last. Then a piece waits until the next one is there.
    reasons: bool,
    held: Option<String>,
    silence: Duration,
    /// When an empty line is due.
    silent: Instant,
}

impl Talk {
    /// The next lines.
    async fn next(&mut self) -> Option<Bytes> {
        // The end of an answer that was said in full has no line of its own.
        let lines = self.lines().await.filter(|lines| !lines.is_empty());
        self.silent = Instant::now() + self.silence;
        lines
    }

    /// The next lines, or an empty one when they take long: a model may think for minutes before its first word counts.
    async fn lines(&mut self) -> Option<Bytes> {
        loop {
            let answer = self.answer.as_mut()?;
            let piece = match timeout_at(self.silent, answer.next()).await {
                Err(_) => return Some(Bytes::from_static(b"\n")),
                Ok(piece) => piece,
            };
            let lost = || Failure::Lost("the answer broke off".to_owned());
            match piece.unwrap_or_else(|| Err(lost())) {
                Ok(Piece::Text(text)) => {
                    if let Some(line) = self.react.push(&text).and_then(|text| self.delta(text)) {
                        return Some(line);
                    }
                }
                Ok(Piece::End { end, usage }) => return Some(self.end(&end, usage)),
                Err(failure) => {
                    self.answer = None;
                    let said = self.held.take().map(|text| self.said(text, None)).unwrap_or_default();
                    return Some([said, failed(&failure).line()].concat().into());
                }
            }
        }
    }

    fn delta(&mut self, text: String) -> Option<Bytes> {
        match self.reasons {
            true => self.held.replace(text).map(|text| self.said(text, None)),
            false => Some(self.said(text, None)),
        }
    }

    fn said(&self, text: String, reason: Option<&str>) -> Bytes {
        let data = match self.reasons {
            true => json!({"text": text, "finish_reason": reason}),
            false => json!({"text": text}),
        };
        Event { kind: "final_answer_delta", data }.line()
    }

    fn end(&mut self, end: &End, tokens: Usage) -> Bytes {
        self.answer = None;
        let (rest, step) = std::mem::take(&mut self.react).finish();
        let mut lines: Vec<Bytes> = rest.and_then(|text| self.delta(text)).into_iter().collect();
        let reason = match end {
            End::Stop => "stop",
            End::Length => "length",
        };
        match step {
            Step::Answered => {
                let last = self.held.take();
                lines.extend(last.map(|text| self.said(text, Some(reason))));
            }
            step => lines.push(self.event(step).line()),
        }
        if self.reasons {
            lines.push(Event { kind: "usage", data: json!({"usage": usage(&self.model, tokens)}) }.line());
        }
        lines.concat().into()
    }

    fn event(&self, step: Step) -> Event {
        match step {
            Step::Action { thought, tool, input } if self.tools.contains(&tool.as_str()) => {
                tracing::info!(model = self.model, tool, "chat wants a tool");
                let data = json!({"tool": tool, "tool_input": input, "thought": thought});
                Event { kind: "action", data }
            }
            Step::Action { .. } => Event::error("tool not available", false),
            Step::Unknown(text) if !text.is_empty() => Event { kind: "unknown", data: json!({"text": text}) },
            _ => Event::error("the model gave an empty answer", true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer that takes so long for each of its words.
    fn slow(words: &'static [&'static str], each: Duration) -> Answer {
        let end = Piece::End { end: End::Stop, usage: Usage::default() };
        let pieces = words.iter().map(|word| Piece::Text((*word).to_owned())).chain([end]);
        let pieces = futures::stream::iter(pieces);
        Answer::new(futures::StreamExt::then(pieces, move |piece| async move {
            tokio::time::sleep(each).await;
            Ok(piece)
        }))
    }

    #[tokio::test]
    async fn a_long_thought_is_bridged_with_empty_lines_although_the_model_writes_all_the_time() {
        let silence = Duration::from_millis(20);
        let words = &[" Hm.", " Let", " me", " see.", " I", " know", " it.\n", "Final Answer:", " Yes."];
        let mut talk = Talk {
            model: "ember".to_owned(),
            react: React::default(),
            answer: Some(slow(words, silence / 2)),
            tools: Vec::new(),
            reasons: false,
            held: None,
            silence,
            silent: Instant::now() + silence,
        };
        let mut lines = Vec::new();
        while let Some(line) = talk.next().await {
            lines.push(String::from_utf8(line.to_vec()).unwrap());
        }
        let (said, empty): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line != "\n");
        assert!(empty.len() > 1, "{empty:?}");
        assert_eq!(said, ["{\"type\":\"final_answer_delta\",\"data\":{\"text\":\"Yes.\"}}\n"]);
    }
}
