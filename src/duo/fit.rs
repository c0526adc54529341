//! Long contents fitted into a model's context (step 4 in the life of a request): GitLab sends whole files, logs and
//! diffs, and half of a file with a mark in the middle is worth more than a refusal.
//!
//! Of texts that are too long together, the longest give first, down to the length at which all fit.

use serde_json::Value;

use crate::served::Model;
use crate::served::ask::Message;

/// Rounds of cutting: tokens are estimated from lengths, and each round comes closer.
pub const TRIES: usize = 4;
/// Tokens of a chat template around messages, and of rounding.
const AROUND: u32 = 64;
/// Texts shorter than this stay whole.
const SHORT: usize = 200;
/// What stands in place of what was cut.
const MARK: &str = "\n[... cut ...]\n";

/// Tokens that a prompt may have: the answer keeps what it asks for, or a quarter where that is less.
pub fn room(context: u32, answer: u32) -> u32 {
    context.saturating_sub(answer.min(context / 4)).saturating_sub(AROUND)
}

/// Tokens of a text; estimated where it is too long to be counted at all.
pub async fn tokens(model: &Model, text: &str) -> u64 {
    match model.count(text.to_owned()).await {
        Ok(count) => u64::from(count),
        Err(_) => (text.len() / 4) as u64,
    }
}

/// How many bytes of texts are too many together; `None` where they fit.
pub async fn excess<'a>(model: &Model, texts: impl Iterator<Item = &'a str>, room: u32) -> Option<usize> {
    let (mut bytes, mut total) = (0, 0);
    for text in texts {
        bytes += text.len();
        total += tokens(model, text).await;
    }
    if total <= u64::from(room) {
        return None;
    }
    let share = 1.0 - f64::from(room) / total as f64;
    // A little more, as the texts that stay whole may have more tokens than their share.
    Some((share * 1.02 * bytes as f64).ceil() as usize)
}

/// Cuts messages so that they leave room for an answer.
pub async fn messages(model: &Model, messages: &mut [Message], answer: u32) {
    let room = room(model.context(), answer);
    for _ in 0..TRIES {
        if messages.iter().map(|m| m.content.len()).sum::<usize>() <= room as usize {
            break;
        }
        let Some(excess) = excess(model, messages.iter().map(|m| m.content.as_str()), room).await else {
            break;
        };
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
