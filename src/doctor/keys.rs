//! The keys of the API: that they can be read, and which of them end soon.

use jiff::{Timestamp, ToSpan};

use super::{Finding, Verdict};
use crate::access::grant::State;
use crate::access::store::Store;
use crate::config::Settings;

/// Days before its end at which a key is worth a word.
const SOON: i64 = 14;

pub fn keys(settings: &Settings) -> Finding {
    const CHECK: &str = "keys";
    let store = match Store::read(&settings.state_dir) {
        Ok(store) => store,
        Err(error) => {
            let what = format!("{} ({})", error.what, error.origin);
            return Finding::fails(CHECK, what, error.fix)
                .effect("the server does not start, or keeps the keys of before");
        }
    };
    let now = Timestamp::now();
    let soon = now + (24 * SOON).hours();
    let live: Vec<_> = store.keys.iter().filter(|key| key.state(now) == State::Live).collect();
    let ending: Vec<String> = live
        .iter()
        .filter(|key| key.state(soon) != State::Live)
        .map(|key| format!("{} ({})", key.name, key.expires.as_deref().unwrap_or_default()))
        .collect();
    match (live.len(), ending.is_empty()) {
        (0, _) => Finding::new(
            CHECK,
            Verdict::Note,
            "only the server's first key, which opens everything; `hearth keys create` makes keys with limits",
        ),
        (count, true) => Finding::ok(CHECK, format!("{count} keys beside the first")),
        (_, false) => Finding::warns(
            CHECK,
            format!("keys end within {SOON} days: {}", ending.join(", ")),
            "make their successors in time: `hearth keys rotate`",
        )
        .effect("whoever uses them gets 401 from then on"),
    }
}
