//! What stands above the cursor already is not written again: five lines or more that follow one another there too, and
//! a comment line of its own. Lines of little but brackets and operators repeat for good reasons and stay.

use std::collections::HashMap;

use super::{Draft, Rule};
use crate::duo::code::language::Language;

/// Lines that make a repetition.
const MANY: usize = 5;
/// Share of characters that are neither letters, digits nor blanks, from which on lines count as brackets and operators.
const SPECIAL: f64 = 0.25;
/// Letters of a comment that says something.
const TELLING: usize = 4;

pub struct Repeats {
    /// The lines above without indentation, blank ones left out.
    above: Vec<String>,
    /// Where each of them stands.
    places: HashMap<String, Vec<usize>>,
    /// The answer's first line is the rest of the cursor's line.
    continues: bool,
    comments: &'static [&'static str],
}

impl Repeats {
    pub fn new(above: &str, language: &'static Language) -> Self {
        let (done, line) = above.rsplit_once('\n').unwrap_or(("", above));
        let lines = done.lines().map(str::trim).filter(|line| !line.is_empty());
        let above: Vec<String> = lines.map(str::to_owned).collect();
        let mut places: HashMap<String, Vec<usize>> = HashMap::new();
        for (i, line) in above.iter().enumerate() {
            places.entry(line.clone()).or_default().push(i);
        }
        Self { above, places, continues: !line.trim().is_empty(), comments: language.comments }
    }

    /// How many of these lines stand above in this order, from the first on.
    fn run(&self, lines: &[&str]) -> usize {
        let Some(places) = self.places.get(lines[0]) else { return 0 };
        let length = |at: &usize| lines.iter().zip(&self.above[*at..]).take_while(|(a, b)| *a == b).count();
        places.iter().map(length).max().unwrap_or(0)
    }

    fn comment(&self, line: &str) -> bool {
        let letters = line.chars().filter(|c| c.is_alphabetic()).count();
        letters >= TELLING && self.comments.iter().any(|mark| line.starts_with(mark))
    }
}

fn special(lines: &[&str]) -> f64 {
    let (mut special, mut all) = (0u32, 0u32);
    for c in lines.iter().flat_map(|line| line.chars()) {
        special += u32::from(!c.is_alphanumeric() && !c.is_whitespace());
        all += 1;
    }
    f64::from(special) / f64::from(all.max(1))
}

impl Rule for Repeats {
    fn name(&self) -> &'static str {
        "repeats"
    }

    fn apply(&self, draft: Draft) -> Draft {
        if self.above.is_empty() {
            return draft;
        }
        let over = draft.over();
        let mut lines: Vec<&str> = draft.text.split_inclusive('\n').collect();
        let mut kept = String::new();
        if self.continues && !lines.is_empty() {
            kept += lines.remove(0);
        }
        // A line that is still being written cannot be compared.
        if !over && lines.last().is_some_and(|line| !line.ends_with('\n')) {
            lines.pop();
        }
        let texts: Vec<(usize, &str)> =
            lines.iter().enumerate().map(|(i, l)| (i, l.trim())).filter(|(_, l)| !l.is_empty()).collect();
        let trimmed: Vec<&str> = texts.iter().map(|(_, line)| *line).collect();
        // Lines before this one are kept or dropped.
        let (mut done, mut i) = (0, 0);
        while i < texts.len() {
            let run = self.run(&trimmed[i..]);
            let reaches_the_end = i + run == texts.len() && run > 0;
            if reaches_the_end && !over {
                // What comes next decides.
                break;
            }
            let dropped = match run {
                0 => 0,
                n if n >= MANY && special(&trimmed[i..i + n]) < SPECIAL => n,
                1 if self.comment(trimmed[i]) => 1,
                _ => 0,
            };
            let keep = texts[i].0;
            kept.extend(lines[done..keep].iter().copied());
            if dropped == 0 {
                kept += lines[keep];
                done = keep + 1;
                i += 1;
            } else {
                done = texts[i + dropped - 1].0 + 1;
                i += dropped;
            }
        }
        let text = match i == texts.len() && over {
            true => kept + &lines[done..].concat(),
            false => kept,
        };
        match text.trim().is_empty() {
            // Something is better than nothing.
            true if over => draft,
            true => draft.hold(0),
            false => Draft { text, fate: draft.fate },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::whole;
    use super::*;
    use crate::duo::code::language::Language;

    const ABOVE: &str =
        "# Counts words.\nalpha = 1\nbeta = 2\ngamma = 3\ndelta = 4\nepsilon = 5\n\nlast = 6\n";

    fn rule(above: &str) -> Repeats {
        Repeats::new(above, Language::of_id("python").unwrap())
    }

    #[test]
    fn many_lines_that_stand_above_are_not_written_again() {
        let five = "alpha = 1\nbeta = 2\ngamma = 3\ndelta = 4\nepsilon = 5\n";
        assert_eq!(whole(&rule(ABOVE), &format!("{five}new = 7\n")), "new = 7\n");
        assert_eq!(whole(&rule(ABOVE), &format!("new = 7\n{five}")), "new = 7\n");
        let four = "alpha = 1\nbeta = 2\ngamma = 3\ndelta = 4\nother = 5\n";
        assert_eq!(whole(&rule(ABOVE), four), four);
    }

    #[test]
    fn a_comment_that_stands_above_is_not_written_again() {
        assert_eq!(whole(&rule(ABOVE), "# Counts words.\nnew = 7\n"), "new = 7\n");
        assert_eq!(whole(&rule("# ---\nx\n"), "# ---\nnew = 7\n"), "# ---\nnew = 7\n");
    }

    #[test]
    fn the_rest_of_the_cursors_line_is_no_line_of_its_own() {
        assert_eq!(whole(&rule("# Counts\nx = "), "# Counts\n7"), "# Counts\n7");
    }

    #[test]
    fn brackets_repeat_for_good_reasons() {
        let above = "}\n})\n],\n},\n)\n\n";
        assert_eq!(whole(&rule(above), "}\n})\n],\n},\n)\n"), "}\n})\n],\n},\n)\n");
    }

    #[test]
    fn an_answer_of_nothing_else_stays() {
        assert_eq!(whole(&rule(ABOVE), "# Counts words.\n"), "# Counts words.\n");
    }
}
