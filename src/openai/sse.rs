//! Server-sent events: one `data:` line of JSON an event, so that no text can break out of it; a comment when nothing
//! was sent for a while, so that proxies keep the connection.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures::Stream;
use tokio::time::{Instant, Sleep};

/// Silence after which a comment is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A response that sends each line as an event. The stream is dropped when the client leaves.
pub fn response(lines: impl Stream<Item = String> + Send + 'static) -> Response {
    response_with(lines, KEEP_ALIVE)
}

fn response_with(lines: impl Stream<Item = String> + Send + 'static, silence: Duration) -> Response {
    let events = Events { lines: Box::pin(lines), silence, timer: Box::pin(tokio::time::sleep(silence)) };
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx holds streams back unless told otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Events {
    lines: Pin<Box<dyn Stream<Item = String> + Send>>,
    silence: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Stream for Events {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = match self.lines.as_mut().poll_next(context) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(line)) => Bytes::from(format!("data: {line}\n\n")),
            Poll::Pending => match self.timer.as_mut().poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => Bytes::from_static(b": keep-alive\n\n"),
            },
        };
        let deadline = Instant::now() + self.silence;
        self.timer.as_mut().reset(deadline);
        Poll::Ready(Some(Ok(next)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn silence_is_filled_with_comments_and_the_stream_goes_on() {
        let lines = futures::stream::once(async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            "{}".to_owned()
        });
        let body = response_with(lines, Duration::from_millis(1)).into_body();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        assert!(text.starts_with(": keep-alive\n\n"), "{text}");
        assert!(text.ends_with("data: {}\n\n"), "{text}");
    }
}
