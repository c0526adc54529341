//! What becomes of a model's text before it arrives in the editor (step 10 in the life of a request): named rules, so
//! that what arrives is what a person would have typed.
//!
//! A rule sees the text so far and says how much of it is certain: text that it hands out is never taken back, so the
//! same rules serve whole answers and streams, and both come out equal. A rule that knows the end ends the answer, and
//! the model stops writing. All of a text is looked at again with every piece; completions are short.

mod blank;
mod block;
mod brackets;
mod echo;
mod fences;
mod newline;
mod repeats;
mod scan;
mod suffix;
mod underscore;
mod unfinished;

#[cfg(test)]
mod properties;

use super::editor::Editor;
use crate::served::ask::End;
use crate::served::family::Family;

/// Whether more of a text comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    More,
    /// The model ended it, or a rule did.
    Ended,
    /// The limit of tokens ended it.
    Cut,
}

/// A text in the making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    pub text: String,
    pub fate: Fate,
}

impl Draft {
    pub fn over(&self) -> bool {
        self.fate != Fate::More
    }

    /// The text ends here, whatever the model goes on to write.
    fn end(mut self, at: usize) -> Self {
        self.text.truncate(at);
        Self { fate: Fate::Ended, ..self }
    }

    /// What stands from here on is not certain yet. Of no effect on a text that is over.
    fn hold(mut self, at: usize) -> Self {
        if !self.over() {
            self.text.truncate(at);
        }
        self
    }
}

/// A rule. What it makes of a text must begin with what it made of any beginning of that text.
pub trait Rule: Send + Sync {
    fn name(&self) -> &'static str;
    fn apply(&self, draft: Draft) -> Draft;
}

/// The rules of one request, in their order.
pub struct Rules(Vec<Box<dyn Rule>>);

impl Rules {
    /// For the text between what stands above the cursor and what stands below it.
    pub fn completion(editor: &Editor, family: Family) -> Self {
        let language = editor.known();
        let (above, below) = (editor.above.as_str(), editor.below.as_str());
        let mut rules: Vec<Box<dyn Rule>> = Self::spelling(family);
        rules.push(Box::new(fences::Fences::completion(language)));
        rules.push(Box::new(repeats::Repeats::new(above, language)));
        rules.push(Box::new(echo::Echo));
        rules.push(Box::new(block::Block::new(above, language)));
        rules.push(Box::new(unfinished::Unfinished));
        rules.push(Box::new(suffix::Suffix::new(above, below, language)));
        rules.push(Box::new(brackets::Brackets::new(above, below, language)));
        rules.push(Box::new(blank::Blank));
        Self(rules)
    }

    /// For code that was asked for in words.
    pub fn generation(editor: &Editor, family: Family) -> Self {
        let language = editor.known();
        let mut rules: Vec<Box<dyn Rule>> = Self::spelling(family);
        rules.push(Box::new(fences::Fences::generation(language)));
        rules.push(Box::new(repeats::Repeats::new(&editor.above, language)));
        rules.push(Box::new(echo::Echo));
        rules.push(Box::new(blank::Blank));
        rules.push(Box::new(newline::Newline::after(&editor.above)));
        Self(rules)
    }

    fn spelling(family: Family) -> Vec<Box<dyn Rule>> {
        match family {
            Family::Mixtral => vec![Box::new(underscore::Underscore)],
            _ => Vec::new(),
        }
    }

    /// What is certain of a text.
    fn apply(&self, text: &str, fate: Fate) -> Draft {
        let mut draft = Draft { text: text.to_owned(), fate };
        for rule in &self.0 {
            let open = !draft.over();
            draft = rule.apply(draft);
            if open && draft.over() {
                tracing::trace!(rule = rule.name(), "a rule ends the answer");
            }
        }
        draft
    }
}

/// One answer on its way through the rules.
pub struct Editing {
    rules: Rules,
    /// As the model wrote it.
    raw: String,
    /// Bytes that were handed out.
    sent: usize,
    over: bool,
}

impl Editing {
    pub fn new(rules: Rules) -> Self {
        Self { rules, raw: String::new(), sent: 0, over: false }
    }

    /// Takes a piece of the model's text; gives what has become certain.
    pub fn push(&mut self, piece: &str) -> String {
        self.raw += piece;
        self.hand_out(Fate::More)
    }

    /// The model has ended; gives the rest.
    pub fn finish(&mut self, end: &End) -> String {
        match end {
            End::Stop => self.hand_out(Fate::Ended),
            End::Length => self.hand_out(Fate::Cut),
        }
    }

    /// Whether a rule has ended the answer.
    pub fn over(&self) -> bool {
        self.over
    }

    fn hand_out(&mut self, fate: Fate) -> String {
        if self.over {
            return String::new();
        }
        let draft = self.rules.apply(&self.raw, fate);
        self.over = draft.over();
        // Rules never take back; if one did, the rest of the text would still be whole characters.
        let new = draft.text.get(self.sent..).unwrap_or_default().to_owned();
        self.sent = self.sent.max(draft.text.len());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a rule makes of a text that the model ended. Streamed letter by letter it must be the same.
    pub fn whole(rule: &dyn Rule, text: &str) -> String {
        ended(rule, text, Fate::Ended)
    }

    pub fn ended(rule: &dyn Rule, text: &str, fate: Fate) -> String {
        let mut sent = String::new();
        for (i, _) in text.char_indices().skip(1) {
            let draft = rule.apply(Draft { text: text[..i].to_owned(), fate: Fate::More });
            assert!(
                draft.text.starts_with(&sent),
                "{} takes {sent:?} back for {:?}",
                rule.name(),
                draft.text
            );
            sent = draft.text;
            if draft.fate != Fate::More {
                return sent;
            }
        }
        let draft = rule.apply(Draft { text: text.to_owned(), fate });
        assert!(draft.text.starts_with(&sent), "{} takes {sent:?} back for {:?}", rule.name(), draft.text);
        draft.text
    }
}
