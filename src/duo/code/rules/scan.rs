//! Brackets in code, those in strings and comments left out. It need not be exact: where it errs, a rule does nothing or
//! leaves a bracket too many.

use crate::duo::code::language::{Kind, Language};

/// What the scan stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    Code,
    /// Up to the end of the line.
    Comment,
    /// In text between quotes of one line.
    Line(char),
    /// In text, or a comment, up to this mark.
    Long(&'static str),
}

/// A bracket that closes what was opened before the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside {
    pub bracket: char,
    /// Bytes before it.
    pub at: usize,
}

#[derive(Clone, Debug)]
pub struct Scan {
    language: &'static Language,
    inside: Inside,
    /// Brackets that are open, the innermost last.
    pub open: Vec<char>,
    pub outside: Vec<Outside>,
    /// The text ends in what may still be a character or a string: nothing after this place was looked at.
    pub unsure: Option<usize>,
}

/// The bracket that closes this one.
pub fn closing(open: char) -> Option<char> {
    match open {
        '(' => Some(')'),
        '[' => Some(']'),
        '{' => Some('}'),
        _ => None,
    }
}

impl Scan {
    pub fn new(language: &'static Language) -> Self {
        let inside = Inside::Code;
        Self { language, inside, open: Vec::new(), outside: Vec::new(), unsure: None }
    }

    /// The state in which a text begins that follows this one; its brackets are counted anew.
    pub fn after(&self) -> Self {
        Self { inside: self.inside, ..Self::new(self.language) }
    }

    /// The state in code, whatever this one is in.
    pub fn afresh(&self) -> Self {
        Self::new(self.language)
    }

    /// Reads a text. `over`: nothing follows that could change what its last characters mean.
    pub fn read(mut self, text: &str, over: bool) -> Self {
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let rest = &text[at..];
            let mut step = c.len_utf8();
            match self.inside {
                Inside::Comment if c == '\n' => self.inside = Inside::Code,
                Inside::Comment => {}
                Inside::Line(_) if c == '\n' => self.inside = Inside::Code,
                Inside::Line(_) if c == '\\' => step += rest[step..].chars().next().map_or(0, char::len_utf8),
                Inside::Line(quote) if c == quote => self.inside = Inside::Code,
                Inside::Line(_) => {}
                Inside::Long(end) if rest.starts_with(end) => {
                    self.inside = Inside::Code;
                    step = end.len();
                }
                Inside::Long(_) => {}
                Inside::Code => match self.code(rest, c, at, over) {
                    Some(length) => step = length,
                    None => {
                        self.unsure = Some(at);
                        return self;
                    }
                },
            }
            at += step;
        }
        self
    }

    /// One character of code, or the mark it begins; `None`: more of the text is needed.
    fn code(&mut self, rest: &str, c: char, at: usize, over: bool) -> Option<usize> {
        if let Some(mark) = self.language.quotes.iter().find(|mark| rest.starts_with(**mark)) {
            self.inside = Inside::Long(mark);
            return Some(mark.len());
        }
        if let Some(mark) = self.language.comments.iter().find(|mark| rest.starts_with(**mark)) {
            self.inside = Inside::Comment;
            return Some(mark.len());
        }
        if rest.starts_with("/*") && self.language.kind != Kind::Prose {
            self.inside = Inside::Long("*/");
            return Some(2);
        }
        match c {
            '\'' if self.language.characters => return character(rest, over),
            '"' | '\'' => self.inside = Inside::Line(c),
            '(' | '[' | '{' => self.open.push(c),
            ')' | ']' | '}' => match self.open.iter().rposition(|open| closing(*open) == Some(c)) {
                Some(opened) => self.open.truncate(opened),
                None => self.outside.push(Outside { bracket: c, at }),
            },
            _ => {}
        }
        Some(c.len_utf8())
    }
}

/// The length of a character between quotes, or of the quote alone where it is none.
fn character(rest: &str, over: bool) -> Option<usize> {
    let mut characters = rest.char_indices().skip(1);
    let (first, second) = (characters.next(), characters.next());
    match (first, second) {
        (Some((_, '\\')), Some((at, c))) => {
            let after = &rest[at + c.len_utf8()..];
            match after.chars().next() {
                None if !over => None,
                Some('\'') => Some(at + c.len_utf8() + 1),
                _ => Some(1),
            }
        }
        (Some(_), Some((at, '\''))) => Some(at + 1),
        (Some(_), Some(_)) => Some(1),
        _ if over => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(language: &str, text: &str) -> (String, String) {
        let scan = Scan::new(Language::of_id(language).unwrap()).read(text, true);
        (scan.open.iter().collect(), scan.outside.iter().map(|o| o.bracket).collect())
    }

    #[test]
    fn brackets_in_strings_and_comments_do_not_count() {
        for (language, text, open, outside) in [
            ("python", "f(a, [b", "([", ""),
            ("python", "a)] # (", "", ")]"),
            ("python", "x = '(' + \"[\\\"(\"", "", ""),
            ("python", "\"\"\"(\n(\n\"\"\" + f(", "(", ""),
            ("rust", "fn a<'b>(c: &'b str, d: char) { d == '(' ", "{", ""),
            ("rust", "'\\'' (", "(", ""),
            ("c", "/* ( */ { // (\n(", "{(", ""),
            ("javascript", "`(${", "", ""),
            ("go", "f(\"(\")", "", ""),
            ("ruby", "puts \"#{a}\" # )", "", ""),
        ] {
            assert_eq!(scan(language, text), (open.into(), outside.into()), "{text}");
        }
    }

    #[test]
    fn a_text_can_begin_inside_a_string() {
        let before = Scan::new(Language::of_id("python").unwrap()).read("print(\"a", true);
        assert_eq!(before.open, ['(']);
        let after = before.after().read(") b\")", true);
        assert_eq!(after.outside, [Outside { bracket: ')', at: 4 }]);
    }
}
