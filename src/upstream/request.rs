//! What is sent to an upstream for an [`Ask`]: OpenAI's completions or chat completions, streamed. A grammar is not
//! sent: servers differ in its notation, and most know none. The prompt asks for the form in words as well.

use serde_json::{Map, Value, json};

use super::Model;
use super::fill::{self, Fill};
use crate::served::ask::{Ask, Input, Message};
use crate::served::family::Family;

/// OpenAI's own server takes no more.
const MOST_STOPS: usize = 4;
/// Asked for where the estimate of the prompt leaves less: the upstream, which can count, refuses what does not fit.
const FEWEST_TOKENS: u32 = 256;

/// A request that is ready to be sent.
#[derive(Debug)]
pub struct Request {
    pub path: &'static str,
    pub body: Value,
    /// Texts that end the answer, all of them. Of these the upstream knows the first few.
    pub stops: Vec<String>,
    /// A text that the answer may begin with, although it was asked to go on after it.
    pub echo: String,
    /// Tokens of the prompt, estimated.
    pub input: u32,
}

/// Tokens of a text whose tokenizer is elsewhere: a byte of code is a third of a token at most, or nearly so.
pub fn estimate(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(3)).unwrap_or(u32::MAX)
}

impl Request {
    pub fn new(model: &Model, ask: Ask) -> Self {
        let mut stops = ask.stops;
        let mut body = Map::from_iter([
            ("model".to_owned(), json!(model.remote)),
            ("stream".to_owned(), json!(true)),
            ("stream_options".to_owned(), json!({"include_usage": true})),
        ]);
        if !stops.is_empty() {
            body.insert("stop".to_owned(), json!(stops[..stops.len().min(MOST_STOPS)]));
        }
        let (path, bytes, echo) = match ask.input {
            Input::Fill { prefix, suffix } => {
                let bytes = prefix.len() + suffix.len();
                let path = match model.fill {
                    Fill::Suffix => {
                        body.insert("prompt".to_owned(), json!(prefix));
                        // An empty one would be none, and the model would write on instead of filling a gap.
                        let suffix = if suffix.is_empty() { "\n" } else { &suffix };
                        body.insert("suffix".to_owned(), json!(suffix));
                        "/completions"
                    }
                    Fill::Markers(markers) => {
                        body.insert("prompt".to_owned(), json!(markers.prompt(&prefix, &suffix)));
                        stops.extend(markers.ends.iter().map(|end| (*end).to_owned()));
                        "/completions"
                    }
                    Fill::Chat => {
                        body.insert("messages".to_owned(), list(&fill::messages(&prefix, &suffix)));
                        "/chat/completions"
                    }
                };
                (path, bytes, String::new())
            }
            Input::Chat { mut messages, begun } => {
                let bytes = messages.iter().map(|m| m.content.len()).sum::<usize>() + begun.len();
                let mut echo = String::new();
                if goes_on(model.family) && !begun.is_empty() {
                    messages.push(Message { role: "assistant".to_owned(), content: begun });
                    body.insert("continue_final_message".to_owned(), json!(true));
                    body.insert("add_generation_prompt".to_owned(), json!(false));
                } else if !begun.is_empty() {
                    begin_with(&mut messages, &begun);
                    echo = begun;
                }
                body.insert("messages".to_owned(), list(&messages));
                ("/chat/completions", bytes, echo)
            }
        };
        let input = estimate(bytes);
        let room = model.context.saturating_sub(input).max(FEWEST_TOKENS);
        let max_tokens = json!(ask.max_tokens.min(room));
        if thinks(&model.remote) && path == "/chat/completions" {
            body.insert("max_completion_tokens".to_owned(), max_tokens);
        } else {
            body.insert("max_tokens".to_owned(), max_tokens);
            body.insert("temperature".to_owned(), json!(ask.temperature));
            if ask.top_p < 1.0 {
                body.insert("top_p".to_owned(), json!(ask.top_p));
            }
        }
        Self { path, body: Value::Object(body), stops, echo, input }
    }
}

fn list(messages: &[Message]) -> Value {
    messages.iter().map(|m| json!({"role": m.role, "content": m.content})).collect()
}

/// Families that are usually served by vLLM, which goes on with an assistant's message when told so; a second Hearth
/// does too.
fn goes_on(family: Family) -> bool {
    matches!(family, Family::Mistral | Family::Mixtral | Family::Codestral)
}

/// Asks in words for an answer that begins in a certain way.
fn begin_with(messages: &mut Vec<Message>, begun: &str) {
    let words = format!("\n\nBegin your answer with exactly this text, and go on from there:\n{begun}");
    match messages.iter_mut().rev().find(|m| m.role == "user") {
        Some(message) => message.content += &words,
        None => messages.push(Message { role: "user".to_owned(), content: words.trim_start().to_owned() }),
    }
}

/// OpenAI's models that think before they answer have another name for the limit and only one temperature.
fn thinks(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name);
    ["gpt-5", "o1", "o3", "o4"].iter().any(|known| {
        name.strip_prefix(known).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
    })
}
