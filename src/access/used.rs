//! When each key was used last: in memory with each request, now and then in `keys.used.json` of the state directory. After a
//! crash the last minute is missing, and nothing else depends on it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::config::state::Replacement;

const FILE: &str = "keys.used.json";

/// Seconds since 1970 by the ids of keys.
pub type Used = BTreeMap<String, i64>;

/// What was written last; nothing where that cannot be read.
pub fn read(directory: &Path) -> Used {
    let text = std::fs::read(directory.join(FILE)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

pub fn write(directory: &Path, used: &Used) -> io::Result<()> {
    Replacement::prepare(&directory.join(FILE), &serde_json::to_vec(used)?)?.commit()
}
