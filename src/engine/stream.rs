//! The stream of a request's events, from the loop to its reader (step 10 in the life of a request).
//!
//! A ring of fixed size per request: sending allocates nothing and never waits, so the loop cannot be held up by a
//! reader. The positions are two counters; a slot's lock is only ever taken by the side whose turn it is at that slot,
//! so it is never contended. Dropping the reader is how a request is cancelled.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use futures::Stream;
use futures::stream::FusedStream;
use futures::task::AtomicWaker;

use super::replicas::Outstanding;
use super::request::Event;

/// Wakes the engine's thread. `rung` says that somebody left, or that a full ring has room again.
#[derive(Default)]
pub(crate) struct Bell {
    thread: OnceLock<Thread>,
    rung: AtomicBool,
}

impl Bell {
    pub(crate) fn hang(&self, thread: Thread) {
        let _ = self.thread.set(thread);
    }

    /// Something changed that the loop must look at.
    pub(crate) fn ring(&self) {
        self.rung.store(true, Ordering::SeqCst);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Whether it was rung since it was asked last.
    pub(crate) fn answered(&self) -> bool {
        self.rung.swap(false, Ordering::SeqCst)
    }
}

struct Ring {
    slots: Box<[Mutex<Option<Event>>]>,
    /// Events taken and events put, ever. Their difference is what lies in the ring.
    taken: AtomicUsize,
    put: AtomicUsize,
    /// Set once: how the stream ended, and why if it failed.
    end: OnceLock<Option<String>>,
    reader: AtomicWaker,
    /// The reader is gone.
    left: AtomicBool,
    /// Choices nobody reads any more.
    cancelled: Box<[AtomicBool]>,
    /// The loop waits for room.
    full: AtomicBool,
    bell: Arc<Bell>,
}

impl Ring {
    fn slot(&self, at: usize) -> &Mutex<Option<Event>> {
        &self.slots[at % self.slots.len()]
    }

    fn pop(&self) -> Option<Event> {
        let at = self.taken.load(Ordering::Relaxed);
        if at == self.put.load(Ordering::Acquire) {
            return None;
        }
        let event = self.slot(at).lock().unwrap_or_else(PoisonError::into_inner).take();
        self.taken.store(at + 1, Ordering::SeqCst);
        if self.full.swap(false, Ordering::SeqCst) {
            self.bell.ring();
        }
        event
    }
}

/// Makes both ends. `room` events fit.
pub(crate) fn channel(room: usize, choices: u32, bell: Arc<Bell>) -> (Events, Tokens) {
    let ring = Arc::new(Ring {
        slots: (0..room.max(1)).map(|_| Mutex::new(None)).collect(),
        taken: AtomicUsize::new(0),
        put: AtomicUsize::new(0),
        end: OnceLock::new(),
        reader: AtomicWaker::new(),
        left: AtomicBool::new(false),
        cancelled: (0..choices).map(|_| AtomicBool::new(false)).collect(),
        full: AtomicBool::new(false),
        bell,
    });
    (Events { ring: ring.clone() }, Tokens { ring, over: false, share: None })
}

/// The loop's end. Dropped without an end, it ends the stream as failed.
pub(crate) struct Events {
    ring: Arc<Ring>,
}

impl Events {
    /// How many more events fit.
    pub(crate) fn room(&self) -> usize {
        let ring = &*self.ring;
        ring.slots.len() - (ring.put.load(Ordering::Relaxed) - ring.taken.load(Ordering::SeqCst))
    }

    /// Asks for a ring of the bell when the reader takes an event. Returns the room as it is after asking, so that an
    /// event taken just before is not missed.
    pub(crate) fn await_room(&self) -> usize {
        self.ring.full.store(true, Ordering::SeqCst);
        self.room()
    }

    /// Sends. The caller has asked for room; a full ring is a broken invariant.
    pub(crate) fn send(&mut self, event: Event) {
        assert!(self.room() > 0, "bug: an event was sent into a full stream");
        let at = self.ring.put.load(Ordering::Relaxed);
        *self.ring.slot(at).lock().unwrap_or_else(PoisonError::into_inner) = Some(event);
        self.ring.put.store(at + 1, Ordering::Release);
        self.ring.reader.wake();
    }

    /// Ends the stream; only the first end counts.
    pub(crate) fn end(&mut self, failed: Option<String>) {
        let _ = self.ring.end.set(failed);
        self.ring.reader.wake();
    }

