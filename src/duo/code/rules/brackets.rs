//! A completion ends before a bracket that closes what was opened above the cursor, where the text below closes it
//! already: editors write both brackets when a person types the first.

use super::scan::{Scan, closing};
use super::{Draft, Rule};
use crate::duo::code::language::{Kind, Language};

pub struct Brackets {
    /// The state at the cursor; `None`: nothing is closed below, or brackets mean nothing here.
    cursor: Option<Scan>,
    /// How many brackets that were opened above are not closed below.
    missing: usize,
    /// The bracket that follows next below, and the one it closes.
    next: char,
    opening: char,
    /// The cursor is at the end of its line.
    line_ends: bool,
}

impl Brackets {
    pub fn new(above: &str, below: &str, language: &'static Language) -> Self {
        let off = Self { cursor: None, missing: 0, next: ' ', opening: ' ', line_ends: false };
        if language.kind == Kind::Prose || below.trim().is_empty() {
            return off;
        }
        let cursor = Scan::new(language).read(above, true);
        let closed: Vec<char> = cursor.after().read(below, true).outside.iter().map(|o| o.bracket).collect();
        let Some(missing) = missing(&cursor.open, &closed) else { return off };
        let (Some(&next), Some(&opening)) = (closed.first(), cursor.open.iter().rev().nth(missing)) else {
            return off;
        };
        let line_ends = below.lines().next().is_none_or(|line| line.trim().is_empty());
        Self { missing, next, opening, cursor: Some(cursor.after()), line_ends }
    }
}

/// How many of the innermost open brackets have to be left out so that the others are closed in their order. A whole
/// file's brackets come out even; a part of one is read from the cursor outwards.
fn missing(open: &[char], closed: &[char]) -> Option<usize> {
    let closes = |missing: usize| {
        let mut pairs = open.iter().rev().skip(missing).zip(closed);
        pairs.all(|(open, close)| closing(*open) == Some(*close))
    };
    let even = open.len().checked_sub(closed.len()).filter(|missing| !closed.is_empty() && closes(*missing));
    even.or_else(|| (0..open.len()).find(|missing| closes(*missing)))
}

/// What a line that closes a bracket goes on with.
enum Goes {
    /// Nothing that opens the bracket again.
    Nowhere,
    /// `} else {`: the bracket that follows below closes the new one, which ends after so many bytes.
    Again(usize),
    Open,
}

fn goes(after: &str, open: char, over: bool) -> Goes {
    let line = after.split('\n').next().unwrap_or_default();
    let whole = over || line.len() < after.len();
    match (line.trim().chars().next(), line.find(open)) {
        (None, _) if !whole => Goes::Open,
        (Some(c), Some(at)) if c.is_alphabetic() => Goes::Again(at + open.len_utf8()),
        (Some(c), None) if c.is_alphabetic() && !whole => Goes::Open,
        _ => Goes::Nowhere,
    }
}

impl Rule for Brackets {
    fn name(&self) -> &'static str {
        "brackets"
    }

    fn apply(&self, draft: Draft) -> Draft {
        let Some(cursor) = &self.cursor else { return draft };
        let over = draft.over();
        let (mut scan, mut from, mut missing) = (cursor.clone(), 0, self.missing);
        // The blanks before a bracket that goes, go with it.
        let bare = |at: usize| if self.line_ends { draft.text[..at].trim_end().len() } else { at };
        loop {
            scan = scan.read(&draft.text[from..], over);
            let Some(outside) = scan.outside.get(missing).filter(|o| o.bracket == self.next) else {
                let certain = scan.unsure.map_or(draft.text.len(), |at| from + at);
                // A bracket may follow the blanks at the end.
                let certain = bare(certain);
                return draft.hold(certain);
            };
            let at = from + outside.at;
            let after = at + self.next.len_utf8();
            match goes(&draft.text[after..], self.opening, over) {
                Goes::Again(length) => {
                    (scan, from, missing) = (cursor.afresh(), after + length, 0);
                }
                Goes::Open => {
                    let at = bare(at);
                    return draft.hold(at);
                }
                Goes::Nowhere => {
                    let at = bare(at);
                    return draft.end(at);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::whole;
    use super::*;
    use crate::duo::code::language::Language;

    fn check(language: &str, above: &str, before: &str, below: &str, after: &str) {
        let rule = Brackets::new(above, below, Language::of_id(language).unwrap());
        assert_eq!(whole(&rule, before), after, "{above:?} | {before:?} | {below:?}");
    }

    #[test]
    fn a_bracket_that_stands_below_is_not_written_again() {
        check("python", "foo(", "a, b)", ")\n", "a, b");
        check("javascript", "foo(", "a, b);\nbar();", ");\n", "a, b");
        check("javascript", "if (a) {", "\n  b(c);\n  }\n", "}\n", "\n  b(c);\n  ");
        check("rust", "fn a() {\n    if b(", "c)", ") {\n    }\n}\n", "c");
    }

    #[test]
    fn a_bracket_that_is_missing_below_is_written() {
        check("python", "foo(", "a, b)", "\nbar()\n", "a, b)");
        check("javascript", "function f() {\n  g(", "a);", "\n}\n", "a);");
        check("javascript", "function f() {\n  g(", "a);\n}", "\n}\n", "a);");
        check("javascript", "f(g(", "a)", ");\n", "a)");
        check("python", "x = [", "1, 2]", "", "1, 2]");
    }

    #[test]
    fn its_own_brackets_are_its_own() {
        check("python", "foo(", "bar(1), [2]", ")\n", "bar(1), [2]");
        check("python", "foo(", "')'", ")\n", "')'");
    }

    #[test]
    fn a_bracket_that_is_opened_again_is_no_end() {
        check("javascript", "if (a) {\n  b();\n", "} else {\n  c();", "\n}\n", "} else {\n  c();");
        check("javascript", "if (a) {\n  b();\n", "} else {\n  c();\n}", "\n}\n", "} else {\n  c();");
    }

    #[test]
    fn prose_has_no_brackets() {
        check("markdown", "(see ", "above)", ")", "above)");
    }
}
