//! Who is at the console: links that work once, and the sessions behind a browser's cookie. All of it is in memory, and
//! as hashes: a restart signs everybody out, and a core dump holds no way in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};

use crate::access::Known;
use crate::audit::Who;

/// A link must be opened this soon.
const LINK: Duration = Duration::from_secs(600);
/// A session nobody uses ends, and every session ends after a day.
const IDLE: Duration = Duration::from_secs(3600);
const WHOLE: Duration = Duration::from_secs(24 * 3600);
/// The oldest gives way.
const MOST: usize = 64;

pub const COOKIE: &str = "hearth_console";

type Hash = [u8; 32];

fn hash(text: &str) -> Hash {
    digest(&SHA256, text.as_bytes()).as_ref().try_into().expect("bug: SHA-256 has 32 bytes")
}

/// 256 random bits in hexadecimal.
fn token() -> String {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("bug: the system gives no random numbers");
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// One browser.
pub struct Session {
    /// The holder of a key, or who asked for the link.
    pub who: Who,
    /// The key that it came in with; with a link the first one as it was then. The session ends with it, and its limits
    /// count in the playground.
    pub key: Known,
    /// What a form or a script must send with a change.
    pub csrf: String,
    began: Instant,
    used: Mutex<Instant>,
    /// What is to be said on the next page.
    told: Mutex<Option<(bool, String)>>,
}

impl Session {
    /// For the next page: whether it went well, and what to say.
    pub fn tell(&self, well: bool, text: impl Into<String>) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some((well, text.into()));
    }

    pub fn told(&self) -> Option<(bool, String)> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn lives(&self, now: Instant) -> bool {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        now < used + IDLE && now < self.began + WHOLE
    }
}

/// A way in that somebody asked for.
struct Link {
    who: Who,
    key: Known,
    until: Instant,
}

#[derive(Default)]
pub struct Sessions {
    links: Mutex<HashMap<Hash, Link>>,
    sessions: Mutex<HashMap<Hash, Arc<Session>>>,
}

impl Sessions {
    /// A token for a link that works once. `key` is the first one: the link and its session end with it.
    pub fn link(&self, who: Who, key: Known) -> String {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        links.retain(|_, link| now < link.until);
        if links.len() >= MOST
            && let Some(oldest) = links.iter().min_by_key(|(_, link)| link.until).map(|(hash, _)| *hash)
        {
            links.remove(&oldest);
        }
        let token = token();
        links.insert(hash(&token), Link { who, key, until: now + LINK });
        token
    }

    /// Who has the session that the link opens, and the key behind it. It is not good a second time.
    pub fn take(&self, token: &str) -> Option<(Who, Known)> {
        let link = self.links.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash(token))?;
        (Instant::now() < link.until).then(|| (Who::Link(Box::new(link.who)), link.key))
    }

    /// The cookie of a new session.
    pub fn open(&self, who: Who, key: Known) -> String {
        let (cookie, now) = (token(), Instant::now());
        let session =
            Session { who, key, csrf: token(), began: now, used: Mutex::new(now), told: Mutex::default() };
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| session.lives(now));
        if sessions.len() >= MOST
            && let Some(oldest) = sessions.iter().min_by_key(|(_, s)| s.began).map(|(hash, _)| *hash)
        {
            sessions.remove(&oldest);
        }
        sessions.insert(hash(&cookie), Arc::new(session));
        cookie
    }

    /// The session of a cookie, which is thereby in use.
    pub fn find(&self, cookie: &str) -> Option<Arc<Session>> {
        let now = Instant::now();
        let session = self.get(cookie).filter(|session| session.lives(now))?;
        *session.used.lock().unwrap_or_else(PoisonError::into_inner) = now;
        Some(session)
    }

    /// Whether a cookie's session goes on. It is not in use by that.
    pub fn lives(&self, cookie: &str) -> bool {
        self.get(cookie).is_some_and(|session| session.lives(Instant::now()))
    }

    fn get(&self, cookie: &str) -> Option<Arc<Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&hash(cookie)).cloned()
    }

    pub fn close(&self, cookie: &str) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash(cookie));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Access, FirstKey};
    use crate::config::Origin;
    use crate::config::state::Secret;

    fn first() -> Known {
        let text = Secret::checked("0123456789abcdef", &Origin::Default).unwrap();
        Access::single(FirstKey::chosen(text)).first()
    }

    #[test]
    fn a_link_works_once_and_a_session_until_it_is_closed() {
        let sessions = Sessions::default();
        let ada = Who::User { uid: 1000, name: Some("ada".to_owned()) };
        let link = sessions.link(ada, first());
        assert!(sessions.take("another").is_none());
        let (who, key) = sessions.take(&link).unwrap();
        assert_eq!((who.to_string().as_str(), &key), ("user ada (1000), console", &first()));
        assert!(sessions.take(&link).is_none(), "a second time");
        let cookie = sessions.open(who.clone(), key);
        assert_eq!(sessions.find(&cookie).unwrap().who, who);
        assert!(sessions.find(&link).is_none());
        assert!(sessions.lives(&cookie));
        sessions.close(&cookie);
        assert!(sessions.find(&cookie).is_none() && !sessions.lives(&cookie));
    }

    #[test]
    fn sessions_end_by_themselves_and_the_oldest_gives_way() {
        let sessions = Sessions::default();
        let oldest = sessions.open(Who::Console, first());
        let session = sessions.find(&oldest).unwrap();
        assert!(session.lives(Instant::now()));
        assert!(!session.lives(Instant::now() + IDLE));
        for _ in 0..MOST {
            sessions.open(Who::Console, first());
        }
        assert!(sessions.find(&oldest).is_none());
    }

    #[test]
    fn who_only_listens_does_not_use_a_session() {
        let sessions = Sessions::default();
        let cookie = sessions.open(Who::Console, first());
        let session = sessions.find(&cookie).unwrap();
        let used = *session.used.lock().unwrap();
        std::thread::sleep(Duration::from_millis(2));
        assert!(sessions.lives(&cookie));
        assert_eq!(*session.used.lock().unwrap(), used);
        sessions.find(&cookie).unwrap();
        assert!(*session.used.lock().unwrap() > used);
    }
}
