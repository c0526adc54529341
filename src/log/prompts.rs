//! Prompts and answers in the log: never, but for a time that an administrator asked for. The switch is in memory
//! alone, so a restart turns it off too, and no setting can turn it on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where these lines come from, for filters. They are written and not kept in memory.
pub const TARGET: &str = "hearth::prompts";

/// As long as it can be asked for at once.
pub const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The process's own.
pub static PROMPTS: Prompts = Prompts { on: AtomicBool::new(false), until: Mutex::new(None) };

/// The switch.
pub struct Prompts {
    /// Asked for every request, so without a lock while it is off.
    on: AtomicBool,
    until: Mutex<Option<Instant>>,
}

impl Prompts {
    pub fn on(&self, time: Duration) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + time.min(LONGEST));
        self.on.store(true, Ordering::Release);
    }

    pub fn off(&self) {
        self.on.store(false, Ordering::Release);
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How long it is still on, if it is.
    pub fn left(&self) -> Option<Duration> {
        self.left_at(Instant::now())
    }

    fn left_at(&self, now: Instant) -> Option<Duration> {
        if !self.on.load(Ordering::Acquire) {
            return None;
        }
        let until = (*self.until.lock().unwrap_or_else(PoisonError::into_inner))?;
        let left = until.checked_duration_since(now).filter(|left| !left.is_zero());
        if left.is_none() {
            self.off();
        }
        left
    }

    /// Tells the log a prompt, if it is on. The answer follows when the recording is dropped.
    pub fn recording(&self, id: &str, model: &str, prompt: impl FnOnce() -> String) -> Option<Recording> {
        self.left()?;
        tracing::info!(target: TARGET, id, model, prompt = prompt(), "a prompt");
        Some(Recording { id: id.into(), model: model.into(), answer: String::new() })
    }
}

/// An answer that is put together for the log.
pub struct Recording {
    id: Arc<str>,
    model: Arc<str>,
    answer: String,
}

impl Recording {
    pub fn add(&mut self, text: &str) {
        self.answer += text;
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // It may have been switched off, or have run out, meanwhile.
        if PROMPTS.left().is_some() {
            tracing::info!(target: TARGET, id = &*self.id, model = &*self.model, answer = self.answer, "an answer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_by_itself() {
        let switch = Prompts { on: AtomicBool::new(false), until: Mutex::new(None) };
        assert!(switch.recording("id", "m", || unreachable!("no prompt is even read")).is_none());
        switch.on(Duration::from_secs(60));
        let now = Instant::now();
        assert!(switch.left_at(now).is_some());
        assert_eq!(switch.left_at(now + Duration::from_secs(61)), None);
        assert_eq!(switch.left_at(now), None, "once over it stays off");
        switch.on(LONGEST * 10);
        assert!(switch.left().is_some_and(|left| left <= LONGEST));
        switch.off();
        assert_eq!(switch.left(), None);
    }
}
