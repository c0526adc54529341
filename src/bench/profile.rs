//! What people ask: the shapes of requests, and texts that have them.
//!
//! The texts are code-like and made up, the same for the same seed. Lengths are drawn evenly between half the mean and one
//! and a half times it. The means are round numbers in the middle of what editors and chats send, no measurement of anybody's
//! site: `--prompt-tokens` and `--output-tokens` say what a site knows better.

use std::fmt;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::random::Random;

/// Who is asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Editors that complete code at the cursor
    CodeCompletion,
    /// People in a conversation
    Chat,
    /// Four completions to one turn of chat
    Mixed,
}

/// The two kinds of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Completion,
    Chat,
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CodeCompletion => "code-completion",
            Self::Chat => "chat",
            Self::Mixed => "mixed",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completion => "completion",
            Self::Chat => "chat",
        })
    }
}

impl Profile {
    pub fn kinds(self) -> &'static [Kind] {
        match self {
            Self::CodeCompletion => &[Kind::Completion],
            Self::Chat => &[Kind::Chat],
            Self::Mixed => &[Kind::Completion, Kind::Chat],
        }
    }

    /// The kind of a request. In turn, not drawn: a short run has its share of both.
    fn kind(self, index: u64) -> Kind {
        match self {
            Self::CodeCompletion => Kind::Completion,
            Self::Chat => Kind::Chat,
            Self::Mixed if index % 5 == 4 => Kind::Chat,
            Self::Mixed => Kind::Completion,
        }
    }
}

impl Kind {
    /// Tokens of prompt and answer on average.
    const fn means(self) -> (u32, u32) {
        match self {
            Self::Completion => (1000, 32),
            Self::Chat => (1000, 200),
        }
    }
}

/// What is asked of the server, as it is kept with the figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    pub profile: Profile,
    /// Tokens of a prompt on average, instead of the profile's own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prompt_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub output_tokens: Option<u32>,
    /// The share of requests whose prompt begins as others do, for three quarters of its length.
    pub shared: f64,
    pub seed: u64,
    /// Completions fill gaps; otherwise they continue the text.
    pub fills: bool,
    /// Answers have the length that was asked for, whatever the model would have said.
    pub whole_answers: bool,
    /// Prompt and answer together at most.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub context: Option<u32>,
    /// Bytes of such text that are one token of the model's.
    pub bytes_per_token: f64,
}

/// Where prompts of a share begin alike: as many files as a small team has open.
const FILES: u64 = 16;
/// The share of a prompt that it has in common with others.
const COMMON: f64 = 0.75;
/// Of a completion's text, what follows the cursor.
const BEHIND: f64 = 0.2;
/// Left free for what the server puts around a text: a chat template, markers.
const AROUND: u32 = 64;
/// Where the tokenizer cannot be asked: code in common tokenizers.
pub const BYTES_PER_TOKEN: f64 = 3.0;

/// One request before it is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub index: u64,
    pub kind: Kind,
    /// Tokens of the prompt, as near as the estimate is.
    pub prompt: u32,
    pub output: u32,
    /// Which file it is in, if it begins like others.
    pub file: Option<u64>,
}

impl Workload {
    pub fn means(&self, kind: Kind) -> (u32, u32) {
        let (prompt, output) = kind.means();
        (self.prompt_tokens.unwrap_or(prompt), self.output_tokens.unwrap_or(output))
    }

    /// The shape of a request; the same for the same seed and number.
    pub fn request(&self, index: u64) -> Asked {
        let mut random = Random::new(self.seed, index.wrapping_add(2));
        let kind = self.profile.kind(index);
        let (prompt, output) = self.means(kind);
        let mut around =
            |mean: u32| random.within(u64::from(mean.div_ceil(2)), u64::from(mean) * 3 / 2) as u32;
        let (mut prompt, mut output) = (around(prompt).max(1), around(output).max(1));
        if let Some(context) = self.context {
            let room = context.saturating_sub(AROUND).max(2);
            output = output.min(room / 2);
            prompt = prompt.min(room - output);
        }
        let file = (random.unit() < self.shared).then(|| random.within(0, FILES - 1));
        Asked { index, kind, prompt, output, file }
    }

