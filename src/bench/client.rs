//! The client of a benchmark: one server, one model, and requests whose answers are timed as their pieces come.
//!
//! It speaks OpenAI's streams, so the server may be Hearth or any other that does.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::{Value, json};

use super::profile::{BYTES_PER_TOKEN, Profile, Workload, sample};
use super::tally::{Answered, Loss, Outcome};
use crate::config::state::Secret;
use crate::outbound::{Answer, Base, Limits, Outbound, OutboundError};
use crate::upstream::events::Events;

/// Silence after which an answer is given up.
const SILENCE: Duration = Duration::from_secs(120);
/// Bytes of an answer at most.
const LARGEST: usize = 64 << 20;
/// Bytes of text that are counted in tokens before the run.
const SAMPLE: usize = 8192;

/// Why nothing can be measured there.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{0}")]
    Away(OutboundError),
    #[error("the connection cannot be prepared: {0}")]
    Prepare(OutboundError),
    #[error("{url} refuses the key ({status})")]
    Key { url: String, status: u16 },
    #[error("{url} wants a key, and none was given")]
    NoKey { url: String },
    #[error("{url} answers {status} to GET /v1/models: {message}")]
    Foreign { url: String, status: u16, message: String },
    #[error("{url} has no model {name}; it has {}", known.join(", "))]
    NoModel { url: String, name: String, known: Vec<String> },
    #[error("{url} is busy before anything was measured: {message}")]
    Busy { url: String, message: String },
    #[error("{url} does not answer a {profile} request: {message}")]
    Request { url: String, profile: Profile, message: String },
}

/// A server and a model of it.
#[derive(Clone, Debug)]
pub struct Client {
    outbound: Outbound,
    headers: HeaderMap,
    pub model: String,
    with_key: bool,
}

/// What a server says of its model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub context: Option<u32>,
    pub bytes_per_token: f64,
    pub fills: bool,
    pub whole_answers: bool,
}

