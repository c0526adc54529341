//! Bodies with conditions: a request's body that must keep coming, a response's body that something lives with.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::openai::BodyTimeout;

/// A request's body of which each piece must come within the limit.
pub struct Timed {
    body: Body,
    limit: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Timed {
    pub fn new(body: Body, limit: Duration) -> Self {
        Self { body, limit, timer: Box::pin(tokio::time::sleep(limit)) }
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
                let deadline = Instant::now() + self.limit;
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
