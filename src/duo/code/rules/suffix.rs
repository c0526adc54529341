//! What follows the cursor is not written again: the rest of its line at a completion's end, and the lines below. A
//! model that fills a gap without knowing when to stop goes on with the text that it was shown.

use super::scan::Scan;
use super::{Draft, Rule};
use crate::duo::code::language::Language;

/// Letters and digits in repeated lines that make chance unlikely, so that the answer can end before they do.
const TELLING: usize = 10;

pub struct Suffix {
    /// What follows in the cursor's line; empty where that is blank.
    rest: String,
    /// The lines below with text, their ends left out.
    below: Vec<String>,
    /// The indentation that the completion's first line has, where it is a line of its own.
    indentation: Option<String>,
    /// A line end follows.
    line_ends: bool,
    cursor: Scan,
}

impl Suffix {
    pub fn new(above: &str, below: &str, language: &'static Language) -> Self {
        let (rest, lines) = below.split_once('\n').unwrap_or((below, ""));
        let blank = rest.trim().is_empty();
        let line = above.rsplit('\n').next().unwrap_or_default();
        let lines = lines.lines().map(str::trim_end).filter(|line| !line.is_empty());
        Self {
            rest: if blank { String::new() } else { rest.trim_end().to_owned() },
            below: lines.map(str::to_owned).collect(),
            indentation: (blank && line.trim().is_empty()).then(|| line.to_owned()),
            line_ends: blank && below.contains('\n'),
            cursor: Scan::new(language).read(line, true).after(),
        }
    }

    /// Whether the text up to there leaves no bracket open that what comes after it closes.
    fn balanced(&self, text: &str, at: usize) -> bool {
        let open = |text: &str| self.cursor.clone().read(text, true).open.len();
        open(&text[..at]) <= open(text)
    }

    /// Where the rest of the cursor's line begins again, at the end of this text.
    fn rest_again(&self, text: &str) -> Option<usize> {
        let at = text.strip_suffix(self.rest.as_str()).filter(|_| !self.rest.is_empty())?.len();
        self.balanced(text, at).then_some(at)
    }

    /// Where the lines below begin again.
    fn lines_again(&self, text: &str, over: bool) -> Again {
        if self.below.is_empty() {
            return Again::No;
        }
        let mut lines = Vec::new();
        let mut end = 0;
        for (i, line) in text.split_inclusive('\n').enumerate() {
            let start = end;
            end += line.len();
            let bare = match (i, &self.indentation) {
                (0, None) => continue,
                (0, Some(indentation)) => format!("{indentation}{}", line.trim_end()),
                _ => line.trim_end().to_owned(),
            };
            if !bare.trim().is_empty() {
                lines.push(Line { start, end, text: bare, whole: over || line.ends_with('\n') });
            }
        }
        for (i, line) in lines.iter().enumerate() {
            let same = self.same(&lines[i..], over);
            if same == Same::No || (line.whole && !self.balanced(&text[..line.end], line.start)) {
                continue;
            }
            // The line end in front is not certain either.
            let at = text[..line.start].strip_suffix('\n').map_or(line.start, str::len);
            return if same == Same::Yes { Again::At(at) } else { Again::Perhaps(at) };
        }
        Again::No
    }

    fn same(&self, lines: &[Line], over: bool) -> Same {
        let mut letters = 0;
        for (i, line) in lines.iter().enumerate() {
            let Some(below) = self.below.get(i) else { return Same::Yes };
            match line.whole {
                true if line.text == *below => {
                    letters += below.chars().filter(|c| c.is_alphanumeric()).count();
                }
                false if below.starts_with(line.text.as_str()) => return Same::Perhaps,
                _ => return Same::No,
            }
            if letters >= TELLING {
                return Same::Yes;
            }
        }
        if over { Same::Yes } else { Same::Perhaps }
    }
}

/// A line with text of the completion.
struct Line {
    start: usize,
    end: usize,
    text: String,
    whole: bool,
}

enum Again {
    No,
    Perhaps(usize),
    At(usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Same {
    No,
    Perhaps,
    Yes,
}

impl Rule for Suffix {
    fn name(&self) -> &'static str {
        "suffix"
    }

    fn apply(&self, draft: Draft) -> Draft {
        let over = draft.over();
        let first_line = draft.text.find('\n').map(|end| &draft.text[..end]);
        if let Some(at) = first_line.and_then(|line| self.rest_again(line)) {
            return draft.end(at);
        }
        let mut certain = draft.text.len();
        match self.lines_again(&draft.text, over) {
            Again::At(at) => {
                let at = if self.line_ends { draft.text[..at].trim_end().len() } else { at };
                return draft.end(at);
            }
            Again::Perhaps(at) => certain = at,
            Again::No => {}
        }
        if over {
            let at = self.rest_again(&draft.text).unwrap_or(certain);
            let at = if self.line_ends { draft.text[..at].trim_end().len() } else { at };
            return Draft { text: draft.text[..at].to_owned(), fate: draft.fate };
        }
        // The end of the text may be the beginning of the rest.
        let again = (0..=self.rest.len()).rev().filter(|n| self.rest.is_char_boundary(*n));
        let held = again.map(|n| &self.rest[..n]).find(|part| draft.text.ends_with(part));
        certain = certain.min(draft.text.len() - held.map_or(0, str::len));
        let bare = draft.text[..certain].trim_end();
        let blanks = &draft.text[bare.len()..certain];
        match blanks.rfind('\n') {
            _ if self.line_ends => certain = bare.len(),
            Some(end) if !self.below.is_empty() => certain = bare.len() + end,
            _ => {}
        }
        draft.hold(certain)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::whole;
    use super::*;
    use crate::duo::code::language::Language;

    fn check(above: &str, before: &str, below: &str, after: &str) {
        let rule = Suffix::new(above, below, Language::of_id("python").unwrap());
        assert_eq!(whole(&rule, before), after, "{above:?} | {before:?} | {below:?}");
    }

    #[test]
    fn the_rest_of_the_line_is_not_written_again() {
        check("return ", "x + 1", " + 1\n", "x");
        check("print(\"", "hello\")", "\")\n", "hello");
        check("if a", " > 1:\n    return", ":\n", " > 1");
        check("foo(", "bar(x)", ")\n", "bar(x)");
        check("x = [", "\n    1,\n    2,\n]", "]\n", "\n    1,\n    2,\n");
    }

    #[test]
    fn the_lines_below_are_not_written_again() {
        check("def a():\n    ", "b()\n    return total_sum\n", "\n    return total_sum\n", "b()");
        check("def a():\n    ", "b()\n    c()", "\n    c()\n    d()\n", "b()");
        check("def a():\n    ", "return total_sum", "\n    return total_sum\n", "");
        check("x = ", "1\n\nfor item in items:\n    go(item)\n", "\n\nfor item in items:\n", "1");
    }

    #[test]
    fn lines_that_only_look_alike_stay() {
        check("def a():\n    ", "c()\n    d()\n", "\n    c(1)\n", "c()\n    d()");
        check("def a():\n    ", "x\n    }\n    y", "\n    }\n    z\n", "x\n    }\n    y");
        check("x = ", "return 1", "", "return 1");
    }

    #[test]
    fn the_end_of_the_line_is_there_already() {
        check("x = ", "1\n", "\ny = 2\n", "1");
        check("x = ", "1\n", "", "1\n");
    }
}
