//! The server-sent events of `/v4/code/suggestions`. The language server takes these three events and no other, reads
//! every `data` as JSON, and knows the format by a header of its own.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures::{Stream, StreamExt, stream};
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep};

use crate::duo::error::DuoError;
use crate::duo::stream::{EVENT_STREAM, response};
use crate::openai::answers::now;
use crate::served::ask::Failure;

/// Silence after which a comment is sent, so that no proxy on the way takes the connection for dead.
const SILENCE: Duration = Duration::from_secs(15);

type Pieces = Pin<Box<dyn Stream<Item = Result<String, Failure>> + Send>>;

/// An event: its lines end with CRLF, its name comes first.
fn event(name: &str, data: &Value) -> Bytes {
    // JSON has its line ends escaped, so one line holds it.
    format!("event: {name}\r\ndata: {data}\r\n\r\n").into()
}

/// Answers with events. Until there is a piece, or silence has lasted so long that something must be sent, a failure is
/// a status.
pub async fn send(
    begin: Value,
    pieces: impl Stream<Item = Result<String, Failure>> + Send + 'static,
) -> Result<Response, DuoError> {
    send_after(begin, Box::pin(pieces.fuse()), SILENCE).await
}

async fn send_after(begin: Value, mut pieces: Pieces, silence: Duration) -> Result<Response, DuoError> {
    let first = match tokio::time::timeout(silence, pieces.next()).await {
        Ok(piece) => piece.transpose().map_err(|f| DuoError::inference(&f))?,
        Err(_) => None,
    };
    let chunk = |piece: String| json!({"choices": [{"delta": {"content": piece}, "index": 0}]});
    let begin = stream::iter([Ok(event("stream_start", &begin))]);
    let pieces: Pieces = Box::pin(stream::iter(first.map(Ok)).chain(pieces));
    let pieces = pieces.map(move |piece| piece.map(|piece| event("content_chunk", &chunk(piece))));
    let end = stream::iter([Ok(event("stream_end", &Value::Null))]);
    let events = Box::pin(begin.chain(ending(pieces, end)));
    let timer = Box::pin(tokio::time::sleep(silence));
    let mut response = response(EVENT_STREAM, Pinged { events, silence, timer });
    let headers = response.headers_mut();
    headers.insert("x-streaming-format", HeaderValue::from_static("sse"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("keep-alive"));
    Ok(response)
}

/// The pieces, then the end; after a failure nothing.
fn ending(
    pieces: impl Stream<Item = Result<Bytes, Failure>> + Send + 'static,
    end: impl Stream<Item = Result<Bytes, Failure>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, Failure>> + Send {
    let all = pieces.chain(end);
    all.scan(false, |failed, event| {
        let before = std::mem::replace(failed, *failed || event.is_err());
        std::future::ready((!before).then_some(event))
    })
}

/// Events with comments where they are silent.
struct Pinged {
    events: Pin<Box<dyn Stream<Item = Result<Bytes, Failure>> + Send>>,
    silence: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Stream for Pinged {
    type Item = Result<Bytes, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = match self.events.as_mut().poll_next(context) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(event)) => event,
            Poll::Pending => match self.timer.as_mut().poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => Ok(format!(": ping - {}\r\n\r\n", now()).into()),
            },
        };
        let deadline = Instant::now() + self.silence;
        self.timer.as_mut().reset(deadline);
        Poll::Ready(Some(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body(pieces: Vec<Result<String, Failure>>, silence: Duration, wait: Duration) -> (bool, String) {
        let pieces = stream::iter(pieces).then(move |piece| async move {
            tokio::time::sleep(wait).await;
            piece
        });
        let response = send_after(json!({"metadata": {}}), Box::pin(pieces), silence).await.unwrap();
        let mut body = response.into_body().into_data_stream();
        let mut text = String::new();
        while let Some(bytes) = body.next().await {
            match bytes {
                Ok(bytes) => text += std::str::from_utf8(&bytes).unwrap(),
                Err(_) => return (true, text),
            }
        }
        (false, text)
    }

    #[tokio::test]
    async fn events_have_their_names_first_and_lines_end_with_crlf() {
        let pieces = vec![Ok("a\nb".to_owned()), Ok("é".to_owned())];
        let (cut, text) = body(pieces, SILENCE, Duration::ZERO).await;
        assert_eq!(
            (cut, text.as_str()),
            (
                false,
                "event: stream_start\r\ndata: {\"metadata\":{}}\r\n\r\n\
                 event: content_chunk\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\\nb\"},\"index\":0}]}\r\n\r\n\
                 event: content_chunk\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"é\"},\"index\":0}]}\r\n\r\n\
                 event: stream_end\r\ndata: null\r\n\r\n"
            )
        );
    }

    #[tokio::test]
    async fn silence_is_filled_with_comments_also_before_the_first_piece() {
        let (cut, text) =
            body(vec![Ok("a".to_owned())], Duration::from_millis(1), Duration::from_millis(50)).await;
        assert!(!cut);
        let (start, rest) = text.split_once("\r\n\r\n").unwrap();
        assert!(start.starts_with("event: stream_start"), "{text}");
        assert!(rest.starts_with(": ping - 1"), "{text}");
        assert!(text.ends_with("event: stream_end\r\ndata: null\r\n\r\n"), "{text}");
    }

    #[tokio::test]
    async fn a_failure_in_the_middle_cuts_the_body_and_one_before_is_a_status() {
        let lost = || Err(Failure::Lost("the step failed".into()));
        let (cut, text) = body(vec![Ok("a".into()), lost()], SILENCE, Duration::ZERO).await;
        assert!(cut && text.contains("content_chunk") && !text.contains("stream_end"), "{text}");
        let early = send(json!({}), stream::iter([lost()])).await.unwrap_err();
        assert_eq!((early.status.as_u16(), &*early.text), (503, "Inference failed"));
    }
}
