//! Who may call, and how much (step 2 in the life of a request).
//!
//! [`key`] is the text of a key and what is kept of it, [`grant`] what it opens, [`store`] the file, [`change`] how the file is
//! changed. [`Access`] is what the guard asks with every request: it has the keys in memory and swaps them when the file or the
//! settings change. [`rates`] are limits of keys, [`users`] those of GitLab's users, [`strangers`] those who have no key.

pub mod change;
pub mod first;
pub mod grant;
pub mod key;
pub mod permitted;
pub mod rates;
pub mod refusal;
pub mod store;
mod strangers;
pub mod used;
mod users;

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

pub use change::Keys;
pub use first::{FIRST, FirstKey};
pub use grant::{Class, Grant};
pub use permitted::Permitted;
pub use rates::{Amounts, Full, Meter, Permit};
pub use refusal::Refusal;

use crate::config::{ConfigError, Settings, state};
use crate::duo::identity::Wall;
use crate::engine::clock::{Clock, Monotonic};
use crate::reload::Swap;
use key::Pepper;
use rates::Rates;
use store::Store;
use strangers::Strangers;
use users::Users;

/// The limits of the settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Of each key that has none of its own. The first key has none.
    pub keys: Amounts,
    /// Of each GitLab user.
    pub users: Amounts,
    /// Wrong keys that an address may send in a minute; 0: any number.
    pub failures: u32,
}

/// A key that is in force.
#[derive(Debug)]
pub struct Holder {
    pub id: String,
    pub name: String,
    pub grant: Grant,
    mac: Option<key::Mac>,
    rates: Arc<Rates>,
    /// Seconds since 1970; 0: never.
    used: Arc<AtomicI64>,
}

impl Holder {
    /// For the audit log.
    pub fn who(&self) -> crate::audit::Who {
        crate::audit::Who::Key { id: self.id.clone(), name: self.name.clone() }
    }
}

/// A request's right to be answered: whose it is, and its place among those that run. It lives as long as the answer.
pub struct Pass {
    pub holder: Arc<Holder>,
    permit: Permit,
}

impl Pass {
    /// What counts the tokens that this request takes.
    pub fn meter(&self) -> Meter {
        self.permit.meter()
    }
}

/// What is in force now.
struct Current {
    first: FirstKey,
    first_holder: Arc<Holder>,
    pepper: Option<Pepper>,
    holders: HashMap<String, Arc<Holder>>,
    quotas: Quotas,
}

type Labels = [(&'static str, &'static str); 1];

/// The keys in force, and who may ask how much.
pub struct Access {
    current: ArcSwap<Current>,
    strangers: Strangers,
    users: Users,
    wall: Arc<dyn Clock>,
    ticks: Arc<dyn Clock>,
    /// Where the keys are kept; `None` in a server without a store.
    directory: Option<PathBuf>,
    /// What the files looked like when they were read.
    seen: Mutex<Option<Seen>>,
    refused: Family<Labels, Counter>,
    limited: Family<Labels, Counter>,
}

/// Two files: the first key's and the store's.
type Seen = [Option<(u64, i64, i64, u64)>; 2];

impl Access {
    /// One key that opens everything, and no limits.
    pub fn single(first: FirstKey) -> Self {
        Self::with(first, None, Quotas::default(), Arc::new(Wall), Arc::new(Monotonic::default()))
    }

    /// The keys of a state directory beside the first one. The clocks are the time of day and one for rates.
    pub fn open(first: FirstKey, directory: &Path, quotas: Quotas) -> Result<Self, ConfigError> {
        Self::clocked(first, directory, quotas, Arc::new(Wall), Arc::new(Monotonic::default()))
    }

    /// The same with clocks of one's own.
    pub fn clocked(
        first: FirstKey,
        directory: &Path,
        quotas: Quotas,
        wall: Arc<dyn Clock>,
        ticks: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        let access = Self::with(first, Some(directory.to_owned()), quotas, wall, ticks);
        let used = used::read(directory);
        *access.seen() = access.look();
        let next = access.next(&Store::read(directory)?, access.current.load().first.clone(), quotas)?;
        for (id, holder) in &next.holders {
            holder.used.store(used.get(id).copied().unwrap_or(0), Ordering::Relaxed);
        }
        next.first_holder.used.store(used.get(FIRST).copied().unwrap_or(0), Ordering::Relaxed);
        access.current.store(Arc::new(next));
        Ok(access)
    }

