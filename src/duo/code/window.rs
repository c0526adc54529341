//! Which part of the files around a cursor a model gets to see (step 4 in the life of a request), when not all of it
//! fits its context.
//!
//! Successive keystrokes in one file should find their prompt's beginning in the prefix cache, so a text that has to be
//! cut at its beginning begins at a place that stays while the text grows: of the line starts in a range behind the
//! first one that would fit, the one whose text has the smallest digest. The range moves with each keystroke; its
//! smallest member changes once in a great many. This costs a sixteenth of the text on average.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::editor::{CONTENT, Editor};
use crate::served::Model;
use crate::served::ask::Failure;

/// Of the context that the answer leaves, this share is for the text above the cursor, the rest for the text below.
const ABOVE: f64 = 0.93;
/// Tokens of markers, and of the seams between texts.
const MARKERS: u32 = 16;
/// Parts of a text among which its beginning is looked for.
const RANGE: usize = 8;
/// Parts of the budget by which the room of the context shrinks as the file grows.
const STEPS: u32 = 16;
/// No code has more bytes to a token on average: more than this is not counted.
const MOST_BYTES: usize = 8;
/// Rounds in which a text is brought to its budget.
const ROUNDS: usize = 4;
/// Bytes that tell one line's place from another's.
const DIGEST: usize = 80;

/// What the model sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    pub prefix: String,
    pub suffix: String,
}

impl Window {
    /// `taken`: tokens of the prompt besides, and of the answer.
    pub async fn of(model: &Model, editor: &Editor, context: &[String], taken: u32) -> Result<Self, Failure> {
        let budget = model.context().saturating_sub(taken + MARKERS);
        let above = (f64::from(budget) * ABOVE) as u32;
        let suffix = keep_start(model, &editor.below, budget - above).await?.to_owned();
        let prefix = keep_end(model, &editor.above, above).await?;
        let prefix = match whole(prefix) {
            true => prefix,
            // GitLab sends the last of a longer text, which begins elsewhere after every keystroke.
            false => &prefix[steady(prefix, 0)..],
        };
        let context = context.join("\n");
        let fitting = if context.is_empty() { "" } else { room(model, &context, prefix, above).await? };
        tracing::debug!(
            model = model.name(),
            budget,
            above = editor.above.len(),
            above_kept = prefix.len(),
            below = editor.below.len(),
            below_kept = suffix.len(),
            context = context.len(),
            context_kept = fitting.len(),
            "bytes of the texts around the cursor; the budget is in tokens"
        );
        let prefix = match fitting {
            "" => prefix.to_owned(),
            fitting => format!("{fitting}\n{prefix}"),
        };
        Ok(Self { prefix, suffix })
    }
}

/// Whether GitLab can have sent all of a text that came in this length.
fn whole(text: &str) -> bool {
    text.len() < CONTENT || text.chars().count() != CONTENT
}

/// As much of the context as the prefix leaves room for, in steps, so that its end stays while a person types.
async fn room<'a>(model: &Model, context: &'a str, prefix: &str, budget: u32) -> Result<&'a str, Failure> {
    if context.len() + prefix.len() < budget as usize {
        return Ok(context);
    }
    let used = model.count(prefix.to_owned()).await?;
    let step = (budget / STEPS).max(1);
    keep_start(model, context, budget.saturating_sub(used + 1) / step * step).await
}

/// The end of a text, of so many tokens at most.
pub async fn keep_end<'a>(model: &Model, text: &'a str, budget: u32) -> Result<&'a str, Failure> {
    let kept = fitting(model, text.len(), budget, |bytes| {
        let at = text.ceil_char_boundary(text.len() - bytes);
        &text[at..]
    });
    let kept = kept.await?;
    match text.len() - kept.len() {
        0 => Ok(text),
        at => Ok(&text[steady(text, at)..]),
    }
}

/// The beginning of a text, of so many tokens at most; whole lines where they are short.
pub async fn keep_start<'a>(model: &Model, text: &'a str, budget: u32) -> Result<&'a str, Failure> {
    let kept = fitting(model, text.len(), budget, |bytes| &text[..text.floor_char_boundary(bytes)]).await?;
    if kept.len() == text.len() {
        return Ok(text);
    }
    let line = kept.rfind('\n').filter(|end| *end >= kept.len() - kept.len() / 4);
    Ok(line.map_or(kept, |end| &kept[..end]))
}

/// A part that fits: `part` gives one of so many bytes. Most texts have fewer bytes than the budget has tokens, and
/// need no count.
async fn fitting<'a>(
    model: &Model,
    bytes: usize,
    budget: u32,
    part: impl Fn(usize) -> &'a str,
) -> Result<&'a str, Failure> {
    let room = budget as usize;
    if bytes <= room {
        return Ok(part(bytes));
    }
    let mut kept = part(bytes.min(room * MOST_BYTES));
    for _ in 0..ROUNDS {
        if kept.len() <= room {
            break;
        }
        let tokens = model.count(kept.to_owned()).await? as usize;
        if tokens <= room {
            return Ok(kept);
        }
        // A little less than the share, as texts are not even.
        kept = part((kept.len() as f64 * room as f64 / tokens as f64 * 0.97) as usize);
    }
    Ok(part(kept.len().min(room)))
}

/// A place at or soon behind `from` where a text begins again after it has grown: see above.
fn steady(text: &str, from: usize) -> usize {
    let end = from + (text.len() - from) / RANGE;
    let starts = text.as_bytes()[from..end].iter().enumerate().filter(|(_, b)| **b == b'\n');
    let digest = |start: &usize| {
        let line = &text.as_bytes()[*start..text.len().min(start + DIGEST)];
        let mut hasher = DefaultHasher::new();
        line.hash(&mut hasher);
        hasher.finish()
    };
    starts.map(|(i, _)| from + i + 1).min_by_key(digest).unwrap_or(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growing_text_keeps_its_beginning_for_many_keystrokes() {
        let file: String = (0..4000).map(|i| format!("    value_{i} = compute({i})\n")).collect();
        let mut beginnings = std::collections::BTreeSet::new();
        let keystrokes = 500;
        for typed in 0..keystrokes {
            // What GitLab sends of a long file: so many characters before the cursor.
            let text = &file[typed..typed + 40_000];
            let start = typed + steady(text, 0);
            assert!(start - typed <= 40_000 / RANGE);
            assert!(file[..start].ends_with('\n'));
            beginnings.insert(start);
        }
        assert!(beginnings.len() <= 8, "{} beginnings in {keystrokes} keystrokes", beginnings.len());
    }

    #[test]
    fn a_text_without_lines_begins_where_it_must() {
        assert_eq!(steady(&"x".repeat(1000), 10), 10);
        assert_eq!(steady("", 0), 0);
    }
}
