//! Who is at the console: links that work once, and the sessions behind a browser's cookie. All of it is in memory, and
//! as hashes: a restart signs everybody out, and a core dump holds no way in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};

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
    /// The holder of a key, or whoever had a link.
    pub who: Who,
    /// Whose limits count in the playground: the key's, or the first one's.
    pub key: String,
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

#[derive(Default)]
pub struct Sessions {
    links: Mutex<HashMap<Hash, Instant>>,
    sessions: Mutex<HashMap<Hash, Arc<Session>>>,
}

impl Sessions {
    /// A token for a link that works once.
    pub fn link(&self) -> String {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        links.retain(|_, until| now < *until);
        if links.len() >= MOST
            && let Some(oldest) = links.iter().min_by_key(|(_, until)| **until).map(|(hash, _)| *hash)
        {
            links.remove(&oldest);
        }
        let token = token();
        links.insert(hash(&token), now + LINK);
        token
    }

    /// Whether the link is good; it is not a second time.
    pub fn take(&self, token: &str) -> bool {
        let until = self.links.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash(token));
        until.is_some_and(|until| Instant::now() < until)
    }

    /// The cookie of a new session.
    pub fn open(&self, who: Who, key: &str) -> String {
        let (cookie, now) = (token(), Instant::now());
        let session = Session {
            who,
            key: key.to_owned(),
            csrf: token(),
            began: now,
            used: Mutex::new(now),
            told: Mutex::default(),
        };
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
        let session =
            self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&hash(cookie)).cloned()?;
        if !session.lives(now) {
            return None;
        }
        *session.used.lock().unwrap_or_else(PoisonError::into_inner) = now;
        Some(session)
    }

    pub fn close(&self, cookie: &str) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash(cookie));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_works_once_and_a_session_until_it_is_closed() {
        let sessions = Sessions::default();
        let link = sessions.link();
        assert!(!sessions.take("another"));
        assert!(sessions.take(&link));
        assert!(!sessions.take(&link), "a second time");
        let cookie = sessions.open(Who::Console, "first");
        assert_eq!(sessions.find(&cookie).unwrap().who, Who::Console);
        assert!(sessions.find(&link).is_none());
        sessions.close(&cookie);
        assert!(sessions.find(&cookie).is_none());
    }

    #[test]
    fn sessions_end_by_themselves_and_the_oldest_gives_way() {
        let sessions = Sessions::default();
        let first = sessions.open(Who::Console, "first");
        let session = sessions.find(&first).unwrap();
        assert!(session.lives(Instant::now()));
        assert!(!session.lives(Instant::now() + IDLE));
        for _ in 0..MOST {
            sessions.open(Who::Console, "first");
        }
        assert!(sessions.find(&first).is_none());
    }
}
