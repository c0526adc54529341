//! Reloading: settings that change without a restart.
//!
//! In two phases, so that a file with an error changes nothing: every part reads and checks what it needs, and only when
//! all of them could, all of them swap.

use std::sync::{Mutex, PoisonError};

use crate::audit::{Audit, Event, Who};
use crate::config::{ConfigError, Settings};

/// Puts a checked part of the settings in force. It cannot fail.
pub type Swap = Box<dyn FnOnce() + Send>;

/// Reads and checks one part.
pub type Prepare = Box<dyn Fn(&Settings) -> Result<Swap, ConfigError> + Send + Sync>;

/// Reads all settings again, as at the start.
pub type Read = Box<dyn Fn() -> Result<Settings, ConfigError> + Send + Sync>;

/// Everything that a reload changes.
pub struct Reload {
    read: Read,
    parts: Vec<(&'static str, Prepare)>,
    audit: Option<Audit>,
    /// One at a time: two that overlap could swap halves of each.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.parts.iter().map(|(name, _)| name)).finish()
    }
}

impl Reload {
    pub fn new(read: Read) -> Self {
        Self { read, parts: Vec::new(), audit: None, turn: Mutex::new(()) }
    }

    /// Adds a part; its name is for the log.
    pub fn part(
        mut self,
        name: &'static str,
        prepare: impl Fn(&Settings) -> Result<Swap, ConfigError> + Send + Sync + 'static,
    ) -> Self {
        self.parts.push((name, Box::new(prepare)));
        self
    }

    /// Reloads go into the audit log before anything is swapped; what cannot be recorded is not swapped.
    pub fn audited(self, audit: Audit) -> Self {
        Self { audit: Some(audit), ..self }
    }

    /// Reads, checks, and only then swaps; the names of what was swapped. The one who asked is the service manager.
    pub fn run(&self) -> Result<Vec<&'static str>, ConfigError> {
        self.run_by(&Who::Signal)
    }

    /// The same for somebody who is known.
    pub fn run_by(&self, who: &Who) -> Result<Vec<&'static str>, ConfigError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let prepared = self.prepare().inspect_err(|e| {
            if let Some(audit) = &self.audit {
                audit.note(who, &Event::ReloadRefused { origin: e.origin.clone(), what: e.what.clone() });
            }
        })?;
        if let Some(audit) = &self.audit {
            let parts = prepared.iter().map(|(name, _)| (*name).to_owned()).collect();
            audit.record(who, &Event::Reloaded { parts })?;
        }
        let names = prepared.into_iter().map(|(name, swap)| {
            swap();
            name
        });
        Ok(names.collect())
    }

    fn prepare(&self) -> Result<Vec<(&'static str, Swap)>, ConfigError> {
        let settings = (self.read)()?;
        self.parts.iter().map(|(name, prepare)| Ok((*name, prepare(&settings)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::config::{Layers, Origin};

    fn reload(second_fails: bool) -> (Reload, Arc<AtomicU32>) {
        let swapped = Arc::new(AtomicU32::new(0));
        let counting = |swapped: Arc<AtomicU32>| {
            move |_: &Settings| {
                let swapped = swapped.clone();
                Ok(Box::new(move || _ = swapped.fetch_add(1, Ordering::SeqCst)) as Swap)
            }
        };
        let reload = Reload::new(Box::new(|| Settings::of(&Layers::new())))
            .part("first", counting(swapped.clone()))
            .part("second", {
                let good = counting(swapped.clone());
                move |settings: &Settings| match second_fails {
                    true => Err(ConfigError::new(&Origin::Default, "half a certificate", "write all of it")),
                    false => good(settings),
                }
            });
        (reload, swapped)
    }

    #[test]
    fn all_parts_are_swapped_when_all_are_good() {
        let (reload, swapped) = reload(false);
        assert_eq!(reload.run().unwrap(), ["first", "second"]);
        assert_eq!(swapped.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn reloads_are_recorded_and_what_cannot_be_recorded_is_not_swapped() {
        let events = |audit: &Audit| {
            let mut events = Vec::new();
            let text = std::fs::read(audit.path()).unwrap();
            crate::audit::check(&text[..], None, |entry| events.push((entry.who, entry.event))).unwrap();
            events
        };
        let directory = tempfile::tempdir().unwrap();
        let audit = Audit::at(directory.path());
        let (good, swapped) = reload(false);
        let good = good.audited(audit.clone());
        good.run().unwrap();
        reload(true).0.audited(audit.clone()).run_by(&Who::Console).unwrap_err();
        let said =
            events(&audit).into_iter().map(|(who, event)| format!("{who} {event}")).collect::<Vec<_>>();
        assert_eq!(said, ["signal reloaded", "console reload_refused"]);
        std::fs::remove_file(audit.path()).unwrap();
        std::fs::create_dir(audit.path()).unwrap();
        let error = good.run().unwrap_err();
        assert!(error.what.contains("cannot be written"), "{error}");
        assert_eq!(swapped.load(Ordering::SeqCst), 2, "only the first one swapped");
    }

    #[test]
    fn one_bad_part_leaves_every_part_as_it_was() {
        let (reload, swapped) = reload(true);
        assert_eq!(reload.run().unwrap_err().what, "half a certificate");
        assert_eq!(swapped.load(Ordering::SeqCst), 0);
    }
}
