//! What the model's words mean (step 10 in the life of a request). It was made to begin with `Thought:` and goes on
//! with an action or with a final answer, or with neither.
//!
//! A final answer is handed out while it grows, without the blanks around it; everything else is known at the end.

use crate::duo::thought::Thought;
use crate::served::family::Family;

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A final answer; all of it was handed out.
    Answered,
    /// A tool is to be used.
    Action { thought: String, tool: String, input: String },
    /// Words in no form, for the user to read.
    Unknown(String),
}

const ANSWER: &str = "Final Answer:";
const ACTION: &str = "Action:";
const INPUT: &str = "Action Input:";
/// What only GitLab may write. Where the model goes on with it, the rest is made up.
const OBSERVATION: &str = "\nObservation:";
/// Names that models give to no tool at all.
const NO_TOOL: [&str; 7] = ["direct_answer", "final_answer", "none", "n/a", "no_tool", "no_action", ""];

/// The words so far.
#[derive(Clone, Debug, Default)]
pub struct React {
    text: String,
    thought: Thought,
    /// Whether nothing that comes counts any more.
    ended: bool,
    /// Where the final answer begins.
    answer: Option<usize>,
    /// Up to where it was handed out.
    sent: usize,
}

impl React {
    pub fn new(family: Family) -> Self {
        Self { thought: Thought::of(family), ..Self::default() }
    }

    /// Takes the next words; what there is of a final answer that was not handed out before.
    pub fn push(&mut self, piece: &str) -> Option<String> {
        let piece = self.thought.push(piece);
        self.take(&piece);
        self.grown(true)
    }

    fn take(&mut self, piece: &str) {
        if self.ended {
            return;
        }
        let from = self.text.floor_char_boundary(self.text.len().saturating_sub(OBSERVATION.len()));
        self.text += piece;
        if let Some(at) = self.text[from..].find(OBSERVATION) {
            self.text.truncate(from + at);
            self.ended = true;
        }
        if self.answer.is_none() {
            self.answer = self.text.find(ANSWER).map(|at| at + ANSWER.len());
        }
    }

    /// `more`: whether words may follow. Then a last line that may become an observation waits.
    fn grown(&mut self, more: bool) -> Option<String> {
        let answer = self.answer?;
        let mut rest = &self.text[answer..];
        if let Some(line) = rest.rfind('\n').filter(|line| more && OBSERVATION.starts_with(&rest[*line..])) {
            rest = &rest[..line];
        }
        let begin = answer + rest.len() - rest.trim_start().len();
        let from = self.sent.max(begin);
        let until = answer + rest.trim_end().len();
        if until <= from {
            return None;
        }
        self.sent = until;
        Some(self.text[from..until].to_owned())
    }

    /// The end of the words: the last of a final answer, and what the step came to.
    pub fn finish(mut self) -> (Option<String>, Step) {
        let held = self.thought.finish();
        self.take(&held);
        let rest = self.grown(false);
        if self.sent > 0 {
            return (rest, Step::Answered);
        }
        (None, self.meant())
    }

    fn meant(&self) -> Step {
        let text = self.text.trim();
        if self.answer.is_some() {
            // A final answer without a word: what was thought is better than nothing.
            let thought = text.split(ACTION).next().unwrap_or_default();
            let thought = thought.split(ANSWER).next().unwrap_or_default();
            return Step::Unknown(thought.trim().to_owned());
        }
        let Some((thought, rest)) = text.split_once(ACTION) else { return Step::Unknown(text.to_owned()) };
        let (tool, input) = match rest.split_once(INPUT) {
            Some((tool, input)) => (tool, input),
            None => rest.split_once('\n').unwrap_or((rest, "")),
        };
        let tool = snake(tool.split("Action").next().unwrap_or_default());
        let input = input.trim().to_owned();
        if !NO_TOOL.contains(&tool.as_str()) {
            return Step::Action { thought: thought.trim().replace("\\_", "_"), tool, input };
        }
        // The answer stands where the input would, or else only the thought is there.
        let thought = thought.trim();
        Step::Unknown(match NO_TOOL.contains(&snake(&input).as_str()) {
            false => input,
            true if thought.is_empty() => text.to_owned(),
            true => thought.to_owned(),
        })
    }
}

