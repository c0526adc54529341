//! An answer of nothing but blanks is no answer.

use super::{Draft, Rule};

pub struct Blank;

impl Rule for Blank {
    fn name(&self) -> &'static str {
        "blank"
    }

    fn apply(&self, mut draft: Draft) -> Draft {
        if draft.text.trim().is_empty() {
            draft.text.clear();
        }
        draft
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::whole;
    use super::*;

    #[test]
    fn blanks_alone_are_nothing_and_blanks_in_front_stay() {
        for (before, after) in [("", ""), (" \n\t ", ""), ("\n  x", "\n  x"), ("x \n", "x \n")] {
            assert_eq!(whole(&Blank, before), after);
        }
    }
}
