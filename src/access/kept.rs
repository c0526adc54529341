//! The keys in force and those on the disk: a reload, a look once a second at what the command line changed, and when
//! each key was used last.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::first::FirstKey;
use super::store::{self, Store};
use super::{Access, at_console, used};
use crate::config::{ConfigError, Settings, state};
use crate::reload::Swap;

/// Two files: the first key's and the store's.
pub(super) type Seen = [Option<(u64, i64, i64, u64)>; 2];

impl Access {
    /// Reads what a reload changes, and puts it in force when all other parts could be read too.
    pub fn prepare(self: &Arc<Self>, settings: &Settings) -> Result<Swap, ConfigError> {
        let seen = self.look();
        let (first, _) = FirstKey::of(settings)?;
        let (store, quotas) = (Store::read(&settings.state_dir)?, settings.quotas);
        let access = self.clone();
        Ok(Box::new(move || {
            let mut last = access.seen();
            access.strangers.limit(quotas.failures);
            access.at_console.limit(at_console(quotas.failures));
            access.users.limit(quotas.users);
            access.current.store(Arc::new(access.next(&store, first, quotas)));
            // What changed on the disk since then is read again within a second.
            *last = seen;
        }))
    }

    /// Looks whether the keys were changed on the disk, and reads them. What cannot be read changes nothing.
    pub fn refresh(&self) -> Result<bool, ConfigError> {
        let Some(directory) = &self.directory else { return Ok(false) };
        let mut seen = self.seen();
        let now = self.look();
        if *seen == now {
            return Ok(false);
        }
        // Noted before it is read: what is wrong with it is told once, and what comes after is read again.
        *seen = now;
        let current = self.current.load();
        let first = match current.first.chosen {
            true => current.first.clone(),
            false => FirstKey::of_state(directory)?.0,
        };
        let next = self.next(&Store::read(directory)?, first, current.quotas);
        self.current.store(Arc::new(next));
        Ok(true)
    }

    pub(super) fn look(&self) -> Option<Seen> {
        let directory = self.directory.as_ref()?;
        let look = |path: PathBuf| {
            let of = fs::metadata(path).ok()?;
            Some((of.ino(), of.mtime(), of.mtime_nsec(), of.size()))
        };
        Some([look(state::key_path(directory)), look(directory.join(store::FILE))])
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Option<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When each key was used last, in seconds since 1970.
    pub fn used(&self) -> used::Used {
        let current = self.current.load();
        let all = current.holders.values().chain([&current.first_holder]);
        let used = all.map(|holder| (holder.id.clone(), holder.used.load(Ordering::Relaxed)));
        used.filter(|(_, time)| *time > 0).collect()
    }

    /// Keeps the keys as they are on the disk, and what is remembered of callers small; for a task of its own.
    pub async fn keep(self: Arc<Self>) {
        let mut written = self.used();
        for second in 1_u64.. {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let (access, last) = (self.clone(), written.clone());
            let turn = tokio::task::spawn_blocking(move || access.turn(second, last));
            written = turn.await.unwrap_or_default();
        }
    }

    /// What is to be done in one second of [`Access::keep`].
    fn turn(&self, second: u64, written: used::Used) -> used::Used {
        match self.refresh() {
            Ok(true) => tracing::info!("the keys were read again, as they changed on the disk"),
            Ok(false) => {}
            Err(e) => tracing::error!("the keys stay as they were: {e} ({}); {}", e.origin, e.fix),
        }
        if !second.is_multiple_of(60) {
            return written;
        }
        self.strangers.tidy();
        self.at_console.tidy();
        self.users.tidy();
        self.flush(written)
    }

    /// Writes when keys were used, if that is not what is written.
    fn flush(&self, written: used::Used) -> used::Used {
        let now = self.used();
        if let Some(directory) = self.directory.as_ref().filter(|_| now != written)
            && let Err(e) = used::write(directory, &now)
        {
            tracing::warn!("when keys were used last cannot be written to {}: {e}", directory.display());
        }
        now
    }

    /// The last words of a server.
    pub fn close(&self) {
        self.flush(used::Used::new());
    }
}