    fn with(
        first: FirstKey,
        directory: Option<PathBuf>,
        quotas: Quotas,
        wall: Arc<dyn Clock>,
        ticks: Arc<dyn Clock>,
    ) -> Self {
        let first_holder = Arc::new(Holder {
            id: FIRST.to_owned(),
            name: FIRST.to_owned(),
            grant: Grant::everything(),
            mac: None,
            rates: Arc::new(Rates::new(Amounts::default(), ticks.clone())),
            used: Arc::default(),
        });
        let current = Current { first, first_holder, pepper: None, holders: HashMap::new(), quotas };
        Self {
            current: ArcSwap::from_pointee(current),
            strangers: Strangers::new(quotas.failures, ticks.clone()),
            users: Users::new(quotas.users, ticks.clone()),
            wall,
            ticks,
            directory,
            seen: Mutex::default(),
            refused: Family::default(),
            limited: Family::default(),
        }
    }

    /// What a store says, as it would be in force. Keys that stay keep what they used up.
    fn next(&self, store: &Store, first: FirstKey, quotas: Quotas) -> Result<Current, ConfigError> {
        let before = self.current.load();
        let grants = store.grants().expect("bug: a store is checked when it is read");
        let holders = grants.into_iter().map(|(record, grant)| {
            let amounts = Amounts {
                requests: record.requests.unwrap_or(quotas.keys.requests),
                tokens: record.tokens.unwrap_or(quotas.keys.tokens),
                concurrent: record.concurrent.unwrap_or(quotas.keys.concurrent),
            };
            let old = before.holders.get(&record.id);
            let rates = match old {
                Some(old) => old.rates.with(amounts),
                None => Arc::new(Rates::new(amounts, self.ticks.clone())),
            };
            let holder = Holder {
                id: record.id.clone(),
                name: record.name.clone(),
                grant,
                mac: Some(record.mac.clone()),
                rates,
                used: old.map(|old| old.used.clone()).unwrap_or_default(),
            };
            (record.id.clone(), Arc::new(holder))
        });
        Ok(Current {
            first,
            first_holder: before.first_holder.clone(),
            holders: holders.collect(),
            pepper: store.pepper.clone(),
            quotas,
        })
    }

    /// Whose key this is, if it is good at this time and place. Limits are not asked.
    pub fn recognise(&self, given: Option<&str>, peer: Option<IpAddr>) -> Result<Arc<Holder>, Refusal> {
        self.known(given, peer).inspect_err(|refusal| {
            self.refused.get_or_create(&[("reason", refusal.reason())]).inc();
        })
    }

    fn known(&self, given: Option<&str>, peer: Option<IpAddr>) -> Result<Arc<Holder>, Refusal> {
        let given = given.ok_or(Refusal::None)?;
        let current = self.current.load();
        let holder = match key::id_of(given).and_then(|id| current.holders.get(id)) {
            Some(holder) => {
                let mac = holder.mac.as_ref().zip(current.pepper.as_ref());
                mac.is_some_and(|(mac, pepper)| pepper.is(given, mac)).then(|| holder.clone())
            }
            None => {
                if current.first.chosen
                    && let Some(retry_after) = self.strangers.must_wait(peer)
                {
                    return Err(Refusal::Stranger { retry_after });
                }
                current.first.is(given).then(|| current.first_holder.clone())
            }
        };
        let Some(holder) = holder else {
            return Err(match self.strangers.failed(peer) {
                Some(retry_after) => Refusal::Stranger { retry_after },
                None => Refusal::Wrong,
            });
        };
        self.good(holder, peer)
    }

    /// Whether a key may still be used, now and from there.
    fn good(&self, holder: Arc<Holder>, peer: Option<IpAddr>) -> Result<Arc<Holder>, Refusal> {
        let (now, id) = (self.wall.now().as_secs() as i64, holder.id.clone());
        if holder.grant.revoked {
            return Err(Refusal::Revoked { id });
        }
        if holder.grant.expires.is_some_and(|end| end <= now) {
            return Err(Refusal::Expired { id });
        }
        if !holder.grant.admits(peer) {
            return Err(Refusal::Address { id, peer });
        }
        holder.used.store(now, Ordering::Relaxed);
        Ok(holder)
    }

