//! An answer on its way from the model to the editor (step 10 in the life of a request): the model's pieces go through
//! the rules, and what they let through comes out. When a rule ends the answer the model stops writing at once, also
//! where nothing is streamed.

use super::rules::{Editing, Rules};
use crate::served::ask::{Answer, End, Failure, Piece, Usage};

pub struct Written {
    /// `None` once it has ended.
    answer: Option<Answer>,
    editing: Editing,
    usage: Option<Usage>,
    full: bool,
}

/// All of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    pub text: String,
    /// Unknown where a rule ended the answer.
    pub usage: Option<Usage>,
    /// The limit of tokens ended it.
    pub full: bool,
}

impl Written {
    pub fn new(answer: Answer, rules: Rules) -> Self {
        Self { answer: Some(answer), editing: Editing::new(rules), usage: None, full: false }
    }

    /// The next piece that is certain. Nothing is lost when this is dropped while it waits.
    pub async fn next(&mut self) -> Option<Result<String, Failure>> {
        while let Some(answer) = &mut self.answer {
            let text = match answer.next().await {
                Some(Ok(Piece::Text(piece))) => self.editing.push(&piece),
                Some(Ok(Piece::End { end, usage })) => {
                    self.usage = Some(usage);
                    self.full = end == End::Length;
                    self.answer = None;
                    self.editing.finish(&end)
                }
                Some(Err(failure)) => {
                    self.answer = None;
                    return Some(Err(failure));
                }
                None => {
                    self.answer = None;
                    return Some(Err(Failure::Lost("the answer broke off".to_owned())));
                }
            };
            if self.editing.over() {
                self.answer = None;
            }
            if !text.is_empty() {
                return Some(Ok(text));
            }
        }
        None
    }

    pub async fn whole(mut self) -> Result<Text, Failure> {
        let mut text = String::new();
        while let Some(piece) = self.next().await {
            text += &piece?;
        }
        Ok(Text { text, usage: self.usage, full: self.full })
    }
}
