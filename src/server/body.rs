//! Bodies with conditions: a request's body that must keep coming, a response's body that something lives with.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::openai::BodyTimeout;

/// A body that comes slower than this for longer than its limit is held back on purpose. Bytes a second.
const SLOWEST: u64 = 16 * 1024;

/// A request's body of which each piece must come within the limit, and all of it within the limit and the time that a
/// slow line takes.
pub struct Timed {
    body: Body,
    limit: Duration,
    begin: Instant,
    bytes: u64,
    timer: Pin<Box<Sleep>>,
}

impl Timed {
    pub fn new(body: Body, limit: Duration) -> Self {
        let timer = Box::pin(tokio::time::sleep(limit));
        Self { body, limit, begin: Instant::now(), bytes: 0, timer }
    }

    /// When the next piece must be there.
    fn deadline(&self, now: Instant) -> Instant {
        let line = Duration::from_secs_f64(self.bytes as f64 / SLOWEST as f64);
        (now + self.limit).min(self.begin + self.limit + line)
    }
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending => {
                ready!(self.timer.as_mut().poll(context));
                Poll::Ready(Some(Err(axum::Error::new(BodyTimeout))))
            }
            frame => {
                if let Poll::Ready(Some(Ok(frame))) = &frame {
                    self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                let deadline = self.deadline(Instant::now());
                self.timer.as_mut().reset(deadline);
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body with which `companion` lives and ends.
pub struct With<T> {
    body: Body,
    _companion: T,
}

impl<T: Send + Unpin + 'static> With<T> {
    pub fn body(body: Body, companion: T) -> Body {
        Body::new(Self { body, _companion: companion })
    }
}

impl<T: Unpin> HttpBody for With<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_may_be_slow_and_not_trickle() {
        let limit = Duration::from_secs(30);
        let mut body = Timed::new(Body::empty(), limit);
        let begin = body.begin;
        assert_eq!(body.deadline(begin), begin + limit);
        // A byte every second: the end is where it was at the beginning.
        body.bytes = 29;
        let late = begin + Duration::from_secs(29);
        assert!(body.deadline(late) < begin + limit + Duration::from_millis(10));
        // Eight megabytes over a slow line have eight minutes, as long as they keep coming.
        body.bytes = 8 << 20;
        let later = begin + Duration::from_secs(400);
        assert_eq!(body.deadline(later), later + limit);
        let end = begin + Duration::from_secs(512) + limit;
        assert_eq!(body.deadline(begin + Duration::from_secs(600)), end);
    }
}
