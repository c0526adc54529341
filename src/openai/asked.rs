//! What completions and chat completions have in common: how tokens are drawn, where the answer ends, how it is sent
//! (step 3 in the life of a request).

use std::sync::Arc;

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{Fields, integer, number, wrong};
use crate::access::Permitted;
use crate::engine::request::{Request, Sampling};
use crate::served::{Model, Served};
use crate::text::generation::Shape;

/// Continuations of one request at most, over all its prompts.
pub const MOST_CHOICES: i64 = 128;
const MOST_STOPS: usize = 16;
const LONGEST_STOP: usize = 512;
const MOST_STOP_TOKENS: usize = 64;
const MOST_BIASES: usize = 1024;
/// Alternatives reported for a token at most.
pub const MOST_LOGPROBS: i64 = 20;

/// Fields of OpenAI's that change nothing about the answer of a model on this machine.
const INERT: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
];

/// The common part of a request, checked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub sampling: Sampling,
    pub choices: u32,
    pub max_tokens: Option<u32>,
    pub min_tokens: u32,
    pub stops: Arc<[String]>,
    stop_tokens: Vec<u32>,
    ignore_eos: bool,
    include_stop: bool,
    skip_special: bool,
    pub stream: bool,
    pub counts: Counts,
}

/// Which chunks of a stream count tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    Nowhere,
    /// One more chunk at the end.
    AtTheEnd,
    /// That one, and every chunk what there is until then: vLLM's `continuous_usage_stats`.
    Always,
}

/// The model that a request names.
pub fn model(fields: &mut Fields, models: &Permitted) -> Result<Model, ApiError> {
    let name = fields.string("model")?.ok_or_else(|| {
        let known: Vec<String> = models.all().map(|model| model.name().to_owned()).collect();
        ApiError::missing("model", format!("`model` is missing. Known models: {}.", known.join(", ")))
    })?;
    models.get(&name)
}

impl Asked {
    /// Reads the common fields. `max_tokens` are the names under which the limit may come, the preferred one first.
    pub fn read(fields: &mut Fields, model: &Served, max_tokens: &[&'static str]) -> Result<Self, ApiError> {
        let vocab = i64::from(model.engine.capacity().vocab);
        let top_p = fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0);
        if top_p == 0.0 {
            return Err(ApiError::invalid(
                "top_p",
                "`top_p` must be more than 0; for greedy, set `temperature` to 0.",
            ));
        }
        // Far below 1 it only repeats, and near 0 it would overflow the logits.
        let repetition_penalty = fields.number("repetition_penalty", 0.01, 2.0)?.unwrap_or(1.0);
        // -1 is another way to say "off".
        let top_k = fields.integer("top_k", -1, i64::from(u32::MAX))?.unwrap_or(0).max(0).min(vocab) as u32;
        let sampling = Sampling {
            temperature: fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0),
            top_k,
            top_p,
            min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0),
            repetition_penalty,
            presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            logit_bias: biases(fields, vocab)?,
            seed: match fields.integer("seed", i64::MIN, i64::MAX)? {
                Some(seed) => seed as u64,
                None => random(),
            },
            logprobs: None,
        };
        let choices = fields.integer("n", 1, MOST_CHOICES)?.unwrap_or(1) as u32;
        let mut limit = None;
        for (i, name) in max_tokens.iter().enumerate() {
            if let Some(tokens) = fields.integer(name, 0, i64::from(u32::MAX) - 1)? {
                if limit.is_some() {
                    let message =
                        format!("Send either `{}` or `{}`, not both.", max_tokens[0], max_tokens[i]);
                    return Err(ApiError::invalid(*name, message));
                }
                limit = Some(tokens as u32);
            }
        }
        let min_tokens = fields.integer("min_tokens", 0, i64::from(u32::MAX) - 1)?.unwrap_or(0) as u32;
        if limit.is_some_and(|limit| min_tokens > limit) {
            let limit = limit.unwrap_or_default();
            let message =
                format!("`min_tokens` ({min_tokens}) must not exceed `{}` ({limit}).", max_tokens[0]);
            return Err(ApiError::invalid("min_tokens", message));
        }
        let stream = fields.bool("stream")?.unwrap_or(false);
        let counts = stream_options(fields, stream)?;
        let asked = Self {
            sampling,
            choices,
            max_tokens: limit,
            min_tokens,
            stops: stops(fields)?,
            stop_tokens: stop_tokens(fields, vocab)?,
            ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
            include_stop: fields.bool("include_stop_str_in_output")?.unwrap_or(false),
            skip_special: fields.bool("skip_special_tokens")?.unwrap_or(true),
            stream,
            counts,
        };
        fields.ignore(&INERT);
        Ok(asked)
    }

    /// How text is made of the tokens of `model`; `more` are tokens that end this answer besides the model's own.
    pub fn shape(&self, model: &Served, more: &[u32]) -> Shape {
        let mut stop_tokens = self.stop_tokens.clone();
        if !self.ignore_eos {
            stop_tokens.extend(model.text.ends.iter().chain(more));
        }
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        Shape {
            stops: self.stops.clone(),
            include_stop: self.include_stop,
            skip_special: self.skip_special,
            stop_tokens: stop_tokens.into(),
            min_tokens: self.min_tokens,
        }
    }

    /// The engine's request for one prompt.
    pub fn request(&self, id: &Arc<str>, prompt: Arc<[u32]>, shape: &Shape, max_tokens: u32) -> Request {
        Request {
            id: id.clone(),
            choices: self.choices,
            sampling: self.sampling.clone(),
            max_tokens,
            stop_tokens: shape.stop_tokens.clone(),
            min_tokens: self.min_tokens,
            ..Request::new(prompt)
        }
    }
}

