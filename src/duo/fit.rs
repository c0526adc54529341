//! Long contents fitted into a model's context (step 4 in the life of a request): GitLab sends whole files, logs and
//! diffs, and half of a file with a mark in the middle is worth more than a refusal.
//!
//! Of texts that are too long together, the longest give first, down to the length at which all fit. Counting tokens
//! takes a second for a megabyte: of what is far too long a sample is counted, and no text is counted twice.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

use crate::served::Model;
use crate::served::ask::Message;

/// Tokens of a chat template around messages, and of rounding.
pub const AROUND: u32 = 64;
/// Texts shorter than this stay whole.
const SHORT: usize = 200;
/// What stands in place of what was cut.
const MARK: &str = "\n[... cut ...]\n";
/// Bytes for each token of room beyond which texts are far too long.
const FAR: usize = 8;
/// Bytes that stand for such texts: so many from the beginning, the middle and the end of the longest.
const SAMPLE: usize = 16 * 1024;

/// Tokens that a prompt may have: the answer keeps what it asks for, or a quarter where that is less.
pub fn room(context: u32, answer: u32) -> u32 {
    context.saturating_sub(answer.min(context / 4)).saturating_sub(AROUND)
}

/// The tokens of one request's texts.
pub struct Counter<'a> {
    model: &'a Model,
    /// By the text's hash.
    known: HashMap<u64, u64>,
}

impl<'a> Counter<'a> {
    pub fn new(model: &'a Model) -> Self {
        Self { model, known: HashMap::new() }
    }

    /// Tokens of a text; estimated where it is too long to be counted at all.
    pub async fn tokens(&mut self, text: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let key = hasher.finish();
        if let Some(count) = self.known.get(&key) {
            return *count;
        }
        let count = match self.model.count(text.to_owned()).await {
            Ok(count) => u64::from(count),
            Err(_) => (text.len() / 4) as u64,
        };
        self.known.insert(key, count);
        count
    }

    /// How many bytes of texts are too many together; `None` where they fit.
    pub async fn excess(&mut self, texts: &[&str], room: u32) -> Option<usize> {
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        // No text has more tokens than bytes.
        if bytes <= room as usize {
            return None;
        }
        let mut total = 0;
        if bytes > room as usize * FAR {
            total = self.estimate(texts, bytes).await;
        }
        if total <= u64::from(room) {
            total = 0;
            for text in texts {
                total += self.tokens(text).await;
            }
        }
        if total <= u64::from(room) {
            return None;
        }
        let share = 1.0 - f64::from(room) / total as f64;
        // A little more, as the texts that stay whole may have more tokens than their share; and never so little that
        // the rounds have no end.
        let excess = (share * 1.02 * bytes as f64).ceil() as usize;
        Some(excess.max(bytes / 64))
    }

    /// Tokens of texts by those of a sample.
    async fn estimate(&mut self, texts: &[&str], bytes: usize) -> u64 {
        let longest = texts.iter().max_by_key(|text| text.len()).copied().unwrap_or_default();
        let piece = SAMPLE.min(longest.len() / 3);
        let mut sample = String::new();
        for from in [0, (longest.len() - piece) / 2, longest.len() - piece] {
            let from = longest.ceil_char_boundary(from);
            let to = longest.ceil_char_boundary((from + piece).min(longest.len()));
            sample += &longest[from..to];
        }
        let tokens = self.tokens(&sample).await;
        (tokens as f64 / sample.len().max(1) as f64 * bytes as f64) as u64
    }
}

/// Cuts messages so that they leave room for an answer.
pub async fn messages(model: &Model, messages: &mut [Message], answer: u32) {
    let room = room(model.context(), answer);
    let mut counter = Counter::new(model);
    loop {
        let texts: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
        let Some(excess) = counter.excess(&texts, room).await else { break };
        if !cut(messages.iter_mut().map(|m| &mut m.content).collect(), excess) {
            break;
        }
        tracing::info!(model = model.name(), room, "messages cut to the model's context");
    }
}

/// The strings inside a value.
pub fn strings<'a>(value: &'a mut Value, into: &mut Vec<&'a mut String>) {
    match value {
        Value::String(text) => into.push(text),
        Value::Array(list) => list.iter_mut().for_each(|value| strings(value, into)),
        Value::Object(fields) => fields.values_mut().for_each(|value| strings(value, into)),
        _ => {}
    }
}

/// Takes so many bytes out of the longest texts; whether anything could be taken.
pub fn cut(mut texts: Vec<&mut String>, excess: usize) -> bool {
    let total: usize = texts.iter().map(|text| text.len()).sum();
    let mut left = total.saturating_sub(excess);
    texts.sort_by_key(|text| text.len());
    let (mut any, count) = (false, texts.len());
    for (i, text) in texts.into_iter().enumerate() {
        // What the shorter ones left over is shared by the longer ones.
        let share = left / (count - i);
        if text.len() > share.max(SHORT) {
            *text = shortened(text, share.max(SHORT));
            any = true;
        }
        left = left.saturating_sub(text.len());
    }
    any
}

/// The beginning and the end of a text, the end being a little longer: logs end with what went wrong.
pub fn shortened(text: &str, bytes: usize) -> String {
    let keep = bytes.saturating_sub(MARK.len());
    let begin = text.floor_char_boundary(keep * 2 / 5);
    let end = text.ceil_char_boundary(text.len() - (keep - keep * 2 / 5));
    format!("{}{MARK}{}", &text[..begin], &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_texts_give_first() {
        let (mut short, mut middle, mut long) = ("s".repeat(100), "m".repeat(1000), "l".repeat(9000));
        assert!(cut(vec![&mut long, &mut short, &mut middle], 5000));
        assert_eq!((short.len(), middle.len()), (100, 1000));
        assert!((3900..=4010).contains(&long.len()), "{}", long.len());
        assert!(long.contains("[... cut ...]"));
        assert!(!cut(vec![&mut short], 90), "short texts stay whole");
    }

    #[test]
    fn a_cut_never_falls_inside_a_character() {
        let text = "é".repeat(1000);
        let cut = shortened(&text, 301);
        assert!(cut.len() <= 301 && cut.starts_with('é') && cut.ends_with('é'));
    }
}
