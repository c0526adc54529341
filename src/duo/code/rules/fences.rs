//! Models that were trained for conversations put code between fences (three backticks). An answer that begins with a
//! fence is what stands up to the next one; a later fence ends a completion, as what follows it is talk. Markdown keeps
//! its fences.

use super::{Draft, Rule};
use crate::duo::code::language::{Kind, Language};

const FENCE: &str = "```";

pub struct Fences {
    off: bool,
    /// A fence after the first line opens the code, which may follow a sentence or two.
    talk: bool,
}

impl Fences {
    pub fn completion(language: &Language) -> Self {
        Self { off: language.kind == Kind::Prose, talk: false }
    }

    pub fn generation(language: &Language) -> Self {
        Self { off: language.kind == Kind::Prose, talk: true }
    }
}

/// Whether a line could still become a fence.
fn could(line: &str) -> bool {
    let line = line.trim();
    FENCE.starts_with(line) || line.starts_with(FENCE)
}

fn is_fence(line: &str) -> bool {
    line.trim_start().strip_prefix(FENCE).is_some_and(|rest| {
        // More behind it is a language's name, or code that was fenced in one line.
        !rest.trim().contains(char::is_whitespace) && !rest.contains('`')
    })
}

impl Rule for Fences {
    fn name(&self) -> &'static str {
        "fences"
    }

    fn apply(&self, draft: Draft) -> Draft {
        if self.off {
            return draft;
        }
        let over = draft.over();
        let (mut kept, mut open, mut begun) = (String::new(), false, false);
        for line in draft.text.split_inclusive('\n') {
            let whole = line.ends_with('\n');
            if !whole && !over && could(line) {
                break;
            }
            if !is_fence(line) {
                begun |= !line.trim().is_empty();
                kept += line;
                continue;
            }
            if open || (begun && !self.talk) {
                let at = kept.strip_suffix('\n').unwrap_or(&kept).len();
                return Draft { text: kept, fate: draft.fate }.end(at);
            }
            if !begun {
                kept.clear();
            }
            open = true;
        }
        let draft = Draft { text: kept, fate: draft.fate };
        let ticks = draft.text.trim_end_matches('`').len();
        if over {
            return match draft.text.len() - ticks >= FENCE.len() {
                true => inline(draft, ticks),
                false => draft,
            };
        }
        // Blanks before a fence go with it, and the end of the line before it.
        if !begun {
            return draft.hold(0);
        }
        let end = draft.text.trim_end_matches(['\n', '\r']).len().min(ticks);
        draft.hold(end)
    }
}

/// Code fenced in one line, or with a fence at its end.
fn inline(mut draft: Draft, end: usize) -> Draft {
    draft.text.truncate(end);
    let inside = draft.text.trim_start().strip_prefix(FENCE).filter(|rest| !rest.contains('\n'));
    if let Some(inside) = inside {
        draft.text = inside.trim_start_matches('`').to_owned();
    }
    draft
}

#[cfg(test)]
mod tests {
    use super::super::tests::whole;
    use super::*;
    use crate::duo::code::language::Language;

    fn ruby() -> &'static Language {
        Language::of_id("ruby").unwrap()
    }

    #[test]
    fn a_completion_is_what_stands_between_its_fences() {
        for (before, after) in [
            ("```ruby\nputs 1\n```", "puts 1"),
            ("\n```ruby\nputs 1\n```\nThis prints 1.", "puts 1"),
            ("```\nputs 1\nputs 2\n", "puts 1\nputs 2\n"),
            ("puts 1\n```\nThis prints 1.", "puts 1"),
            ("puts 1```", "puts 1"),
            ("```puts 1```", "puts 1"),
            ("```ruby", ""),
            ("puts `ls`", "puts `ls`"),
            ("\n  puts 1\n\n  puts 2\n", "\n  puts 1\n\n  puts 2\n"),
        ] {
            assert_eq!(whole(&Fences::completion(ruby()), before), after, "{before:?}");
        }
    }

    #[test]
    fn a_generation_may_talk_before_its_code() {
        let fences = Fences::generation(ruby());
        for (before, after) in [
            ("Here:\n```ruby\nputs 1\n```\nDone.", "Here:\nputs 1"),
            ("```ruby\nputs 1\n```", "puts 1"),
            ("puts 1\n```", "puts 1\n"),
        ] {
            assert_eq!(whole(&fences, before), after, "{before:?}");
        }
    }

    #[test]
    fn markdown_keeps_its_fences() {
        let text = "```sh\nls\n```\n";
        assert_eq!(whole(&Fences::completion(Language::of_id("markdown").unwrap()), text), text);
    }
}
