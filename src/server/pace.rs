//! How long a connection may take (step 1 in the life of a request): until the headers of a request are there, and between
//! two requests. What happens within a request has limits of its own.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::Limits;
use super::places::Places;

/// What a connection without a request has at shutdown.
const CLOSING: Duration = Duration::from_secs(1);

/// The clock of one connection.
pub struct Pace {
    state: Mutex<State>,
    changed: Notify,
    places: Arc<Places>,
}

impl Pace {
    /// For a connection whose first byte has come.
    pub fn new(limits: &Limits, http2: bool, places: Arc<Places>) -> Arc<Self> {
        let state = State::new(limits, http2, Instant::now());
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new(), places })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes have come.
    fn heard(&self) {
        if self.lock().heard(Instant::now()) {
            self.changed.notify_one();
        }
    }

    /// A request's headers are there. It lasts until the result is dropped.
    pub fn request(self: &Arc<Self>) -> Busy {
        self.lock().request();
        self.changed.notify_one();
        Busy(self.clone())
    }

    /// The server is shutting down: a request that is on its way may still come, and then no more.
    pub fn close(&self) {
        self.lock().close(Instant::now());
        self.changed.notify_one();
    }

    /// Resolves when the client has had its time.
    pub async fn late(&self) {
        loop {
            let deadline = self.lock().deadline;
            match deadline {
                None => self.changed.notified().await,
                Some(deadline) if deadline <= Instant::now() => return,
                Some(deadline) => tokio::select! {
                    () = sleep_until(deadline) => {}
                    () = self.changed.notified() => {}
                },
            }
        }
    }
}

struct State {
    headers: Duration,
    idle: Duration,
    /// Requests come side by side, and bytes come also without any: they say nothing about headers.
    http2: bool,
    requests: usize,
    /// The first bytes of a request's headers have come.
    begun: bool,
    closing: bool,
    /// `None` while a request is worked on.
    deadline: Option<Instant>,
}

impl State {
    fn new(limits: &Limits, http2: bool, now: Instant) -> Self {
        let (headers, idle) = (limits.headers, limits.idle);
        let deadline = Some(now + headers);
        Self { headers, idle, http2, requests: 0, begun: true, closing: false, deadline }
    }

    /// Whether the deadline has changed.
    fn heard(&mut self, now: Instant) -> bool {
        let begins = self.requests == 0 && !self.begun && !self.http2;
        if begins {
            self.begun = true;
            self.deadline = Some(now + self.headers);
        }
        begins
    }

    fn request(&mut self) {
        self.requests += 1;
        self.begun = false;
        self.deadline = None;
    }

    /// A request has ended. Where places are scarce nobody keeps one that is not in use.
    fn answered(&mut self, now: Instant, scarce: bool) {
        self.requests -= 1;
        if self.requests == 0 {
            let kept = if self.closing || scarce { CLOSING.min(self.idle) } else { self.idle };
            self.deadline = Some(now + kept);
        }
    }

    fn close(&mut self, now: Instant) {
        self.closing = true;
        self.deadline = self.deadline.map(|deadline| deadline.min(now + CLOSING));
    }
}

/// A request from its headers to the last byte of its answer.
pub struct Busy(Arc<Pace>);

impl Drop for Busy {
    fn drop(&mut self) {
        let pace = &*self.0;
        pace.lock().answered(Instant::now(), pace.places.scarce());
        pace.changed.notify_one();
    }
}

/// A connection that tells its pace when bytes come.
pub struct Paced<S> {
    stream: S,
    pace: Arc<Pace>,
}

impl<S> Paced<S> {
    pub fn new(stream: S, pace: Arc<Pace>) -> Self {
        Self { stream, pace }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.pace.heard();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn state(http2: bool, now: Instant) -> State {
        State::new(&Limits { headers: seconds(10), idle: seconds(120), ..Limits::default() }, http2, now)
    }

    fn late(state: &State, now: Instant) -> bool {
        state.deadline.is_some_and(|deadline| deadline <= now)
    }

    #[test]
    fn headers_have_their_time_from_their_first_byte_however_many_follow() {
        let start = Instant::now();
        let mut state = state(false, start);
        for second in 1..10 {
            state.heard(start + seconds(second));
            assert!(!late(&state, start + seconds(second)));
        }
        assert!(late(&state, start + seconds(10)), "a byte a second is no request");
    }

    #[test]
    fn a_request_has_no_limit_here_and_a_kept_connection_a_longer_one_than_headers() {
        let mut now = Instant::now();
        let mut state = state(false, now);
        state.request();
        now += seconds(3600);
        assert!(!late(&state, now));
        state.answered(now, false);
        assert!(!late(&state, now + seconds(119)) && late(&state, now + seconds(120)));
        now += seconds(119);
        state.heard(now);
        assert!(!late(&state, now + seconds(9)), "the next request has begun");
        assert!(late(&state, now + seconds(10)));
    }

    #[test]
    fn frames_without_a_request_do_not_keep_an_http2_connection() {
        let mut now = Instant::now();
        let mut state = state(true, now);
        state.request();
        state.request();
        state.answered(now, false);
        now += seconds(3600);
        assert!(!late(&state, now), "one of two is still worked on");
        state.answered(now, false);
        for _ in 0..12 {
            now += seconds(10);
            state.heard(now);
        }
        assert!(late(&state, now));
    }

    #[test]
    fn at_shutdown_a_request_is_ended_and_a_connection_without_one_is_not_waited_for() {
        let mut now = Instant::now();
        let mut state = state(false, now);
        state.request();
        state.close(now);
        now += seconds(60);
        assert!(!late(&state, now));
        state.answered(now, false);
        assert!(late(&state, now + CLOSING));
    }

    #[test]
    fn where_places_are_scarce_an_idle_connection_gives_its_own_back() {
        let now = Instant::now();
        let mut state = state(false, now);
        state.request();
        state.answered(now, true);
        assert!(late(&state, now + CLOSING));
    }
}
