//! Code that was asked for in words begins on a line of its own: a line of text above the cursor that is not ended is
//! ended first. A line of nothing but indentation needs no end.

use super::{Draft, Rule};

pub struct Newline {
    needed: bool,
}

impl Newline {
    pub fn after(above: &str) -> Self {
        let line = above.rsplit('\n').next().unwrap_or_default();
        Self { needed: !line.trim().is_empty() }
    }
}

impl Rule for Newline {
    fn name(&self) -> &'static str {
        "newline"
    }

    fn apply(&self, mut draft: Draft) -> Draft {
        if self.needed && !draft.text.is_empty() && !draft.text.starts_with(['\n', '\r']) {
            draft.text.insert(0, '\n');
        }
        draft
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::whole;
    use super::*;

    #[test]
    fn code_begins_on_a_line_of_its_own() {
        for (above, before, after) in [
            ("# greet", "puts 1", "\nputs 1"),
            ("# greet", "\nputs 1", "\nputs 1"),
            ("# greet\n", "puts 1", "puts 1"),
            ("# greet\n  ", "puts 1", "puts 1"),
            ("", "puts 1", "puts 1"),
            ("# greet", "", ""),
        ] {
            assert_eq!(whole(&Newline::after(above), before), after, "{above:?}");
        }
    }
}