impl Client {
    /// A client for the server at `url`, with or without `/v1` at its end. Nothing is connected to yet.
    pub fn new(url: &Base, key: Option<&Secret>, authorities: Option<&Path>) -> Result<Self, ClientError> {
        let root = url.to_string();
        let url =
            root.strip_suffix("/v1").unwrap_or(&root).parse().expect("bug: a shorter path is a URL too");
        let limits = Limits { connect: Duration::from_secs(5), idle: SILENCE, total: None, bytes: LARGEST };
        let outbound = Outbound::new(url, authorities, limits).map_err(ClientError::Prepare)?;
        let mut headers = HeaderMap::new();
        if let Some(key) = key {
            let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose()))
                .expect("bug: a checked key is printable");
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(Self { outbound, headers, model: String::new(), with_key: key.is_some() })
    }

    pub fn url(&self) -> &Base {
        self.outbound.base()
    }

    /// Takes the model of that name, or the server's first one, and asks what can be known of it before the run: its
    /// context, how long its tokens are, and which fields of a request the server takes.
    pub async fn find(&mut self, name: Option<&str>, workload: &mut Workload) -> Result<(), ClientError> {
        let answer = self.outbound.get_with(self.outbound.base().join("/v1/models"), self.headers.clone());
        let answer = answer.await.map_err(ClientError::Away)?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await.map_err(ClientError::Away)?;
        self.known(status, &body)?;
        let list: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let models: Vec<&Value> = list["data"].as_array().into_iter().flatten().collect();
        let id = |model: &&Value| model["id"].as_str().map(str::to_owned);
        let known: Vec<String> = models.iter().filter_map(id).collect();
        let url = self.url().to_string();
        let wanted = match (name, known.first()) {
            (Some(name), _) => name.to_owned(),
            (None, Some(first)) => first.clone(),
            (None, None) => {
                let message = "it lists no model".to_owned();
                return Err(ClientError::Foreign { url, status, message });
            }
        };
        // An alias is in no list, so only the request itself shows that there is no such model.
        let listed = models.iter().find(|model| id(model).as_ref() == Some(&wanted));
        self.model = wanted;
        let context = listed.and_then(|model| model["max_model_len"].as_u64());
        workload.context = context.and_then(|tokens| u32::try_from(tokens).ok());
        workload.bytes_per_token = self.bytes_per_token().await;
        self.agree(workload, &known).await
    }

    fn known(&self, status: u16, body: &[u8]) -> Result<(), ClientError> {
        let url = || self.url().to_string();
        match status {
            200 => Ok(()),
            401 | 403 if !self.with_key => Err(ClientError::NoKey { url: url() }),
            401 | 403 => Err(ClientError::Key { url: url(), status }),
            _ => Err(ClientError::Foreign { url: url(), status, message: words(body) }),
        }
    }

    async fn bytes_per_token(&self) -> f64 {
        let body = json!({"model": self.model, "prompt": sample(SAMPLE), "add_special_tokens": false});
        let count = async {
            let answer = self.post("/tokenize", body.to_string().into()).await.ok()?;
            let body = answer.status().is_success().then_some(answer.bytes().await.ok()?)?;
            serde_json::from_slice::<Value>(&body).ok()?["count"].as_u64()
        };
        match count.await {
            Some(tokens) if tokens > 0 => SAMPLE as f64 / tokens as f64,
            // Not every server counts for others.
            _ => BYTES_PER_TOKEN,
        }
    }

    /// Sends the longest of the first requests of each kind. What a server does not take (a gap to fill, an answer of a
    /// fixed length) is left out of all of them, and that is kept with the figures.
    async fn agree(&self, workload: &mut Workload, known: &[String]) -> Result<(), ClientError> {
        let url = || self.url().to_string();
        for kind in workload.profile.kinds() {
            let mut tries = vec![(true, true), (true, false), (false, true), (false, false)];
            tries.retain(|(fills, whole)| (workload.fills || !fills) && (workload.whole_answers || !whole));
            let mut refused = String::new();
            let mut agreed = false;
            for (fills, whole) in tries {
                let tried = Workload { fills, whole_answers: whole, ..workload.clone() };
                let longest = (0..100).map(|i| tried.request(i)).filter(|asked| asked.kind == *kind);
                let Some(longest) = longest.max_by_key(|asked| asked.prompt) else { continue };
                let (path, body) = tried.write(longest, &self.model);
                match self.ask(path, body.to_string().into(), Instant::now()).await {
                    Outcome::Answered(_) => {
                        (workload.fills, workload.whole_answers, agreed) = (fills, whole, true);
                        break;
                    }
                    Outcome::Status(status @ (401 | 403), _) => {
                        return Err(ClientError::Key { url: url(), status });
                    }
                    Outcome::Status(404, _) if !known.contains(&self.model) => {
                        let (name, known) = (self.model.clone(), known.to_vec());
                        return Err(ClientError::NoModel { url: url(), name, known });
                    }
                    Outcome::Status(429 | 503, message) => {
                        return Err(ClientError::Busy { url: url(), message });
                    }
                    Outcome::Status(status, message) => refused = format!("{status}: {message}"),
                    Outcome::Lost(_, message) => {
                        refused = message;
                        break;
                    }
                }
            }
            if !agreed {
                let profile = workload.profile;
                return Err(ClientError::Request { url: url(), profile, message: refused });
            }
        }
        Ok(())
    }

    async fn post(&self, path: &str, body: Bytes) -> Result<Answer, OutboundError> {
        self.outbound.post(self.outbound.base().join(path), self.headers.clone(), body).await
    }

    /// Sends a request and listens to the end of its answer. Times count from `start`.
    pub async fn ask(&self, path: &str, body: Bytes, start: Instant) -> Outcome {
        let mut answer = match self.post(path, body).await {
            Ok(answer) => answer,
            Err(e) => return lost(&e),
        };
        if !answer.status().is_success() {
            let status = answer.status().as_u16();
            return Outcome::Status(status, words(&answer.bytes().await.unwrap_or_default()));
        }
        let mut heard = Heard::default();
        let mut events = Events::default();
        loop {
            let piece = match answer.piece().await {
                Ok(Some(piece)) => piece,
                Ok(None) if heard.ended => break,
                Ok(None) => return broken("the stream ended without its end"),
                Err(e) => return lost(&e),
            };
            let now = start.elapsed();
            if events.push(&piece).is_err() {
                return broken("an event does not end");
            }
            while let Some(event) = events.next() {
                if let Err(outcome) = heard.event(&event, now) {
                    return outcome;
                }
            }
        }
        heard.answered(start.elapsed())
    }
}