    /// Whether nobody reads this choice any more.
    pub(crate) fn left(&self, choice: u32) -> bool {
        self.ring.left.load(Ordering::Relaxed) || self.ring.cancelled[choice as usize].load(Ordering::Relaxed)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.end(Some("the engine stopped".into()));
    }
}

/// The events of a request. Dropping it cancels the request: it is out of the next step that is planned.
#[must_use = "dropping the stream cancels the request"]
pub struct Tokens {
    ring: Arc<Ring>,
    over: bool,
    /// Where there are several replicas: what this request counts for at its own, given back when the stream is dropped.
    share: Option<Outstanding>,
}

impl Tokens {
    pub(crate) fn holding(self, share: Outstanding) -> Self {
        // The stream is cancelled by its drop, so its parts cannot be moved out of it.
        let mut tokens = self;
        tokens.share = Some(share);
        tokens
    }

    /// Ends one choice without a word, because its text met a stop string, say. Events of it that are already on
    /// their way still come. When every choice is cancelled or finished, the stream ends.
    pub fn cancel(&self, choice: u32) {
        if let Some(flag) = self.ring.cancelled.get(choice as usize) {
            flag.store(true, Ordering::SeqCst);
            self.ring.bell.ring();
        }
    }

    /// The next event, waiting for it on this thread. Not for async code.
    pub fn next_blocking(&mut self) -> Option<Event> {
        struct Unpark(Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            match Pin::new(&mut *self).poll_next(&mut context) {
                Poll::Ready(event) => return event,
                Poll::Pending => thread::park(),
            }
        }
    }
}

impl Stream for Tokens {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(event) = self.ring.pop() {
            return Poll::Ready(Some(event));
        }
        self.ring.reader.register(context.waker());
        // The end is read before the ring: what was put before the end is still delivered.
        let end = self.ring.end.get().cloned();
        if let Some(event) = self.ring.pop() {
            return Poll::Ready(Some(event));
        }
        match end {
            None => Poll::Pending,
            Some(failed) => {
                self.over = true;
                self.share = None;
                Poll::Ready(failed.map(|error| Event::Failed { error }))
            }
        }
    }
}

impl FusedStream for Tokens {
    fn is_terminated(&self) -> bool {
        self.over
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.ring.left.store(true, Ordering::SeqCst);
        self.ring.bell.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::request::Finish;

    fn token(token: u32) -> Event {
        Event::Token { choice: 0, token, logprobs: None }
    }

    #[test]
    fn events_arrive_in_order_through_a_ring_much_smaller_than_their_number() {
        let (mut events, mut tokens) = channel(3, 1, Arc::default());
        let writer = thread::spawn(move || {
            for t in 0..10_000 {
                while events.room() == 0 {
                    thread::yield_now();
                }
                events.send(token(t));
            }
            events.end(None);
        });
        let mut got = 0;
        while let Some(event) = tokens.next_blocking() {
            assert_eq!(event, token(got));
            got += 1;
        }
        assert_eq!(got, 10_000);
        writer.join().unwrap();
    }

    #[test]
    fn what_was_sent_before_the_end_is_read_before_the_end() {
        let (mut events, mut tokens) = channel(4, 1, Arc::default());
        events.send(token(7));
        events.send(Event::Finished { choice: 0, reason: Finish::Stop });
        events.end(None);
        drop(events);
        assert_eq!(tokens.next_blocking(), Some(token(7)));
        assert_eq!(tokens.next_blocking(), Some(Event::Finished { choice: 0, reason: Finish::Stop }));
        assert_eq!(tokens.next_blocking(), None);
        assert_eq!(tokens.next_blocking(), None, "the end stays the end");
    }

    #[test]
    fn a_stream_whose_sender_vanished_fails_once_and_then_ends() {
        let (events, mut tokens) = channel(4, 1, Arc::default());
        drop(events);
        assert!(matches!(tokens.next_blocking(), Some(Event::Failed { .. })));
        assert_eq!(tokens.next_blocking(), None);
    }

    #[test]
    fn a_reader_that_makes_room_rings_when_the_loop_waits_for_it_and_not_otherwise() {
        let bell = Arc::new(Bell::default());
        let (mut events, mut tokens) = channel(2, 1, bell.clone());
        events.send(token(1));
        events.send(token(2));
        tokens.next_blocking();
        assert!(!bell.answered(), "nobody waited");
        events.send(token(3));
        assert_eq!(events.await_room(), 0);
        tokens.next_blocking();
        assert!(bell.answered());
        assert_eq!(events.room(), 1);
    }

    #[test]
    fn leaving_and_cancelling_are_seen_by_the_loop() {
        let bell = Arc::new(Bell::default());
        let (events, tokens) = channel(2, 2, bell.clone());
        assert!(!events.left(0) && !events.left(1));
        tokens.cancel(1);
        tokens.cancel(9);
        assert!(!events.left(0) && events.left(1));
        assert!(bell.answered());
        drop(tokens);
        assert!(events.left(0));
        assert!(bell.answered());
    }
}
