//! A model that writes one line for the third time in succession has lost its way and would go on for good. Short lines
//! and brackets repeat for good reasons: rows of a table, ends of blocks.

use super::{Draft, Rule};

/// Letters and digits of a line that says something.
const TELLING: usize = 10;

pub struct Echo;

fn tells(line: &str) -> bool {
    line.chars().filter(|c| c.is_alphanumeric()).count() >= TELLING
}

impl Rule for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn apply(&self, draft: Draft) -> Draft {
        let over = draft.over();
        let (mut last, mut times, mut start) = ("", 0, 0);
        for line in draft.text.split_inclusive('\n') {
            let at = start.max(1) - 1;
            start += line.len();
            let (text, whole) = (line.trim(), over || line.ends_with('\n'));
            let looping = times >= 2 && tells(last);
            if looping && whole && text == last {
                return draft.end(at);
            }
            if looping && !whole && last.starts_with(text) {
                // The end of the line before goes with it.
                return draft.hold(at);
            }
            times = if text == last { times + 1 } else { 1 };
            last = text;
        }
        match !over && times >= 2 && tells(last) && draft.text.ends_with('\n') {
            true => {
                let end = draft.text.len() - 1;
                draft.hold(end)
            }
            false => draft,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::whole;
    use super::*;

    #[test]
    fn a_line_is_written_twice_in_succession_at_most() {
        let line = "    f.write_str(\"1232\");\n";
        assert_eq!(whole(&Echo, &line.repeat(5)), line.repeat(2).trim_end());
        assert_eq!(
            whole(&Echo, &format!("x\n{}y", line.repeat(3))),
            format!("x\n{}", line.repeat(2)).trim_end()
        );
    }

    #[test]
    fn what_repeats_for_good_reasons_stays() {
        let line = "    total += values[0];\n";
        for text in
            [line.repeat(2), format!("{0}x\n{0}x\n{0}", line), "}\n".repeat(4), "0, 0, 0,\n".repeat(3)]
        {
            assert_eq!(whole(&Echo, &text), text);
        }
        let alike = format!("{0}{0}    total += va", line);
        assert_eq!(whole(&Echo, &alike), alike);
    }
}