/// A stream so far.
#[derive(Default)]
struct Heard {
    first: Option<Duration>,
    last: Duration,
    gaps: Vec<Duration>,
    pieces: u32,
    input: Option<u32>,
    output: Option<u32>,
    ended: bool,
}

impl Heard {
    fn event(&mut self, event: &str, now: Duration) -> Result<(), Outcome> {
        if event.trim() == "[DONE]" {
            self.ended = true;
            return Ok(());
        }
        let event: Value =
            serde_json::from_str(event).map_err(|_| broken("an event of the stream is not JSON"))?;
        if !event["error"].is_null() {
            let message = event["error"]["message"].as_str().unwrap_or("no reason given");
            return Err(Outcome::Lost(Loss::ErrorEvent, short(message)));
        }
        let count = |name: &str| event["usage"][name].as_u64().and_then(|n| u32::try_from(n).ok());
        self.input = count("prompt_tokens").or(self.input);
        self.output = count("completion_tokens").or(self.output);
        let choice = &event["choices"][0];
        let text =
            choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str()).unwrap_or_default();
        // Some servers end their streams without saying so; a reason to end is enough.
        self.ended |= !choice["finish_reason"].is_null();
        if !text.is_empty() {
            match self.first {
                None => self.first = Some(now),
                Some(_) => self.gaps.push(now.saturating_sub(self.last)),
            }
            self.last = now;
            self.pieces += 1;
        }
        Ok(())
    }

    /// An answer without text has its first token when it ends.
    fn answered(self, now: Duration) -> Outcome {
        let first = self.first.unwrap_or(now);
        let last = if self.pieces > 0 { self.last } else { now };
        let output = self.output.unwrap_or(self.pieces);
        Outcome::Answered(Answered { first, last, gaps: self.gaps, input: self.input, output })
    }
}

fn lost(error: &OutboundError) -> Outcome {
    let loss = match error {
        OutboundError::Time { .. } => Loss::Silence,
        OutboundError::Cut { .. } | OutboundError::TooLarge { .. } => Loss::BrokenOff,
        _ => Loss::Connection,
    };
    Outcome::Lost(loss, error.to_string())
}

fn broken(what: &str) -> Outcome {
    Outcome::Lost(Loss::BrokenOff, what.to_owned())
}

/// What the body of a refusal says, in either dialect.
fn words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let object: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let known = [&object["error"]["message"], &object["message"], &object["error"], &object["detail"]];
    short(known.into_iter().find_map(Value::as_str).unwrap_or(text.trim()))
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn tokens_are_the_servers_own_count_and_times_those_of_text() {
        let mut heard = Heard::default();
        for (at, event) in [
            (5, r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#),
            (20, r#"{"choices":[{"delta":{"content":"a"},"finish_reason":null}],"usage":null}"#),
            (30, r#"{"choices":[{"delta":{"content":"bc"},"finish_reason":null}]}"#),
            (31, r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#),
            (32, r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}"#),
            (33, "[DONE]"),
        ] {
            heard.event(event, ms(at)).unwrap();
        }
        let Outcome::Answered(answer) = heard.answered(ms(34)) else { panic!("no answer") };
        assert_eq!((answer.first, answer.last, answer.gaps), (ms(20), ms(30), vec![ms(10)]));
        assert_eq!((answer.input, answer.output), (Some(7), 3));
    }

    #[test]
    fn an_error_in_a_stream_is_no_answer() {
        let outcome =
            Heard::default().event(r#"{"error":{"message":"the step failed"}}"#, ms(1)).unwrap_err();
        assert!(matches!(outcome, Outcome::Lost(Loss::ErrorEvent, words) if words == "the step failed"));
    }

    #[test]
    fn a_refusal_is_repeated_in_the_servers_words() {
        for (body, said) in [
            (r#"{"error":{"message":"no such model"}}"#, "no such model"),
            (r#"{"detail":"not found"}"#, "not found"),
            (r#"{"error":"No authorization header presented"}"#, "No authorization header presented"),
            ("<html>\r\n502</html>", "<html>502</html>"),
        ] {
            assert_eq!(words(body.as_bytes()), said);
        }
        assert_eq!(words("x".repeat(1000).as_bytes()).len(), 300);
    }
}
