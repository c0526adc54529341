//! Bodies with conditions: a request's body that must keep coming, a response's body that something lives with.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, timeout};

use crate::openai::{BodyTimeout, Crowded, TooLarge};

/// A body that comes slower than this for longer than its limit is held back on purpose. Bytes a second.
pub const SLOWEST: u64 = 16 * 1024;

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

/// How much of the share of all bodies one takes at a time.
const PIECE: u64 = 256 * 1024;
/// How long it waits for the next.
const SHARE_WAIT: Duration = Duration::from_secs(5);

/// What one request's body has of the bytes that all of them share. It grows with what has come, not with what was
/// announced: a few that announce much and send little must not keep everybody out. Clones are the same; the last one
/// dropped gives it all back.
#[derive(Clone)]
pub struct Shares {
    all: Arc<Semaphore>,
    /// The size of `all`.
    limit: usize,
    wait: Duration,
    mine: Arc<Mutex<Mine>>,
}

struct Mine {
    permit: Option<OwnedSemaphorePermit>,
    covered: u64,
    /// The longest that the body may become.
    most: u64,
}

impl Shares {
    pub fn new(all: Arc<Semaphore>, limit: usize, most: u64) -> Self {
        let mine = Mine { permit: None, covered: 0, most };
        Self { all, limit, wait: SHARE_WAIT, mine: Arc::new(Mutex::new(mine)) }
    }

    fn mine(&self) -> MutexGuard<'_, Mine> {
        self.mine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a body that has come so far needs more before it is read on.
    fn short(&self, bytes: u64) -> bool {
        let mine = self.mine();
        bytes >= mine.covered && mine.covered < mine.most
    }

    /// Takes the next piece, waiting for others to end if need be.
    pub async fn grow(&self) -> Result<(), Crowded> {
        let piece = {
            let mine = self.mine();
            (mine.most - mine.covered).min(PIECE)
        };
        let more = timeout(self.wait, self.all.clone().acquire_many_owned(piece as u32)).await;
        let Ok(Ok(more)) = more else { return Err(Crowded { limit: self.limit }) };
        let mut mine = self.mine();
        mine.covered += piece;
        match &mut mine.permit {
            Some(permit) => permit.merge(more),
            empty => *empty = Some(more),
        }
        Ok(())
    }

    /// A body that is read as far as its share goes.
    pub fn body(self, body: Timed) -> Body {
        Body::new(Shared { body, shares: self, bytes: 0, growing: None })
    }
}

struct Shared {
    body: Timed,
    shares: Shares,
    bytes: u64,
    growing: Option<BoxFuture<'static, Result<(), Crowded>>>,
}

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.growing.is_none() && self.shares.short(self.bytes) && !self.body.is_end_stream() {
            let shares = self.shares.clone();
            self.growing = Some(async move { shares.grow().await }.boxed());
        }
        if let Some(growing) = &mut self.growing {
            let grown = ready!(growing.as_mut().poll(context));
            self.growing = None;
            if let Err(crowded) = grown {
                return Poll::Ready(Some(Err(axum::Error::new(crowded))));
            }
        }
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            let most = self.shares.mine().most;
            if self.bytes > most {
                return Poll::Ready(Some(Err(axum::Error::new(TooLarge { limit: most as usize }))));
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Who lives with a body and sees it pass.
pub trait Watch {
    /// The next piece is asked for.
    fn asked(&mut self) {}
    /// A piece of so many bytes has come.
    fn came(&mut self, _bytes: usize) {}
}

/// A body that is as it is, with somebody who watches it and ends with it.
pub struct Watched<B, W> {
    pub body: B,
    pub watch: W,
}

impl<B, W> HttpBody for Watched<B, W>
where
    B: HttpBody<Data = Bytes> + Unpin,
    W: Watch + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.watch.asked();
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.watch.came(frame.data_ref().map_or(0, Bytes::len));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body with which a companion lives and ends.
pub struct With<T>(#[allow(dead_code, reason = "it is held, and dropped with the body")] T);

impl<T> Watch for With<T> {}

impl<T: Send + Unpin + 'static> With<T> {
    pub fn body(body: Body, companion: T) -> Body {
        Body::new(Watched { body, watch: Self(companion) })
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

    #[tokio::test]
    async fn a_body_takes_its_share_as_it_comes_and_gives_it_back() {
        let room = 4 * PIECE as usize;
        let all = Arc::new(Semaphore::new(room));
        let most = 32 * PIECE;
        let mut slow = Vec::new();
        for _ in 0..3 {
            let shares = Shares::new(all.clone(), room, most);
            shares.grow().await.unwrap();
            slow.push(shares);
        }
        // A whole one between those that have announced eight times the room and sent nothing.
        let text = vec![b'x'; 1000];
        let shares = Shares::new(all.clone(), room, text.len() as u64);
        shares.grow().await.unwrap();
        let held = shares.clone();
        let body = held.body(Timed::new(Body::from(text), Duration::from_secs(30)));
        assert_eq!(axum::body::to_bytes(body, usize::MAX).await.unwrap().len(), 1000);
        assert_eq!(all.available_permits(), PIECE as usize - 1000, "held while it is worked on");
        drop(shares);
        assert_eq!(all.available_permits(), PIECE as usize);

        // One that does send goes as far as there is room, and then has its answer.
        let mut shares = slow.pop().unwrap();
        shares.wait = Duration::from_millis(10);
        let pieces =
            futures::stream::repeat_with(|| Ok::<_, axum::Error>(Bytes::from(vec![b'x'; 64 * 1024])));
        let body = Body::from_stream(futures::StreamExt::take(pieces, 64));
        let body = shares.clone().body(Timed::new(body, Duration::from_secs(30)));
        let error = axum::body::to_bytes(body, usize::MAX).await.unwrap_err();
        assert!(crate::openai::caused_by::<Crowded>(&error), "{error:?}");
        assert_eq!(all.available_permits(), 0);
        drop((slow, shares));
        assert_eq!(all.available_permits(), room);
    }
}
