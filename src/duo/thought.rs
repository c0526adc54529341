//! Thoughts between tags, which some families write in front of an answer and nobody is to see (step 10 in the life of a
//! request).

use futures::StreamExt;

use crate::served::ask::{Answer, Failure, Piece};
use crate::served::family::Family;

const BEGIN: &str = "<think>";
const END: &str = "</think>";
/// An end of a thought without its beginning is looked for in this many characters.
const ORPHAN: usize = 80;
/// Tokens that an answer may have besides where a thought may stand in front of it.
pub const TOKENS: u32 = 4096;

/// An answer's words on their way; held back while they may be a thought.
#[derive(Clone, Debug, Default)]
pub struct Thought {
    held: String,
    /// Whether a thought may still stand in front.
    hidden: bool,
}

impl Thought {
    pub fn of(family: Family) -> Self {
        Self { hidden: family.thinks(), ..Self::default() }
    }

    /// Takes the next words; what of all words so far is certain to be no thought and was not handed out before.
    pub fn push(&mut self, piece: &str) -> String {
        if !self.hidden {
            return piece.to_owned();
        }
        self.held += piece;
        let start = self.held.trim_start();
        let whole = start.starts_with(BEGIN);
        let end = match whole {
            true => start.find(END),
            false => start.find(END).filter(|at| start[..*at].chars().count() <= ORPHAN),
        };
        if let Some(at) = end {
            let rest = start[at + END.len()..].trim_start().to_owned();
            // The blanks behind the thought may come with the next words.
            self.hidden = rest.is_empty();
            self.held = if self.hidden { format!("{BEGIN}{END}") } else { String::new() };
            return rest;
        }
        if !whole && start.chars().count() > ORPHAN + END.len() {
            self.hidden = false;
            return std::mem::take(&mut self.held);
        }
        String::new()
    }

    /// The end of the words: what was held back, unless it is a thought.
    pub fn finish(&mut self) -> String {
        self.hidden = false;
        let held = std::mem::take(&mut self.held);
        if held.trim_start().starts_with(BEGIN) { String::new() } else { held }
    }
}

/// An answer of a model of that family without its thought.
pub fn without(family: Family, answer: Answer) -> Answer {
    if !family.thinks() {
        return answer;
    }
    let mut thought = Thought::of(family);
    Answer::new(answer.flat_map(move |piece| {
        let (text, last) = match piece {
            Ok(Piece::Text(text)) => (thought.push(&text), None),
            last => (thought.finish(), Some(last)),
        };
        let text: Option<Result<Piece, Failure>> = (!text.is_empty()).then_some(Ok(Piece::Text(text)));
        futures::stream::iter(text.into_iter().chain(last))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(family: Family, pieces: &[&str]) -> String {
        let mut thought = Thought::of(family);
        let mut said: String = pieces.iter().map(|piece| thought.push(piece)).collect();
        said += &thought.finish();
        said
    }

    #[test]
    fn a_thought_is_not_seen_however_it_is_cut() {
        for text in [
            "<think>\nHm.\n</think>\n\n It is so. \n",
            "\n<think></think>It is so. \n",
            "Hm.</think> It is so. \n",
        ] {
            let letters: Vec<String> = text.chars().map(String::from).collect();
            let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
            assert_eq!(said(Family::Qwen, &letters), "It is so. \n", "{text:?}");
            assert_eq!(said(Family::Qwen, &[text]), "It is so. \n", "{text:?}");
            assert_eq!(said(Family::General, &letters), text, "other families' tags are words");
        }
        assert_eq!(said(Family::Qwen, &["<think>I was cut"]), "");
    }

    #[test]
    fn words_without_a_thought_stay_as_they_are() {
        assert_eq!(said(Family::Qwen, &["  Yes", ".\n"]), "  Yes.\n");
        let late = format!("{}</think> is a tag.", "word ".repeat(40));
        assert_eq!(said(Family::Qwen, &[&late]), late);
    }
}
