//! Finding added tokens in a text, leftmost and longest first, with control tokens only where they are allowed.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

/// An added token as it is looked for.
#[derive(Clone, Debug)]
pub struct Pattern {
    pub id: u32,
    pub text: String,
    /// Only found where the text is trusted.
    pub control: bool,
    /// Only found with no letter or digit on either side.
    pub single_word: bool,
    /// Takes the blanks to its left along.
    pub lstrip: bool,
    /// Takes the blanks to its right along.
    pub rstrip: bool,
}

pub struct Matcher {
    all: Vec<Pattern>,
    plain: Vec<Pattern>,
    find_all: Option<AhoCorasick>,
    find_plain: Option<AhoCorasick>,
}

impl Matcher {
    pub fn new(mut all: Vec<Pattern>) -> Result<Self, String> {
        all.retain(|p| !p.text.is_empty());
        let plain: Vec<Pattern> = all.iter().filter(|p| !p.control).cloned().collect();
        Ok(Self { find_all: automaton(&all)?, find_plain: automaton(&plain)?, all, plain })
    }

    /// The text cut at its added tokens: pieces in order, all of the text, those that are a token with its id.
    pub fn cuts(
        &self,
        text: &str,
        mut allowed: impl FnMut(Range<usize>) -> bool,
    ) -> Vec<(Option<u32>, Range<usize>)> {
        let mut cuts = Vec::new();
        let (mut done, mut at) = (0, 0);
        // The leftmost plain match that may still lie ahead, so that refused matches do not search a text twice.
        let mut plain = Ahead::Unknown;
        while let Some(mut found) = find(&self.find_all, &self.all, text, at) {
            if found.pattern.control && !allowed(found.range.clone()) {
                // Not here; but a shorter plain token may begin at the same place.
                if !plain.holds(at) {
                    plain =
                        find(&self.find_plain, &self.plain, text, at).map_or(Ahead::Nothing, Ahead::Match);
                }
                match &plain {
                    Ahead::Match(f) if f.range.start == found.range.start => found = f.clone(),
                    _ => {
                        at = next_char(text, found.range.start);
                        continue;
                    }
                }
            }
            let Range { mut start, mut end } = found.range;
            at = end;
            if found.pattern.single_word && !alone(text, start, end) {
                continue;
            }
            if found.pattern.lstrip {
                start = text[..start].trim_end().len().max(done);
            }
            if found.pattern.rstrip {
                end += text[end..].len() - text[end..].trim_start().len();
            }
            if done < start {
                cuts.push((None, done..start));
            }
            cuts.push((Some(found.pattern.id), start..end));
            done = end;
            at = end;
        }
        if done < text.len() || cuts.is_empty() {
            cuts.push((None, done..text.len()));
        }
        cuts
    }
}

fn find<'a>(
    automaton: &Option<AhoCorasick>,
    patterns: &'a [Pattern],
    text: &str,
    at: usize,
) -> Option<Found<'a>> {
    let found = automaton.as_ref()?.find(aho_corasick::Input::new(text).range(at..))?;
    Some(Found { pattern: &patterns[found.pattern().as_usize()], range: found.range() })
}

enum Ahead<'a> {
    Unknown,
    Nothing,
    Match(Found<'a>),
}

impl Ahead<'_> {
    /// Whether what is known is still true of the text from `at` on.
    fn holds(&self, at: usize) -> bool {
        match self {
            Ahead::Unknown => false,
            Ahead::Nothing => true,
            Ahead::Match(found) => found.range.start >= at,
        }
    }
}

#[derive(Clone)]
struct Found<'a> {
    pattern: &'a Pattern,
    range: Range<usize>,
}

fn automaton(patterns: &[Pattern]) -> Result<Option<AhoCorasick>, String> {
    if patterns.is_empty() {
        return Ok(None);
    }
    AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(patterns.iter().map(|p| &p.text))
        .map(Some)
        .map_err(|e| e.to_string())
}

fn next_char(text: &str, at: usize) -> usize {
    at + text[at..].chars().next().map_or(1, char::len_utf8)
}

fn alone(text: &str, start: usize, end: usize) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    !text[..start].chars().next_back().is_some_and(word) && !text[end..].chars().next().is_some_and(word)
}