/// `MergeRequestReader`, `merge\_request\_reader` and `merge_request_reader` are the same tool.
fn snake(name: &str) -> String {
    let mut out = String::new();
    let name = name.replace("\\_", "_");
    for c in name.trim_matches(|c: char| c.is_whitespace() || "`'\"*[]".contains(c)).chars() {
        let begins =
            c.is_ascii_uppercase() && out.chars().last().is_some_and(|last| last.is_ascii_lowercase());
        if begins {
            out.push('_');
        }
        out.push(if c == ' ' { '_' } else { c.to_ascii_lowercase() });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(thinks: bool, pieces: &[&str]) -> (String, Step) {
        let mut react = React::new(if thinks { Family::Qwen } else { Family::General });
        let mut said: String = pieces.iter().filter_map(|piece| react.push(piece)).collect();
        let (rest, step) = react.finish();
        said += &rest.unwrap_or_default();
        (said, step)
    }

    fn action(thought: &str, tool: &str, input: &str) -> Step {
        Step::Action { thought: thought.into(), tool: tool.into(), input: input.into() }
    }

    #[test]
    fn a_final_answer_grows_without_the_blanks_around_it() {
        let mut react = React::new(Family::General);
        assert_eq!(react.push(" I know it.\nAction: DirectAnswer\nFinal An"), None);
        assert_eq!(react.push("swer:  "), None);
        assert_eq!(react.push(" Yes"), Some("Yes".into()));
        assert_eq!(react.push(", \n"), Some(",".into()));
        assert_eq!(react.push("it is.\n\n"), Some(" \nit is.".into()));
        assert_eq!(react.finish(), (None, Step::Answered));
    }

    #[test]
    fn an_action_is_known_at_the_end() {
        let text = " I must look.\nAction: issue_reader\nAction Input: What is #1 about?\n";
        assert_eq!(
            run(false, &[text]),
            (String::new(), action("I must look.", "issue_reader", "What is #1 about?"))
        );
        for name in [
            "MergeRequestReader",
            "merge\\_request\\_reader",
            "`merge_request_reader`",
            "merge_request_reader ",
        ] {
            let text = format!("Look.\nAction: {name}\nAction Input: x");
            assert_eq!(run(false, &[&text]).1, action("Look.", "merge_request_reader", "x"), "{name}");
        }
    }

    #[test]
    fn words_in_no_form_are_for_the_user() {
        assert_eq!(run(false, &["Hello!\n"]).1, Step::Unknown("Hello!".into()));
        assert_eq!(
            run(false, &["Hm.\nAction: DirectAnswer\nIt is so."]).1,
            Step::Unknown("It is so.".into())
        );
        assert_eq!(run(false, &["Hm.\nFinal Answer:  \n"]).1, Step::Unknown("Hm.".into()));
        assert_eq!(run(false, &[""]).1, Step::Unknown(String::new()));
    }

    #[test]
    fn no_tool_under_any_name_is_a_direct_answer() {
        for name in ["None", "N/A", "Final Answer", "no_tool", "No tool", "DirectAnswer", "`none`"] {
            let text = format!(" It is so.\nAction: {name}\nAction Input: Cats are animals.");
            assert_eq!(run(false, &[&text]).1, Step::Unknown("Cats are animals.".into()), "{name}");
            for input in ["", "\nAction Input: None", "\nAction Input: N/A"] {
                let text = format!(" It is so.\nAction: {name}{input}");
                assert_eq!(run(false, &[&text]).1, Step::Unknown("It is so.".into()), "{name} {input}");
            }
        }
    }

    #[test]
    fn an_observation_that_the_model_makes_up_is_not_part_of_its_words() {
        let look = " Look.\nAction: issue_reader\nAction Input: #1";
        let made_up = "\nObservation: It is closed.\nThought: Good.\nFinal Answer: It is closed.";
        assert_eq!(run(false, &[look, made_up]), (String::new(), action("Look.", "issue_reader", "#1")));
        let pieces = [" Sure.\nFinal Answer: Yes.", "\nObs", "ervation", ": no", "thing"];
        assert_eq!(run(false, &pieces), ("Yes.".into(), Step::Answered));
        let pieces = [" Sure.\nFinal Answer: Yes.", "\nObs", "tacles: none"];
        assert_eq!(run(false, &pieces), ("Yes.\nObstacles: none".into(), Step::Answered));
        let within = " Sure.\nFinal Answer: An Observation: it rains.\nObserv";
        assert_eq!(run(false, &[within]).0, "An Observation: it rains.\nObserv");
    }

    #[test]
    fn a_thought_in_tags_is_not_seen() {
        let answer = " Sure.\nFinal Answer: Yes.";
        assert_eq!(
            run(true, &["<think>Final Answer: no\n</think>\n", answer]),
            ("Yes.".into(), Step::Answered)
        );
        assert_eq!(run(true, &["left over</think>", answer]), ("Yes.".into(), Step::Answered));
        assert_eq!(run(true, &[answer]), ("Yes.".into(), Step::Answered));
        let late = format!(" {}</think> is a tag. Final Answer: Yes.", "word ".repeat(40));
        assert_eq!(run(true, &[&late]).0, "Yes.");
    }

    proptest! {
        #[test]
        fn the_cuts_of_the_text_do_not_matter(
            text in "[a-c \n]{0,20}(Final Answer:[a-c \n]{0,20}(\nObservation:[a-c]{0,4})?|Action: [a-c]{1,4}\nAction Input: [a-c ]{0,8})?",
            cuts in prop::collection::vec(0usize..9, 0..20),
            thinks: bool,
        ) {
            let whole = run(thinks, &[&text]);
            let (mut pieces, mut at) = (Vec::new(), 0);
            for cut in cuts {
                let end = (at + cut).min(text.len());
                pieces.push(&text[at..end]);
                at = end;
            }
            pieces.push(&text[at..]);
            prop_assert_eq!(run(thinks, &pieces), whole);
        }
    }
}
