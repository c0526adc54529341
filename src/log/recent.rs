//! The last lines of the log, in memory: all of them for a while, and what went wrong for longer.
//!
//! Equal troubles are one entry with a count: a scanner that is refused a thousand times must not push out the one line
//! that says why a model failed.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::Level;

/// Bytes of lines that are kept.
const BYTES: usize = 512 << 10;
/// Different troubles that are kept.
const TROUBLES: usize = 50;

/// The process's own.
pub static RECENT: Recent = Recent(Mutex::new(Kept::new()));

/// What is kept. Writers are those who log; a reader copies.
pub struct Recent(Mutex<Kept>);

struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
    /// Lines ever kept.
    count: u64,
    troubles: VecDeque<Trouble>,
}

/// Something that went wrong, once or many times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    /// When last, in RFC 3339.
    pub time: String,
    pub level: String,
    pub message: String,
    /// The other fields, as `name=value`.
    pub detail: String,
    /// Of the last time.
    pub correlation_id: Option<String>,
    pub times: u64,
}

impl Kept {
    const fn new() -> Self {
        Self { lines: VecDeque::new(), bytes: 0, count: 0, troubles: VecDeque::new() }
    }

    fn line(&mut self, line: String) {
        self.bytes += line.len();
        self.count += 1;
        self.lines.push_back(line);
        while self.bytes > BYTES {
            self.bytes -= self.lines.pop_front().map_or(0, |line| line.len());
        }
    }

    fn trouble(&mut self, new: Trouble) {
        let same = |t: &Trouble| t.message == new.message && t.detail == new.detail && t.level == new.level;
        let before = self.troubles.iter().position(same).and_then(|at| self.troubles.remove(at));
        self.troubles.push_back(Trouble { times: before.map_or(1, |t| t.times + 1), ..new });
        if self.troubles.len() > TROUBLES {
            self.troubles.pop_front();
        }
    }
}

impl Recent {
    pub(super) fn keep(&self, level: Level, line: Map<String, Value>) {
        let trouble = trouble(level, &line);
        let text = Value::Object(line).to_string();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.line(text);
        if let Some(trouble) = trouble {
            kept.trouble(trouble);
        }
    }

    /// What went wrong, the latest first.
    pub fn troubles(&self, most: usize) -> Vec<Trouble> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.troubles.iter().rev().take(most).cloned().collect()
    }

    /// Lines after the first `from` ever kept, as far as they still are, the latest `most` of them; and how many were
    /// ever kept.
    pub fn lines(&self, from: u64, most: usize) -> (Vec<String>, u64) {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = kept.count.saturating_sub(from).min(kept.lines.len() as u64) as usize;
        let skip = kept.lines.len() - new.min(most);
        (kept.lines.iter().skip(skip).cloned().collect(), kept.count)
    }
}

/// Fields that differ from one time to the next and would keep equal troubles apart.
const VARY: [&str; 7] =
    ["time", "level", "message", "correlation_id", "ms", "duration_request", "user_agent"];

/// Warnings, errors, refusals, and answers that say that something went wrong.
fn trouble(level: Level, line: &Map<String, Value>) -> Option<Trouble> {
    let status = line.get("status").and_then(Value::as_u64).unwrap_or(0);
    // 499: the client left, as editors do at every keystroke.
    let failed = (400..600).contains(&status) && status != 499;
    if level > Level::WARN && !failed {
        return None;
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let field = |name: &str| line.get(name).map(text).unwrap_or_default();
    // The line of every request says the same; what it was about says more.
    let request = line.get("message").is_some_and(|message| message == "request");
    let (message, said): (String, &[&str]) = match request {
        true => {
            let message = format!("{} {} was answered with {status}", field("method"), field("route"));
            (message, &["method", "route", "status"])
        }
        false => (field("message"), &[]),
    };
    let detail: Vec<String> = line
        .iter()
        .filter(|(name, _)| !VARY.contains(&name.as_str()) && !said.contains(&name.as_str()))
        .map(|(name, value)| format!("{name}={}", text(value)))
        .collect();
    Some(Trouble {
        time: field("time"),
        level: field("level"),
        message,
        detail: detail.join(" "),
        correlation_id: line.get("correlation_id").map(text),
        times: 1,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn equal_troubles_are_counted_and_the_rare_one_stays() {
        let recent = Recent(Mutex::new(Kept::new()));
        recent.keep(Level::WARN, line(json!({"message": "a step failed", "level": "warn"})));
        for i in 0..1000 {
            let refused =
                json!({"message": "request", "status": 401, "ms": i, "correlation_id": i.to_string()});
            recent.keep(Level::INFO, line(refused));
        }
        recent.keep(Level::INFO, line(json!({"message": "request", "status": 200})));
        recent.keep(Level::INFO, line(json!({"message": "request", "status": 499})));
        let troubles = recent.troubles(10);
        assert_eq!(troubles.len(), 2, "{troubles:?}");
        assert_eq!((troubles[0].times, troubles[0].correlation_id.as_deref()), (1000, Some("999")));
        assert_eq!(troubles[1].message, "a step failed");
    }

    #[test]
    fn lines_are_bounded_by_bytes_and_can_be_followed() {
        let recent = Recent(Mutex::new(Kept::new()));
        for i in 0..3 {
            recent.keep(Level::INFO, line(json!({"message": i})));
        }
        let (lines, seen) = recent.lines(0, 2);
        assert_eq!((lines.len(), seen), (2, 3));
        recent.keep(Level::INFO, line(json!({"message": "new"})));
        assert_eq!(recent.lines(seen, 100), (vec![r#"{"message":"new"}"#.to_owned()], 4));
        let long = "x".repeat(BYTES / 4);
        for _ in 0..20 {
            recent.keep(Level::INFO, line(json!({"message": long.as_str()})));
        }
        assert!(recent.lines(0, 100).0.len() <= 4);
    }
}
