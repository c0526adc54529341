//! The chain of records: what a line looks like, and whether a file of them is whole.
//!
//! A line is `{"n":N,"time":T,"who":W,"event":E,…,"prev":P,"hash":H}`. `hash` is the SHA-256 of the line's bytes up to
//! `,"hash":`, and `prev` is the hash of the line before, so any tool that knows SHA-256 can check it.

use std::fmt;
use std::io::{self, BufRead};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Map, Value, json};

use super::LINE;
use super::event::{Event, Who};
use super::files::OPENED;

/// Where a chain stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Records so far.
    pub number: u64,
    /// 64 hexadecimal digits.
    pub hash: String,
}

/// Before the first record.
impl Default for Head {
    fn default() -> Self {
        Self { number: 0, hash: "0".repeat(64) }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.number, self.hash)
    }
}

impl std::str::FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(number, hash)| Some((number.parse().ok()?, hash)));
        match parts {
            Some((number, hash)) if is_hash(hash) => Ok(Self { number, hash: hash.to_owned() }),
            _ => Err(format!("{text:?} is no NUMBER:HASH, as `hearth audit verify` prints it")),
        }
    }
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn hash(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Between what is hashed and the hash.
const BEFORE_HASH: &str = ",\"hash\":\"";

impl Head {
    /// The line after this one, with its newline, and the head that it makes.
    pub(super) fn next(&self, who: &Who, event: &Event) -> (String, Head) {
        let number = self.number + 1;
        let time = format!("{:.3}", jiff::Timestamp::now());
        // Written piece by piece, because the order of fields is part of the form.
        let text = |value: &str| Value::from(value).to_string();
        let event = serde_json::to_string(event).expect("bug: an event is JSON");
        let event = &event[1..event.len() - 1];
        let body = format!(
            "{{\"n\":{number},\"time\":{},\"who\":{},{event},\"prev\":\"{}\"",
            text(&time),
            text(&who.to_string()),
            self.hash
        );
        let hash = hash(body.as_bytes());
        (format!("{body}{BEFORE_HASH}{hash}\"}}\n"), Head { number, hash })
    }
}

/// One record, as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub number: u64,
    /// RFC 3339, in UTC.
    pub time: String,
    pub who: String,
    pub event: String,
    /// The event's own fields.
    pub fields: Map<String, Value>,
    pub prev: String,
    pub hash: String,
}

impl Entry {
    /// A line without its newline. Its own hash is checked, the chain is not.
    pub(super) fn read(line: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(line).map_err(|_| "it is not text".to_owned())?;
        let all: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| format!("it is no JSON object: {e}"))?;
        let take = |name: &str| match all.get(name) {
            Some(Value::String(value)) => Ok(value.clone()),
            _ => Err(format!("it has no {name:?}")),
        };
        let (time, who, event) = (take("time")?, take("who")?, take("event")?);
        let (prev, given) = (take("prev")?, take("hash")?);
        let number = all.get("n").and_then(Value::as_u64).ok_or("it has no \"n\"")?;
        let body = text.strip_suffix(&format!("{BEFORE_HASH}{given}\"}}"));
        if body.is_none_or(|body| hash(body.as_bytes()) != given) {
            return Err("its hash is not that of its text: it was changed".to_owned());
        }
        let own = |name: &str| ["n", "time", "who", "event", "prev", "hash"].contains(&name);
        let fields = all.into_iter().filter(|(name, _)| !own(name)).collect();
        Ok(Self { number, time, who, event, fields, prev, hash: given })
    }

    pub fn head(&self) -> Head {
        Head { number: self.number, hash: self.hash.clone() }
    }

    /// As one object, for programs.
    pub fn json(&self) -> Value {
        let mut all = Map::new();
        for (name, value) in [
            ("n", json!(self.number)),
            ("time", json!(self.time)),
            ("who", json!(self.who)),
            ("event", json!(self.event)),
        ] {
            all.insert(name.to_owned(), value);
        }
        all.extend(self.fields.clone());
        all.insert("hash".to_owned(), json!(self.hash));
        Value::Object(all)
    }
}

/// Where a chain is broken.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("line {line}: {what}")]
    Line { line: u64, what: String },
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
}

/// What a whole chain says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What the chain begins after: number 0, unless older files were taken away.
    pub begin: Head,
    pub head: Head,
    /// Bytes of a record that a crash left half-written; nobody was told of it.
    pub torn: u64,
    /// Whether the chain went through the head that was asked for; `None` where none was.
    pub passed: Option<bool>,
}

/// Reads one file, checks the chain and hands on every record. `through` is a head noted earlier.
pub fn check(
    reader: impl BufRead,
    through: Option<&Head>,
    mut each: impl FnMut(Entry),
) -> Result<Checked, Damage> {
    let mut walk = Walk::through(through);
    let torn = walk.file(reader, &mut each)?;
    Ok(walk.done(torn))
}

/// The way through the files of a log, the oldest first.
pub(super) struct Walk<'a> {
    begin: Head,
    head: Head,
    through: Option<&'a Head>,
    passed: bool,
    /// Of the file that is read.
    lines: u64,
}

impl<'a> Walk<'a> {
    pub fn through(through: Option<&'a Head>) -> Self {
        let begin = Head::default();
        let passed = through == Some(&begin);
        Self { head: begin.clone(), begin, through, passed, lines: 0 }
    }

    /// How many lines the last file has, up to what is wrong with it.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Reads the next file. How many bytes of a torn record are at its end.
    pub fn file(&mut self, mut reader: impl BufRead, each: &mut impl FnMut(Entry)) -> Result<u64, Damage> {
        let mut line = Vec::new();
        self.lines = 0;
        loop {
            line.clear();
            let number = self.lines + 1;
            let broken = |what: String| Damage::Line { line: number, what };
            let read = io::Read::take(&mut reader, LINE + 1).read_until(b'\n', &mut line)? as u64;
            if line.last() != Some(&b'\n') {
                return match read > LINE {
                    true => Err(broken("it is longer than a record can be".to_owned())),
                    false => Ok(read),
                };
            }
            let entry = Entry::read(&line[..line.len() - 1]).map_err(broken)?;
            // The first record of all may be that of a later file: the older ones were taken away, as sites do.
            if self.head.number == 0 && entry.number > 1 && entry.event == OPENED {
                self.head = Head { number: entry.number - 1, hash: entry.prev.clone() };
                self.begin = self.head.clone();
                self.passed |= self.through == Some(&self.begin);
            }
            if entry.number != self.head.number + 1 || entry.prev != self.head.hash {
                let what = format!(
                    "it says that it is record {} after {}…, but record {} after {}… is due: something was taken out, put \
                     in or moved",
                    entry.number,
                    brief(&entry.prev),
                    self.head.number + 1,
                    brief(&self.head.hash)
                );
                return Err(broken(what));
            }
            self.lines = number;
            self.head = entry.head();
            self.passed |= self.through == Some(&self.head);
            each(entry);
        }
    }

    pub fn done(self, torn: u64) -> Checked {
        Checked {
            begin: self.begin,
            head: self.head,
            torn,
            passed: self.through.is_some().then_some(self.passed),
        }
    }
}

fn brief(hash: &str) -> String {
    hash.chars().take(12).collect()
}
