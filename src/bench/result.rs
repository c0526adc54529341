//! What is kept of a benchmark: one JSON file with everything that its reader needs to judge it and to run it again.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::arrivals::Arrivals;
use super::latency::Latency;
use super::limits::Limits;
use super::machine::Machine;
use super::profile::{Kind, Workload};

/// The word in every file.
const FORMAT: &str = "hearth-bench";
/// Rises when a field changes its meaning.
const VERSION: u32 = 1;

/// A file of results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    pub format: String,
    pub version: u32,
    /// When it began, in UTC.
    pub date: String,
    /// As it was typed. Keys come from the environment or a file, so there is none in it.
    pub command: String,
    /// The version of Hearth that measured.
    pub hearth: String,
    pub machine: Machine,
    pub server: Server,
    pub workload: Workload,
    pub limits: Limits,
    /// Percentiles are shown of few requests: a look, nothing to build on.
    pub quick: bool,
    /// Why it ended before it was done.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub partial: Option<String>,
    pub runs: Vec<Run>,
    /// What a sweep found.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub knee: Option<Knee>,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// `None`: started for the run by `hearth bench`, on the same machine.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub url: Option<String>,
    pub model: String,
    /// What the model is, where its files are here.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub digest: Option<String>,
    /// Whether it shared its processor with whoever asked.
    pub here: bool,
}

/// The end of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Knee {
    /// The highest rate that held the limits; `None` when none did.
    pub rate: Option<f64>,
    /// Which of the runs that was.
    pub run: Option<usize>,
    /// No higher rate is known to break the limits.
    pub at_least: bool,
    /// What broke at the next higher rate, or why the search ended.
    pub beyond: String,
}

/// One load, from the first request to the last answer. Requests of the warm-up are in no figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub arrivals: Arrivals,
    pub warmup_s: f64,
    /// From the end of the warm-up until no more was sent.
    pub seconds: f64,
    /// Answered whole, and counted below.
    pub requests: u64,
    /// Refused with 429.
    pub refused: u64,
    pub failed: u64,
    /// Refused and failed requests, by status or by what happened.
    pub failures: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub first_failure: Option<String>,
    /// Answers that ended in these seconds, for each of them.
    pub requests_per_s: f64,
    pub output_tokens_per_s: f64,
    /// Of a request, on average. `None` where the server does not count them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prompt_tokens: Option<f64>,
    pub output_tokens: f64,
    pub most_in_flight: u64,
    /// The furthest that a request was sent behind its time, because who sends was busy. It is in every time below.
    pub late_ms: f64,
    pub kinds: BTreeMap<Kind, Times>,
    pub timeline: Vec<Slice>,
    /// Why it ended before it was done.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended: Option<String>,
    /// It was ended because it could not hold the limits any more.
    #[serde(default)]
    pub late: bool,
}

/// The times of one kind of request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// From when a request should have been made to its first token.
    pub first_ms: Latency,
    /// From the first token to the last, by tokens between them: one figure a request.
    pub token_ms: Latency,
    /// Between two pieces of a stream.
    pub gap_ms: Latency,
    /// To the end of the answer.
    pub whole_ms: Latency,
}

/// A part of a run's time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// Seconds from the end of the warm-up.
    pub at: f64,
    pub requests_per_s: f64,
    pub output_tokens_per_s: f64,
    /// On average.
    pub first_ms: f64,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            arrivals: Arrivals::Concurrent(1),
            warmup_s: 0.0,
            seconds: 0.0,
            requests: 0,
            refused: 0,
            failed: 0,
            failures: BTreeMap::new(),
            first_failure: None,
            requests_per_s: 0.0,
            output_tokens_per_s: 0.0,
            prompt_tokens: None,
            output_tokens: 0.0,
            most_in_flight: 0,
            late_ms: 0.0,
            kinds: BTreeMap::new(),
            timeline: Vec::new(),
            ended: None,
            late: false,
        }
    }
}

impl Run {
    /// Nothing was counted: it was interrupted in its warm-up, or before the first answer.
    pub fn is_empty(&self) -> bool {
        self.requests + self.refused + self.failed == 0
    }
}

/// Why a file of results cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    #[error("{} cannot be read: {problem}", path.display())]
    Read { path: PathBuf, problem: String },
    #[error("{} is no file of `hearth bench`: {problem}", path.display())]
    Foreign { path: PathBuf, problem: String },
    #[error("{} has version {found} of the format; this hearth reads version {VERSION}", path.display())]
    Version { path: PathBuf, found: u64 },
    #[error("{} cannot be written: {problem}", path.display())]
    Write { path: PathBuf, problem: String },
}

impl Results {
    /// A file without runs.
    pub fn begin(
        command: String,
        machine: Machine,
        server: Server,
        workload: Workload,
        limits: Limits,
    ) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            date: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            command,
            hearth: env!("CARGO_PKG_VERSION").to_owned(),
            machine,
            server,
            workload,
            limits,
            quick: false,
            partial: None,
            runs: Vec::new(),
            knee: None,
        }
    }

    pub fn read(path: &Path) -> Result<Self, ResultsError> {
        let here = || path.to_owned();
        let text = std::fs::read_to_string(path)
            .map_err(|e| ResultsError::Read { path: here(), problem: e.to_string() })?;
        let foreign = |problem: String| ResultsError::Foreign { path: here(), problem };
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| foreign(e.to_string()))?;
        if value["format"] != FORMAT {
            return Err(foreign(format!("its `format` is not {FORMAT:?}")));
        }
        match value["version"].as_u64() {
            Some(version) if version == u64::from(VERSION) => {}
            found => return Err(ResultsError::Version { path: here(), found: found.unwrap_or(0) }),
        }
        serde_json::from_value(value).map_err(|e| foreign(e.to_string()))
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("bug: results are plain data") + "\n"
    }

    pub fn write(&self, path: &Path) -> Result<(), ResultsError> {
        keep(path, self.json().as_bytes())
    }
}

/// Writes a file whole or not at all: beside its place first, then in its place.
pub fn keep(path: &Path, bytes: &[u8]) -> Result<(), ResultsError> {
    let failed = |e: std::io::Error| ResultsError::Write { path: path.to_owned(), problem: e.to_string() };
    let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let written = std::fs::File::create(&part)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&part, path));
    written.map_err(|e| {
        let _ = std::fs::remove_file(&part);
        failed(e)
    })
}
