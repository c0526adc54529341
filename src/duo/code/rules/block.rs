//! A completion of several lines ends where its block ends: before the first line that is indented less than the
//! cursor's line and closes nothing, and before the statement after a block that the cursor's own line began. The model
//! would go on to the end of the file.

use super::{Draft, Rule};
use crate::duo::code::language::{Kind, Language};

/// Columns of a tab.
const TAB: usize = 4;

/// Words that go on with a statement of which a block has just ended.
const GOES_ON: &[&str] = &[
    "else", "elif", "elsif", "elseif", "except", "rescue", "ensure", "finally", "catch", "then", "do",
    "until", "where", "in",
];
/// Words that close a block.
const CLOSES: &[&str] = &["end", "fi", "done", "esac", "endif", "endfor", "endwhile", "endfunction"];

pub struct Block {
    off: bool,
    /// Indentation of the cursor's line.
    indentation: usize,
    /// Nothing else stands in the cursor's line: the completion is a statement like those around it, and not the rest
    /// of one.
    blank: bool,
}

impl Block {
    pub fn new(above: &str, language: &Language) -> Self {
        let line = above.rsplit('\n').next().unwrap_or_default();
        Self {
            off: language.kind == Kind::Prose,
            indentation: indentation(line),
            blank: line.trim().is_empty(),
        }
    }
}

fn indentation(line: &str) -> usize {
    let blanks = line.chars().take_while(|c| matches!(c, ' ' | '\t'));
    blanks.map(|c| if c == '\t' { TAB } else { 1 }).sum()
}

/// What a line does at its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begins {
    /// Goes on with a statement, or closes a block.
    Old,
    New,
    /// It is too short to say.
    Open,
}

fn begins(line: &str, whole: bool) -> Begins {
    let line = line.trim_start();
    let word_end = line.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(line.len());
    let word = line[..word_end].to_ascii_lowercase();
    let mut known = GOES_ON.iter().chain(CLOSES);
    match line.chars().next() {
        None => Begins::Open,
        Some('}' | ')' | ']' | '{') => Begins::Old,
        Some('<') if line.starts_with("</") => Begins::Old,
        Some('<') if line.len() == 1 && !whole => Begins::Open,
        _ if word_end == line.len() && !whole => match known.any(|k| k.starts_with(&word)) {
            true => Begins::Open,
            false => Begins::New,
        },
        _ if known.any(|k| *k == word) => Begins::Old,
        _ => Begins::New,
    }
}

impl Rule for Block {
    fn name(&self) -> &'static str {
        "block"
    }

    fn apply(&self, draft: Draft) -> Draft {
        if self.off {
            return draft;
        }
        let over = draft.over();
        let (mut level, mut blank) = (self.indentation, self.blank);
        // Since the level was last reached: a line that is indented more, and an empty line.
        let (mut deeper, mut gap) = (false, false);
        // End of the last line with text that belongs here, its line end left out; start of the next line.
        let (mut kept, mut start) = (0, 0);
        for (i, line) in draft.text.split_inclusive('\n').enumerate() {
            let (at, whole) = (start, over || line.ends_with('\n'));
            start += line.len();
            let text_end = at + line.trim_end().len();
            if i == 0 {
                kept = at + line.strip_suffix('\n').unwrap_or(line).len();
                continue;
            }
            if line.trim().is_empty() {
                gap = true;
                continue;
            }
            let columns = indentation(line);
            let begins = begins(line, whole);
            let ends = match begins {
                Begins::Open => return draft.hold(kept),
                Begins::New if columns < level => true,
                // Siblings of the cursor's line go on, up to the paragraph after a block.
                Begins::New if columns == level => deeper && (!blank || gap),
                _ => false,
            };
            if ends && !draft.text[..kept].trim().is_empty() {
                return draft.end(kept);
            }
            if !whole {
                return draft.hold(kept);
            }
            match columns.cmp(&level) {
                std::cmp::Ordering::Greater => deeper = true,
                std::cmp::Ordering::Equal => {}
                std::cmp::Ordering::Less => (level, blank, deeper) = (columns, false, true),
            }
            gap = false;
            kept = text_end;
        }
        match over {
            true => draft,
            false => draft.hold(kept),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::whole;
    use super::*;
    use crate::duo::code::language::Language;

    fn check(language: &str, above: &str, before: &str, after: &str) {
        let rule = Block::new(above, Language::of_id(language).unwrap());
        assert_eq!(whole(&rule, before), after, "{above:?} | {before:?}");
    }

    #[test]
    fn the_block_that_the_cursors_line_begins_is_all_of_it() {
        let ruby = "\n  puts 'hello'\nend\n\ndef other\n  1\nend\n";
        check("ruby", "def hello_world", ruby, "\n  puts 'hello'\nend");
        let python = "\n    if x:\n        y()\n    else:\n        z()\n    return 1\n\n\ndef b():\n";
        check("python", "def a():", python, "\n    if x:\n        y()\n    else:\n        z()\n    return 1");
        check("c", "void f()", "\n{\n\tg();\n}\n\nvoid h()\n{\n", "\n{\n\tg();\n}");
    }

    #[test]
    fn lines_beside_the_cursor_go_on_until_their_block_ends() {
        check("python", "def a():\n    ", "x = 1\n    return x\n\ndef b():\n", "x = 1\n    return x");
        check("javascript", "function a() {\n  ", "b();\n  c();\n}\n\nfunction d() {\n", "b();\n  c();\n}");
        check(
            "ruby",
            "def a\n  if b\n    ",
            "c\n  else\n    d\n  end\nend\nx = 1",
            "c\n  else\n    d\n  end\nend",
        );
        check("python", "x = ", "1\ny = 2\n", "1\ny = 2\n");
    }

    #[test]
    fn a_paragraph_after_a_block_is_another_thought() {
        let text = "def a():\n    return 1\n\n\ndef b():\n    return 2\n";
        check("python", "import os\n\n", text, "def a():\n    return 1");
    }

    #[test]
    fn markup_closes_with_tags_and_prose_has_no_blocks() {
        check("html", "<ul>\n  ", "<li>a</li>\n</ul>\n<p>\n", "<li>a</li>\n</ul>");
        check("markdown", "  - a", "\n- b\n", "\n- b\n");
    }

    #[test]
    fn something_always_stays() {
        check("python", "    x = f(", "\ny = 1\n", "\ny = 1\n");
    }
}
