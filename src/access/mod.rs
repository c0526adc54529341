//! Who may call, and how much (step 2 in the life of a request).
//!
//! [`key`] is the text of a key and what is kept of it, [`grant`] what it opens, [`store`] the file, [`change`] how the file is
//! changed. [`Access`] is what the guard asks with every request: it has the keys in memory and swaps them when the file or the
//! settings change. [`rates`] are limits of keys, [`users`] those of GitLab's users, [`strangers`] those who have no key.

pub mod change;
pub mod first;
pub mod grant;
mod holder;
mod kept;
pub mod key;
pub mod permitted;
pub mod rates;
pub mod refusal;
pub mod store;
mod strangers;
pub mod used;
mod users;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

pub use change::Keys;
pub use first::{FIRST, FirstKey};
pub use grant::{Class, Grant};
pub use holder::{Holder, Known, Pass};
pub use permitted::Permitted;
pub use rates::{Amounts, Full, Meter, Permit};
pub use refusal::Refusal;

use crate::config::ConfigError;
use crate::duo::identity::Wall;
use crate::engine::clock::{Clock, Monotonic};
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

/// Wrong keys a minute at the console where `limits.failures` is 0: each of them is a line of the audit log.
const AT_CONSOLE: u32 = 20;

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
    /// Those at the console, who come from this host as the API's callers may: they must not lock these out.
    at_console: Strangers,
    users: Users,
    wall: Arc<dyn Clock>,
    ticks: Arc<dyn Clock>,
    /// Where the keys are kept; `None` in a server without a store.
    directory: Option<PathBuf>,
    /// What the files looked like when they were read. Whoever changes `current` holds it from the first look at what
    /// is there to the end, or it would put back what somebody else has changed meanwhile.
    seen: Mutex<Option<kept::Seen>>,
    refused: Family<Labels, Counter>,
    limited: Family<Labels, Counter>,
}

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
        let next = access.next(&Store::read(directory)?, access.current.load().first.clone(), quotas);
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
            generation: 0,
            mac: None,
            rates: Arc::new(Rates::new(Amounts::default(), ticks.clone())),
            used: Arc::default(),
        });
        let current = Current { first, first_holder, pepper: None, holders: HashMap::new(), quotas };
        Self {
            current: ArcSwap::from_pointee(current),
            strangers: Strangers::new(quotas.failures, ticks.clone()),
            at_console: Strangers::new(at_console(quotas.failures), ticks.clone()),
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
    fn next(&self, store: &Store, first: FirstKey, quotas: Quotas) -> Current {
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
                generation: 0,
                mac: Some(record.mac.clone()),
                rates,
                used: old.map(|old| old.used.clone()).unwrap_or_default(),
            };
            (record.id.clone(), Arc::new(holder))
        });
        let old = &before.first_holder;
        let first_holder = match first.is(before.first.expose()) {
            true => old.clone(),
            // Sessions of the old text end.
            false => Arc::new(Holder {
                id: old.id.clone(),
                name: old.name.clone(),
                grant: old.grant.clone(),
                generation: old.generation + 1,
                mac: None,
                rates: old.rates.clone(),
                used: old.used.clone(),
            }),
        };
        let holders = holders.collect();
        Current { first, first_holder, holders, pepper: store.pepper.clone(), quotas }
    }

    /// Whose key this is, if it is good at this time and place. Limits are not asked.
    pub fn recognise(&self, given: Option<&str>, peer: Option<IpAddr>) -> Result<Arc<Holder>, Refusal> {
        self.recognised(given, peer, &self.strangers)
    }

    fn recognised(
        &self,
        given: Option<&str>,
        peer: Option<IpAddr>,
        strangers: &Strangers,
    ) -> Result<Arc<Holder>, Refusal> {
        self.known(given, peer, strangers).inspect_err(|refusal| {
            self.refused.get_or_create(&[("reason", refusal.reason())]).inc();
        })
    }

    fn known(
        &self,
        given: Option<&str>,
        peer: Option<IpAddr>,
        strangers: &Strangers,
    ) -> Result<Arc<Holder>, Refusal> {
        let given = given.ok_or(Refusal::None)?;
        let current = self.current.load();
        let holder = match key::id_of(given).and_then(|id| current.holders.get(id)) {
            Some(holder) => {
                let mac = holder.mac.as_ref().zip(current.pepper.as_ref());
                mac.is_some_and(|(mac, pepper)| pepper.is(given, mac)).then(|| holder.clone())
            }
            None => {
                if current.first.chosen
                    && let Some(retry_after) = strangers.must_wait(peer)
                {
                    return Err(Refusal::Stranger { retry_after });
                }
                current.first.is(given).then(|| current.first_holder.clone())
            }
        };
        let Some(holder) = holder else {
            return Err(match strangers.failed(peer) {
                Some(retry_after) => Refusal::Stranger { retry_after },
                None => Refusal::Wrong,
            });
        };
        self.good(&holder, peer)?;
        holder.is_used(self.now());
        Ok(holder)
    }

    fn now(&self) -> i64 {
        self.wall.now().as_secs() as i64
    }

    /// Whether a key may still be used, now and from there.
    fn good(&self, holder: &Holder, peer: Option<IpAddr>) -> Result<(), Refusal> {
        let id = || holder.id.clone();
        if holder.grant.revoked {
            return Err(Refusal::Revoked { id: id() });
        }
        if holder.grant.expires.is_some_and(|end| end <= self.now()) {
            return Err(Refusal::Expired { id: id() });
        }
        match holder.grant.admits(peer) {
            true => Ok(()),
            false => Err(Refusal::Address { id: id(), peer }),
        }
    }

    /// The first key as it is now, for sessions that come in without any key.
    pub fn first(&self) -> Known {
        self.current.load().first_holder.known()
    }

    /// Whether a key that somebody came in with before is still good, and for that class. It is not used by that.
    pub fn lasts(&self, known: &Known, peer: Option<IpAddr>, class: Class) -> Result<Arc<Holder>, Refusal> {
        let current = self.current.load();
        let holder = match known.id == FIRST {
            true => &current.first_holder,
            false => current.holders.get(&known.id).ok_or(Refusal::Wrong)?,
        };
        if holder.generation != known.generation {
            return Err(Refusal::Wrong);
        }
        self.good(holder, peer)?;
        match holder.grant.classes.contains(&class) {
            true => Ok(holder.clone()),
            false => Err(Refusal::Class { id: known.id.clone(), class }),
        }
    }

    /// The same for a request of a session's: it uses the key.
    pub fn still(&self, known: &Known, peer: Option<IpAddr>, class: Class) -> Result<Arc<Holder>, Refusal> {
        let holder = self.lasts(known, peer, class)?;
        holder.is_used(self.now());
        Ok(holder)
    }

    /// Lets one request of such a holder in.
    pub fn admit_still(&self, known: &Known, peer: Option<IpAddr>, class: Class) -> Result<Pass, Refusal> {
        self.pass(self.still(known, peer, class)?)
    }

    /// Lets one request of a key in, or says why not.
    pub fn admit(&self, given: Option<&str>, peer: Option<IpAddr>, class: Class) -> Result<Pass, Refusal> {
        self.admitted(given, peer, class, &self.strangers)
    }

    /// The same for the console.
    pub fn admit_at_console(&self, given: &str, peer: Option<IpAddr>) -> Result<Pass, Refusal> {
        self.admitted(Some(given), peer, Class::Admin, &self.at_console)
    }

    /// Counts what was no wrong key and did not open the console either. Seconds to wait, if it was one too many.
    pub fn failed_at_console(&self, peer: Option<IpAddr>) -> Option<u32> {
        self.at_console.failed(peer)
    }

    fn admitted(
        &self,
        given: Option<&str>,
        peer: Option<IpAddr>,
        class: Class,
        strangers: &Strangers,
    ) -> Result<Pass, Refusal> {
        let holder = self.recognised(given, peer, strangers)?;
        if !holder.grant.classes.contains(&class) {
            self.refused.get_or_create(&[("reason", "class")]).inc();
            return Err(Refusal::Class { id: holder.id.clone(), class });
        }
        self.pass(holder)
    }

    fn pass(&self, holder: Arc<Holder>) -> Result<Pass, Refusal> {
        match holder.rates.admit() {
            Ok(permit) => Ok(Pass { holder, permit }),
            Err(full) => {
                self.limited.get_or_create(&[("scope", "key")]).inc();
                Err(Refusal::Full { id: holder.id.clone(), full })
            }
        }
    }

    /// Lets one request of a GitLab user in. `None`: there are no limits.
    pub fn admit_user(&self, user: &str) -> Result<Option<Permit>, Full> {
        self.users.admit(user).inspect_err(|_| {
            self.limited.get_or_create(&[("scope", "user")]).inc();
        })
    }

    /// Figures without a name or an address.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Requests whose API key was refused, by reason";
        registry.register("auth_failures", help, self.refused.clone());
        let help = "Requests refused for the limits of their key or their GitLab user";
        registry.register("rate_limited", help, self.limited.clone());
    }
}

/// The console's limit of failures for that of the API.
fn at_console(failures: u32) -> u32 {
    match failures {
        0 => AT_CONSOLE,
        failures => failures,
    }
}
