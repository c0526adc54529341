//! One request at an upstream: its slot, its time and what goes wrong with it, told in words that name the upstream and
//! nothing of its key or of the prompt.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use super::Upstream;
use super::breaker::Breaker;
use crate::log::prompts::{PROMPTS, Recording};
use crate::outbound::{self, OutboundError};
use crate::served::ask::Failure;

/// Seconds to wait where a busy upstream does not say.
const RETRY: u32 = 2;
const LONGEST_RETRY: u32 = 600;
/// Bytes read of a refusal, and how long.
const REFUSAL: usize = 64 << 10;
const REFUSAL_TIME: Duration = Duration::from_secs(2);
/// Characters of an upstream's own words that are repeated.
const WORDS: usize = 300;

/// A request whose answer has begun. Dropping it closes the connection, unless the answer has ended.
pub struct Line {
    upstream: Arc<Upstream>,
    answer: outbound::Answer,
    end: Instant,
    /// For the log, while prompts are asked for there.
    recording: Option<Recording>,
    /// Given back when the line is dropped.
    _slot: OwnedSemaphorePermit,
}

/// A request whose answer has not begun. Dropped while it waits, by its own time or by a client that leaves, it tells
/// the breaker how long that was: a host that swallows every packet may never be waited for until a connection is given
/// up on.
struct Attempt<'a> {
    breaker: &'a Breaker,
    begin: Instant,
    ended: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.breaker.given_up(self.begin.into_std(), Instant::now().into_std());
        }
    }
}

impl Upstream {
    /// Sends a request and waits for the headers of its answer. `time` is how long the caller waits for all of it.
    pub async fn open(
        self: &Arc<Self>,
        id: &str,
        path: &str,
        body: Bytes,
        time: Option<Duration>,
    ) -> Result<Line, Failure> {
        let slot = self.slots.clone().try_acquire_owned().map_err(|_| Failure::Busy {
            message: format!("the upstream {:?} has {} requests already", self.name, self.concurrent),
            retry_after: RETRY,
        })?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (begin, patience) = (Instant::now(), time.unwrap_or(self.timeout).min(self.timeout));
        self.breaker.allows(begin.into_std(), patience).map_err(|wait| {
            let wait = wait.as_secs() + 1;
            let text = format!("cannot be reached or does not answer; the next attempt is in {wait} s");
            self.broken(StatusCode::BAD_GATEWAY, text)
        })?;
        let end = begin + patience;
        let mut headers = self.headers.clone();
        if let Ok(id) = HeaderValue::from_str(id) {
            headers.insert("x-request-id", id);
        }
        let url = self.outbound.base().join(path);
        let recording = PROMPTS.recording(id, &self.name, || String::from_utf8_lossy(&body).into_owned());
        let mut attempt = Attempt { breaker: &self.breaker, begin, ended: false };
        let answer =
            timeout_at(end, self.outbound.post(url, headers, body)).await.map_err(|_| self.late())?;
        match &answer {
            // It said nothing for a time of its own, which others' patience may exceed.
            Err(OutboundError::Time { .. }) => {}
            Err(OutboundError::Unreachable { .. }) => {
                attempt.ended = true;
                self.breaker.failed(Instant::now().into_std());
            }
            _ => {
                attempt.ended = true;
                self.breaker.answered(Instant::now().into_std());
            }
        }
        let answer = answer.map_err(|error| self.failed(error))?;
        Ok(Line { upstream: self.clone(), answer, end, recording, _slot: slot })
    }

    /// Counts a failure and tells the log.
    fn broken(&self, status: StatusCode, what: String) -> Failure {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let message = format!("the upstream {:?} {what}", self.name);
        tracing::warn!(status = status.as_u16(), "{message}");
        Failure::Upstream { status, message }
    }

    fn late(&self) -> Failure {
        self.failures.fetch_add(1, Ordering::Relaxed);
        Failure::Late(format!("the upstream {:?} has not ended its answer in time", self.name))
    }

    fn failed(&self, error: OutboundError) -> Failure {
        let (status, text) = match error {
            OutboundError::Time { .. } => {
                (StatusCode::GATEWAY_TIMEOUT, format!("sent nothing for {} s", self.idle.as_secs()))
            }
            OutboundError::Unreachable { problem, .. } => {
                (StatusCode::BAD_GATEWAY, format!("cannot be reached: {problem}"))
            }
            OutboundError::Redirect { to, .. } => {
                // Where to is for the administrator: it names hosts of the site.
                tracing::warn!(to, "the upstream {:?} redirects", self.name);
                (
                    StatusCode::BAD_GATEWAY,
                    "redirects elsewhere, which is not followed: correct its url in the settings".to_owned(),
                )
            }
            OutboundError::TooLarge { limit, .. } => {
                (StatusCode::BAD_GATEWAY, format!("sent more than {limit} bytes"))
            }
            OutboundError::Cut { problem, .. } => {
                (StatusCode::BAD_GATEWAY, format!("broke off in the middle of an answer: {problem}"))
            }
            other => (StatusCode::BAD_GATEWAY, format!("cannot be asked: {other}")),
        };
        self.broken(status, text)
    }
}