/// A seed for a request that gives none.
fn random() -> u64 {
    getrandom::u64().expect("bug: the system gives no random numbers")
}

fn biases(fields: &mut Fields, vocab: i64) -> Result<Vec<(u32, f32)>, ApiError> {
    let map = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong("logit_bias", "an object of token numbers to biases", &other)),
    };
    if map.len() > MOST_BIASES {
        let message = format!("`logit_bias` may have {MOST_BIASES} entries; it has {}.", map.len());
        return Err(ApiError::invalid("logit_bias", message));
    }
    let mut biases = Vec::with_capacity(map.len());
    for (token, bias) in map {
        let shown: String = token.chars().take(30).collect();
        let name = format!("logit_bias.{shown}");
        let id = token.parse::<i64>().ok().filter(|id| (0..vocab).contains(id)).ok_or_else(|| {
            let message = format!("`{name}`: tokens are numbers from 0 to {}.", vocab - 1);
            ApiError::invalid(&name, message)
        })?;
        biases.push((id as u32, number(&name, &bias, -100.0, 100.0)?));
    }
    biases.sort_unstable_by_key(|(token, _)| *token);
    biases.dedup_by_key(|(token, _)| *token);
    Ok(biases)
}

fn stops(fields: &mut Fields) -> Result<Arc<[String]>, ApiError> {
    let list = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    if list.len() > MOST_STOPS {
        let message = format!("`stop` may have {MOST_STOPS} strings; it has {}.", list.len());
        return Err(ApiError::invalid("stop", message));
    }
    let mut stops = Vec::with_capacity(list.len());
    for (i, stop) in list.into_iter().enumerate() {
        let name = format!("stop[{i}]");
        match stop {
            Value::String(text) if text.is_empty() => {
                return Err(ApiError::invalid("stop", format!("`{name}` is empty; leave it out.")));
            }
            Value::String(text) if text.len() > LONGEST_STOP => {
                let message = format!("`{name}` has {} bytes; {LONGEST_STOP} is the limit.", text.len());
                return Err(ApiError::invalid("stop", message));
            }
            Value::String(text) => stops.push(text),
            other => return Err(wrong("stop", "a string or a list of strings", &other)),
        }
    }
    Ok(stops.into())
}

fn stop_tokens(fields: &mut Fields, vocab: i64) -> Result<Vec<u32>, ApiError> {
    let list = match fields.take("stop_token_ids") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong("stop_token_ids", "a list of tokens", &other)),
    };
    if list.len() > MOST_STOP_TOKENS {
        let message = format!("`stop_token_ids` may have {MOST_STOP_TOKENS} tokens; it has {}.", list.len());
        return Err(ApiError::invalid("stop_token_ids", message));
    }
    let token = |(i, value): (usize, &Value)| {
        integer(&format!("stop_token_ids[{i}]"), value, 0, vocab - 1).map(|id| id as u32)
    };
    list.iter().enumerate().map(token).collect()
}

fn stream_options(fields: &mut Fields, stream: bool) -> Result<Counts, ApiError> {
    let Some(value) = fields.take("stream_options") else { return Ok(Counts::Nowhere) };
    let mut options = Fields::inside("stream_options", value)?;
    let usage = options.bool("include_usage")?.unwrap_or(false);
    let always = options.bool("continuous_usage_stats")?.unwrap_or(false);
    // Padding against traffic analysis: none is sent, and none is promised.
    options.refuse("include_obfuscation", &[json!(false)], "leave it out; chunks are not padded.")?;
    options.finish()?;
    if usage && !stream {
        let message =
            "`stream_options.include_usage` needs `stream: true`; without it the usage always comes.";
        return Err(ApiError::invalid("stream_options", message));
    }
    match (usage, always) {
        (false, false) => Ok(Counts::Nowhere),
        (true, false) => Ok(Counts::AtTheEnd),
        (true, true) => Ok(Counts::Always),
        (false, true) => {
            let message =
                "`stream_options.continuous_usage_stats` needs `stream_options.include_usage: true`.";
            Err(ApiError::invalid("stream_options", message))
        }
    }
}