    /// The holder with that id, who came in with its key before and is known by a session since. Whether the key is
    /// still good, and for that class, is asked anew.
    pub fn still(&self, id: &str, peer: Option<IpAddr>, class: Class) -> Result<Arc<Holder>, Refusal> {
        let current = self.current.load();
        let holder = match id == FIRST {
            true => current.first_holder.clone(),
            false => current.holders.get(id).cloned().ok_or(Refusal::Wrong)?,
        };
        let holder = self.good(holder, peer)?;
        match holder.grant.classes.contains(&class) {
            true => Ok(holder),
            false => Err(Refusal::Class { id: id.to_owned(), class }),
        }
    }

    /// Lets one request of such a holder in.
    pub fn admit_still(&self, id: &str, peer: Option<IpAddr>, class: Class) -> Result<Pass, Refusal> {
        let holder = self.still(id, peer, class)?;
        match holder.rates.admit() {
            Ok(permit) => Ok(Pass { holder, permit }),
            Err(full) => {
                self.limited.get_or_create(&[("scope", "key")]).inc();
                Err(Refusal::Full { id: id.to_owned(), full })
            }
        }
    }

    /// Lets one request of a key in, or says why not.
    pub fn admit(&self, given: Option<&str>, peer: Option<IpAddr>, class: Class) -> Result<Pass, Refusal> {
        let holder = self.recognise(given, peer)?;
        let id = || holder.id.clone();
        if !holder.grant.classes.contains(&class) {
            self.refused.get_or_create(&[("reason", "class")]).inc();
            return Err(Refusal::Class { id: id(), class });
        }
        match holder.rates.admit() {
            Ok(permit) => Ok(Pass { holder, permit }),
            Err(full) => {
                self.limited.get_or_create(&[("scope", "key")]).inc();
                Err(Refusal::Full { id: id(), full })
            }
        }
    }

    /// Lets one request of a GitLab user in. `None`: there are no limits.
    pub fn admit_user(&self, user: &str) -> Result<Option<Permit>, Full> {
        self.users.admit(user).inspect_err(|_| {
            self.limited.get_or_create(&[("scope", "user")]).inc();
        })
    }

    /// Reads what a reload changes, and puts it in force when all other parts could be read too.
    pub fn prepare(self: &Arc<Self>, settings: &Settings) -> Result<Swap, ConfigError> {
        let seen = self.look();
        let (first, _) = FirstKey::of(settings)?;
        let next = self.next(&Store::read(&settings.state_dir)?, first, settings.quotas)?;
        let access = self.clone();
        Ok(Box::new(move || {
            access.strangers.limit(next.quotas.failures);
            access.users.limit(next.quotas.users);
            access.current.store(Arc::new(next));
            *access.seen() = seen;
        }))
    }

    /// Looks whether the keys were changed on the disk, and reads them. What cannot be read changes nothing.
    pub fn refresh(&self) -> Result<bool, ConfigError> {
        let Some(directory) = &self.directory else { return Ok(false) };
        let now = self.look();
        if *self.seen() == now {
            return Ok(false);
        }
        // Noted before it is read: what is wrong with it is told once, and what comes after is read again.
        *self.seen() = now;
        let current = self.current.load();
        let first = match current.first.chosen {
            true => current.first.clone(),
            false => FirstKey::of_state(directory)?.0,
        };
        let next = self.next(&Store::read(directory)?, first, current.quotas)?;
        self.current.store(Arc::new(next));
        Ok(true)
    }

    fn look(&self) -> Option<Seen> {
        let directory = self.directory.as_ref()?;
        let look = |path: PathBuf| {
            let of = fs::metadata(path).ok()?;
            Some((of.ino(), of.mtime(), of.mtime_nsec(), of.size()))
        };
        Some([look(state::key_path(directory)), look(directory.join(store::FILE))])
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Option<Seen>> {
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

    /// Figures without a name or an address.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Requests whose API key was refused, by reason";
        registry.register("auth_failures", help, self.refused.clone());
        let help = "Requests refused for the limits of their key or their GitLab user";
        registry.register("rate_limited", help, self.limited.clone());
    }
}