impl Line {
    pub fn status(&self) -> StatusCode {
        self.answer.status()
    }

    pub fn header(&self, name: header::HeaderName) -> Option<&HeaderValue> {
        self.answer.headers().get(name)
    }

    pub fn content_type(&self) -> &str {
        self.header(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Whether the answer is a stream of events.
    pub fn streams(&self) -> bool {
        let kind = self.content_type().split(';').next().unwrap_or_default();
        kind.trim().eq_ignore_ascii_case("text/event-stream")
    }

    /// The next piece of the body; `None` at its end.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        let mut ended = self.upstream.ended.subscribe();
        let piece = tokio::select! {
            piece = timeout_at(self.end, self.answer.piece()) => piece,
            _ = ended.wait_for(|ended| *ended) => {
                return Err(Failure::Stopping("the server is shutting down; send the request again".to_owned()));
            }
        };
        match piece {
            Err(_) => Err(self.upstream.late()),
            Ok(Err(error)) => Err(self.upstream.failed(error)),
            Ok(Ok(piece)) => {
                if let (Some(recording), Some(piece)) = (&mut self.recording, &piece) {
                    recording.add(&String::from_utf8_lossy(piece));
                }
                Ok(piece)
            }
        }
    }

    /// The answer has ended. What is left of it is its last bytes; once they are read the connection serves the next
    /// request.
    pub fn ended(self) {
        let mut answer = self.answer;
        tokio::spawn(timeout(REFUSAL_TIME, async move { while let Ok(Some(_)) = answer.piece().await {} }));
    }

    /// A refusal that is passed on as it is.
    pub fn count_failure(&self) {
        self.upstream.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// An answer that is none.
    pub fn broken(&self, what: String) -> Failure {
        self.upstream.broken(StatusCode::BAD_GATEWAY, what)
    }

    /// An error that came as an event.
    pub fn told(&self, event: &Value) -> Failure {
        self.upstream
            .broken(StatusCode::BAD_GATEWAY, format!("failed in the middle of an answer: {}", words(event)))
    }

    /// Why there is no answer: the status was not 200.
    pub async fn refusal(self) -> Failure {
        let status = self.status();
        let upstream = self.upstream.clone();
        if status == StatusCode::TOO_MANY_REQUESTS {
            upstream.failures.fetch_add(1, Ordering::Relaxed);
            let retry_after = retry_after(self.header(header::RETRY_AFTER));
            return Failure::Busy {
                message: format!("the upstream {:?} is busy", upstream.name),
                retry_after,
            };
        }
        let reason = status.canonical_reason().unwrap_or("Unknown");
        let text = match status {
            // Such refusals like to repeat parts of the key.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                "it does not take the key of the settings".to_owned()
            }
            _ => self.said().await,
        };
        upstream.broken(status, format!("answered {} {reason}: {text}", status.as_u16()))
    }

    /// The error in the body.
    async fn said(mut self) -> String {
        let mut body = Vec::new();
        let read = async {
            while let Ok(Some(piece)) = self.answer.piece().await {
                body.extend_from_slice(&piece);
                if body.len() > REFUSAL {
                    break;
                }
            }
        };
        let _ = timeout(REFUSAL_TIME, read).await;
        match serde_json::from_slice(&body) {
            Ok(body) => words(&body),
            Err(_) => "it gave no reason in OpenAI's form".to_owned(),
        }
    }
}

pub fn retry_after(value: Option<&HeaderValue>) -> u32 {
    let seconds = value.and_then(|value| value.to_str().ok()?.trim().parse::<u32>().ok());
    seconds.unwrap_or(RETRY).clamp(1, LONGEST_RETRY)
}

/// An upstream's own words. Those that check a request against a schema repeat all of it behind the word "input".
fn words(body: &Value) -> String {
    let text = [&body["error"]["message"], &body["message"], &body["error"], &body["detail"]];
    let text = text.into_iter().find_map(Value::as_str).unwrap_or("it gave no reason in OpenAI's form");
    let text = ["'input'", "\"input\"", "input_value"]
        .iter()
        .fold(text, |text, word| text.find(word).map_or(text, |at| &text[..at]));
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(WORDS).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_upstreams_words_do_not_repeat_the_request() {
        for (body, said) in [
            (json!({"error": {"message": "no such model"}}), "no such model"),
            (json!({"object": "error", "message": "too\nlong"}), "too long"),
            (json!({"error": "plain"}), "plain"),
            (json!({"detail": [{"input": "def secret"}]}), "it gave no reason in OpenAI's form"),
            (
                json!({"message": "[{'msg': 'Field required', 'input': {'prompt': 'def secret'}}]"}),
                "[{'msg': 'Field required', ",
            ),
        ] {
            assert_eq!(words(&body), said);
        }
        assert_eq!(words(&json!({"message": "x".repeat(9999)})).len(), WORDS);
    }

    #[test]
    fn the_time_to_wait_is_bounded() {
        let at = |text: &str| retry_after(Some(&HeaderValue::from_str(text).unwrap()));
        assert_eq!((at("7"), at("0"), at("999999"), at("Wed, 21 Oct"), retry_after(None)), (7, 1, 600, 2, 2));
    }
}
