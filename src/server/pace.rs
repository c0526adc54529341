//! How long a connection may take (step 1 in the life of a request): until the headers of a request are there, between
//! two requests, and until the client has room for more of an answer. What else happens within a request has limits of its
//! own, and so has what an HTTP/2 connection sends beside its requests ([`Frames`]).

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::Limits;
use super::body::{SLOWEST, Watch, Watched};
use super::connections::Reason;
use super::frames::Frames;
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

    /// So many bytes have come. `false`: no more are read. A client that always has more to read never lets the timers of
    /// this connection have their turn, so they are asked here too.
    fn heard(&self, bytes: usize) -> bool {
        let (now, mut state) = (Instant::now(), self.lock());
        if state.heard(now) {
            self.changed.notify_one();
        }
        state.frames.as_mut().is_none_or(|frames| frames.spent(bytes))
            && (state.requests > 0 || state.deadline.is_none_or(|deadline| now < deadline))
    }

    /// Why the connection is ended, if its client has had its time or its frames; `None`: for no fault of its own.
    pub fn fault(&self) -> Option<Reason> {
        self.lock().fault(Instant::now())
    }

    /// Whether any bytes have come.
    pub fn spoken(&self) -> bool {
        self.lock().spoken
    }

    /// A request's headers are there. It lasts until the result is dropped.
    pub fn request(self: &Arc<Self>) -> Busy {
        let number = self.lock().request();
        self.changed.notify_one();
        Busy { pace: self.clone(), number }
    }

    /// The server is shutting down: a request that is on its way may still come, and then no more.
    pub fn close(&self) {
        self.lock().close(Instant::now());
        self.changed.notify_one();
    }

    /// Resolves when the client has had its time.
    pub async fn late(&self) {
        loop {
            let (deadline, unread) = {
                let state = self.lock();
                (state.deadline(), state.unread)
            };
            match deadline {
                // The pieces of answers are too many to wake anybody: whether they are fetched is looked at now and then.
                None => tokio::select! {
                    () = sleep(unread) => {}
                    () = self.changed.notified() => {}
                },
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
    unread: Duration,
    /// Requests come side by side, and bytes come also without any: they say nothing about headers.
    http2: bool,
    requests: usize,
    /// The requests so far.
    count: u64,
    /// Requests whose answer waits for its client to have room, and until when it may.
    waiting: Vec<(u64, Instant)>,
    /// The first bytes of a request's headers have come.
    begun: bool,
    /// Where there are any: on HTTP/2.
    frames: Option<Frames>,
    /// Anything at all has come.
    spoken: bool,
    closing: bool,
    /// `None` while a request is worked on.
    deadline: Option<Instant>,
}

impl State {
    fn new(limits: &Limits, http2: bool, now: Instant) -> Self {
        let Limits { headers, idle, unread, .. } = *limits;
        Self {
            headers,
            idle,
            unread,
            http2,
            requests: 0,
            count: 0,
            waiting: Vec::new(),
            begun: true,
            frames: http2.then(|| Frames::new(limits.header_bytes)),
            spoken: false,
            closing: false,
            deadline: Some(now + headers),
        }
    }

    /// When the connection is closed as things are. One on which any request gets on is not: behind a proxy one reader
    /// that sleeps must not cost the others theirs.
    fn deadline(&self) -> Option<Instant> {
        match self.requests > 0 && self.waiting.len() == self.requests {
            true => self.waiting.iter().map(|(_, until)| *until).max(),
            false => self.deadline,
        }
    }

    fn fault(&self, now: Instant) -> Option<Reason> {
        if self.frames.as_ref().is_some_and(Frames::is_out) {
            return Some(Reason::Http2);
        }
        match self.deadline() {
            Some(deadline) if deadline <= now => {}
            _ => return None,
        }
        match () {
            () if self.requests > 0 => Some(Reason::Unread),
            () if self.closing || !self.begun => None,
            () => Some(Reason::Headers),
        }
    }

    /// So many bytes of an answer were handed out. More are not asked for before the client has room for them.
    fn handed(&mut self, number: u64, bytes: usize, now: Instant) {
        let line = Duration::from_secs_f64(bytes as f64 / SLOWEST as f64);
        self.piece(bytes);
        self.waiting.push((number, now + self.unread + line));
    }

    /// A piece of a body or an answer: its bytes and frames are not for nothing.
    fn piece(&mut self, bytes: usize) {
        if let Some(frames) = &mut self.frames {
            frames.piece(bytes);
        }
    }

    /// There is room for more of an answer, or it has ended.
    fn asked(&mut self, number: u64) {
        self.waiting.retain(|(waiting, _)| *waiting != number);
    }

    /// Whether the deadline has changed.
    fn heard(&mut self, now: Instant) -> bool {
        self.spoken = true;
        let begins = self.requests == 0 && !self.begun && !self.http2;
        if begins {
            self.begun = true;
            self.deadline = Some(now + self.headers);
        }
        begins
    }

    /// A request's number.
    fn request(&mut self) -> u64 {
        self.requests += 1;
        self.begun = false;
        self.deadline = None;
        if let Some(frames) = &mut self.frames {
            frames.request();
        }
        self.count += 1;
        self.count
    }

    /// A request has ended. Where places are scarce nobody keeps one that is not in use.
    fn answered(&mut self, number: u64, now: Instant, scarce: bool) {
        self.asked(number);
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
pub struct Busy {
    pace: Arc<Pace>,
    number: u64,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let pace = &*self.pace;
        pace.lock().answered(self.number, Instant::now(), pace.places.scarce());
        pace.changed.notify_one();
    }
}

/// An answer whose pieces must be fetched: an HTTP/2 client that keeps its window closed reads nothing, is alive by all
/// that TCP can tell, and would keep its connection for good.
pub fn fetched(body: Body, mut busy: Busy) -> Body {
    // Its headers go out now.
    busy.came(0);
    Body::new(Watched { body, watch: busy })
}

impl Watch for Busy {
    fn asked(&mut self) {
        self.pace.lock().asked(self.number);
    }

    fn came(&mut self, bytes: usize) {
        self.pace.lock().handed(self.number, bytes, Instant::now());
    }
}

/// A request's body, whose bytes are not for nothing.
pub struct Sent(pub Arc<Pace>);

impl Watch for Sent {
    fn came(&mut self, bytes: usize) {
        // An empty piece is one more frame for nothing.
        if bytes > 0 {
            self.0.lock().piece(bytes);
        }
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
        let bytes = buffer.filled().len() - before;
        if bytes > 0 && !self.pace.heard(bytes) {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionAborted.into()));
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
        state.deadline().is_some_and(|deadline| deadline <= now)
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
        let one = state.request();
        now += seconds(3600);
        assert!(!late(&state, now));
        state.answered(one, now, false);
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
        let (one, two) = (state.request(), state.request());
        state.answered(one, now, false);
        now += seconds(3600);
        assert!(!late(&state, now), "one of two is still worked on");
        state.answered(two, now, false);
        for _ in 0..12 {
            now += seconds(10);
            state.heard(now);
        }
        assert!(late(&state, now));
    }

    #[test]
    fn a_connection_that_is_ended_has_a_reason_if_its_client_gave_one() {
        let mut now = Instant::now();
        for http2 in [false, true] {
            let mut state = state(http2, now);
            assert_eq!(state.fault(now), None);
            now += seconds(10);
            assert_eq!(state.fault(now), Some(Reason::Headers));
            let number = state.request();
            state.handed(number, 0, now);
            now += seconds(60);
            assert_eq!(state.fault(now), Some(Reason::Unread));
            state.answered(number, now, false);
            now += seconds(120);
            assert_eq!(state.fault(now), None, "it was kept for long enough");
            state.heard(now);
            now += seconds(10);
            assert_eq!(state.fault(now), (!http2).then_some(Reason::Headers));
        }
    }

    #[test]
    fn at_shutdown_a_request_is_ended_and_a_connection_without_one_is_not_waited_for() {
        let mut now = Instant::now();
        let mut state = state(false, now);
        let one = state.request();
        state.close(now);
        now += seconds(60);
        assert!(!late(&state, now));
        state.answered(one, now, false);
        assert!(late(&state, now + CLOSING));
    }

    #[test]
    fn where_places_are_scarce_an_idle_connection_gives_its_own_back() {
        let now = Instant::now();
        let mut state = state(false, now);
        let one = state.request();
        state.answered(one, now, true);
        assert!(late(&state, now + CLOSING));
    }

    #[test]
    fn an_answer_that_nobody_fetches_ends_its_connection_unless_another_gets_on() {
        let mut now = Instant::now();
        let mut state = state(true, now);
        let (stuck, good) = (state.request(), state.request());
        state.handed(stuck, 0, now);
        now += seconds(60);
        assert!(!late(&state, now), "the other is worked on");
        state.handed(good, 0, now);
        assert!(!late(&state, now + seconds(59)) && late(&state, now + seconds(60)));
        now += seconds(59);
        state.asked(good);
        assert!(!late(&state, now + seconds(3600)), "an engine may take its time");
        state.answered(good, now, false);
        assert!(late(&state, now), "nothing but the one that is stuck");
        state.asked(stuck);
        // Much at once has the time of a slow line.
        state.handed(stuck, 1 << 20, now);
        assert!(!late(&state, now + seconds(123)) && late(&state, now + seconds(125)));
    }
}