    /// The path below the server's address, and the body.
    pub fn write(&self, asked: Asked, model: &str) -> (&'static str, Value) {
        let bytes = (f64::from(asked.prompt) * self.bytes_per_token) as usize;
        let common = match asked.file {
            Some(_) => (bytes as f64 * COMMON) as usize,
            None => 0,
        };
        let mut body = json!({
            "model": model,
            "max_tokens": asked.output,
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if self.whole_answers {
            body["ignore_eos"] = json!(true);
        }
        let mut own = Random::new(self.seed, asked.index.wrapping_add(1 << 40));
        match asked.kind {
            Kind::Completion => {
                let behind = if self.fills { (bytes as f64 * BEHIND) as usize } else { 0 };
                let mut before = self.common(asked.file, common);
                code(&mut own, bytes.saturating_sub(behind).max(common), &mut before);
                body["prompt"] = json!(before);
                if self.fills {
                    let mut after = String::new();
                    code(&mut own, behind.max(1), &mut after);
                    body["suffix"] = json!(after);
                }
                ("/v1/completions", body)
            }
            Kind::Chat => {
                let mut text = self.common(asked.file, common);
                code(&mut own, bytes, &mut text);
                text += "\nExplain what this code does and how it could be simpler.";
                body["messages"] = json!([{"role": "user", "content": text}]);
                ("/v1/chat/completions", body)
            }
        }
    }

    /// The beginning that requests of a file have in common.
    fn common(&self, file: Option<u64>, bytes: usize) -> String {
        let mut text = String::new();
        if let Some(file) = file {
            code(&mut Random::new(self.seed, file.wrapping_add(1 << 50)), bytes, &mut text);
        }
        text
    }
}

/// Text of such a kind, to measure how many bytes a token has.
pub fn sample(bytes: usize) -> String {
    let mut text = String::new();
    code(&mut Random::new(0, 0), bytes, &mut text);
    text
}

const NOUNS: [&str; 16] = [
    "account", "branch", "commit", "diff", "event", "issue", "job", "label", "merge", "note", "pipeline",
    "project", "record", "runner", "token", "user",
];
const VERBS: [&str; 8] = ["add", "build", "check", "fetch", "find", "merge", "parse", "update"];

/// Appends code-like lines until `text` has so many bytes.
fn code(random: &mut Random, bytes: usize, text: &mut String) {
    while text.len() < bytes {
        let bits = random.next();
        let pick = |list: &'static [&'static str], shift: u32| list[(bits >> shift) as usize % list.len()];
        let (verb, noun, other) = (pick(&VERBS, 0), pick(&NOUNS, 8), pick(&NOUNS, 16));
        let number = (bits >> 24) % 1000;
        let written = write!(
            text,
            "def {verb}_{noun}_{number}(self, {other}):\n    {noun} = self.{verb}({other}, limit={number})\n    \
             if not {noun}:\n        return None\n    return {noun}.{other}\n\n"
        );
        written.expect("bug: writing to a string failed");
    }
    // All of it is ASCII.
    text.truncate(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn workload(profile: Profile, shared: f64, seed: u64) -> Workload {
        Workload {
            profile,
            prompt_tokens: None,
            output_tokens: None,
            shared,
            seed,
            fills: true,
            whole_answers: true,
            context: None,
            bytes_per_token: 3.0,
        }
    }

    fn prompt(workload: &Workload, index: u64) -> String {
        let (_, body) = workload.write(workload.request(index), "m");
        body["prompt"].as_str().unwrap().to_owned()
    }

    proptest! {
        #[test]
        fn requests_are_the_same_for_a_seed_and_fit_the_context(seed: u64, index in 0u64..1 << 30, context in 8u32..4000) {
            for profile in [Profile::CodeCompletion, Profile::Chat, Profile::Mixed] {
                let workload = Workload { context: Some(context), ..workload(profile, 0.5, seed) };
                let asked = workload.request(index);
                prop_assert_eq!(asked, workload.request(index));
                prop_assert!(asked.prompt >= 1 && asked.output >= 1);
                prop_assert!(asked.prompt + asked.output <= context.max(AROUND + 2), "{:?}", asked);
                prop_assert_eq!(workload.write(asked, "m"), workload.write(asked, "m"));
            }
        }

        #[test]
        fn lengths_scatter_around_the_mean(seed: u64, mean in 1u32..5000) {
            let workload = Workload { prompt_tokens: Some(mean), ..workload(Profile::Chat, 0.0, seed) };
            let n = 4000;
            let all: Vec<u32> = (0..n).map(|i| workload.request(i).prompt).collect();
            let range = mean.div_ceil(2)..=(mean * 3 / 2).max(1);
            prop_assert!(all.iter().all(|tokens| range.contains(tokens)));
            let found = all.iter().map(|t| f64::from(*t)).sum::<f64>() / n as f64;
            let mean = f64::from(mean);
            prop_assert!((found - mean).abs() <= mean * 0.03 + 0.6, "{found} instead of {mean}");
        }
    }

    #[test]
    fn a_share_of_prompts_begins_alike_and_no_two_are_the_same() {
        let shared = workload(Profile::CodeCompletion, 1.0, 7);
        let same = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
        let first = shared.request(0);
        let other = (1..).find(|i| shared.request(*i).file == first.file).unwrap();
        let (a, b) = (prompt(&shared, 0), prompt(&shared, other));
        let common = (f64::from(first.prompt.min(shared.request(other).prompt)) * 3.0 * COMMON) as usize;
        assert!(same(&a, &b) >= common && a != b, "{} of {common}", same(&a, &b));

        let unique = workload(Profile::CodeCompletion, 0.0, 7);
        let all: Vec<String> = (0..50).map(|i| prompt(&unique, i)).collect();
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                assert!(same(a, b) < 60, "two unique prompts share {} bytes", same(a, b));
            }
        }
        let half = workload(Profile::CodeCompletion, 0.5, 7);
        let count = (0..2000).filter(|i| half.request(*i).file.is_some()).count();
        assert!((900..1100).contains(&count), "{count} of 2000 are shared");
    }

    #[test]
    fn one_in_five_of_the_mixed_profile_is_a_turn_of_chat() {
        let mixed = workload(Profile::Mixed, 0.5, 0);
        let chats = (0..100).filter(|i| mixed.request(*i).kind == Kind::Chat).count();
        assert_eq!(chats, 20);
        let (path, body) = mixed.write(mixed.request(4), "m");
        assert_eq!(path, "/v1/chat/completions");
        assert!(body["messages"][0]["content"].as_str().unwrap().len() > 1000);
        assert!(body.get("suffix").is_none());
    }

    #[test]
    fn a_model_that_fills_no_gaps_gets_the_whole_text_before_the_cursor() {
        let plain =
            Workload { fills: false, whole_answers: false, ..workload(Profile::CodeCompletion, 0.0, 0) };
        let asked = plain.request(0);
        let (_, body) = plain.write(asked, "m");
        assert_eq!(body["prompt"].as_str().unwrap().len(), (f64::from(asked.prompt) * 3.0) as usize);
        assert!(body.get("suffix").is_none() && body.get("ignore_eos").is_none());
    }
}
