//! A last line that the limit of tokens broke off goes, unless it is the only line with text in it.

use super::{Draft, Fate, Rule};

pub struct Unfinished;

impl Rule for Unfinished {
    fn name(&self) -> &'static str {
        "unfinished"
    }

    fn apply(&self, draft: Draft) -> Draft {
        let last = draft.text.rfind('\n').filter(|at| !draft.text[..*at].trim().is_empty());
        match (last, draft.fate) {
            (None, _) | (_, Fate::Ended) => draft,
            (Some(at), Fate::More) => draft.hold(at),
            // The line before is whole, its end included where the rest is nothing.
            (Some(at), Fate::Cut) if draft.text.len() == at + 1 => draft,
            (Some(at), Fate::Cut) => draft.end(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::ended;
    use super::*;

    #[test]
    fn a_line_that_the_limit_broke_off_goes() {
        for (before, after) in [
            ("a = 1\nb = fo", "a = 1"),
            ("a = 1\n\n  b", "a = 1\n"),
            ("a = fo", "a = fo"),
            ("\n  puts 'he", "\n  puts 'he"),
            ("a = 1\n", "a = 1\n"),
        ] {
            assert_eq!(ended(&Unfinished, before, Fate::Cut), after);
            assert_eq!(ended(&Unfinished, before, Fate::Ended), before);
        }
    }
}
