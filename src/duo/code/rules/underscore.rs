//! Mixtral writes `\_` for `_`, as if every text were Markdown.

use super::{Draft, Rule};

pub struct Underscore;

impl Rule for Underscore {
    fn name(&self) -> &'static str {
        "underscore"
    }

    fn apply(&self, draft: Draft) -> Draft {
        let certain = draft.text.len() - usize::from(draft.text.ends_with('\\'));
        let mut draft = draft.hold(certain);
        draft.text = draft.text.replace("\\_", "_");
        draft
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::whole;
    use super::*;

    #[test]
    fn only_the_backslash_in_front_of_an_underscore_goes() {
        for (before, after) in [("a\\_b\\_", "a_b_"), ("a\\n", "a\\n"), ("\\\\_", "\\_"), ("\\", "\\")] {
            assert_eq!(whole(&Underscore, before), after);
        }
    }
}
