//! The forms in which GitLab reads some answers (steps 3 and 10 in the life of a request). A model of this process is
//! held to them by a grammar: every answer that ends by itself has the form.

use std::sync::{Arc, LazyLock};

use serde::Deserialize;

use crate::served::ask::{End, Failure};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Which issue, epic, job … a question is about.
    Reader,
    /// Which commit: the same, but a hash is never a number.
    Commit,
    /// Comments on the lines of a merge request.
    Review,
    /// A file without its vulnerability.
    Fix,
    /// What a question is about, for GitLab's statistics.
    Categories,
    /// Ids of features.
    Features,
    /// What a mention wants: one of three words.
    Intent,
}

use Form::*;

impl Form {
    pub const ALL: [Self; 7] = [Reader, Commit, Review, Fix, Categories, Features, Intent];

    /// The grammar, as llguidance reads it.
    pub fn grammar(self) -> Arc<str> {
        static TEXTS: LazyLock<[Arc<str>; 7]> = LazyLock::new(|| {
            [
                include_str!("forms/reader.lark").into(),
                include_str!("forms/commit.lark").into(),
                include_str!("forms/review.lark").into(),
                include_str!("forms/fix.lark").into(),
                include_str!("forms/categories.lark").into(),
                include_str!("forms/features.lark").into(),
                include_str!("forms/intent.lark").into(),
            ]
        });
        TEXTS[self as usize].clone()
    }

    /// What of an answer goes out. One that was cut at its greatest length keeps the form where that changes nothing of
    /// what it says; half a repaired file does not go out at all, because GitLab would propose it as a change.
    pub fn complete(self, text: String, end: &End) -> Result<String, Failure> {
        if *end == End::Stop {
            return Ok(text);
        }
        match self {
            Review => Ok(whole_comments(text)),
            Fix if !text.contains("</fixed_code>") => Err(Failure::Lost(
                "the repaired file did not fit into the answer: assign a model with a larger context to the feature"
                    .to_owned(),
            )),
            _ => Ok(text),
        }
    }
}

/// The review up to its last whole comment.
fn whole_comments(mut text: String) -> String {
    const OPEN: &str = "<review>\n";
    const CLOSE: &str = "</comment>\n";
    if text.trim_end().ends_with("</review>") {
        return text;
    }
    let end = match (text.rfind(CLOSE), text.find(OPEN)) {
        (Some(last), _) => last + CLOSE.len(),
        (None, Some(open)) => open + OPEN.len(),
        (None, None) => return text,
    };
    text.truncate(end);
    text + "</review>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_review_keeps_its_whole_comments() {
        let one = "<review>\n<comment file=\"a\" old_line=\"\" new_line=\"1\">\nNo.\n</comment>\n";
        let cut = format!("{one}<comment file=\"b\" old_");
        assert_eq!(Review.complete(cut, &End::Length).unwrap(), format!("{one}</review>"));
        let nothing = Review.complete("<review>\n<comm".into(), &End::Length).unwrap();
        assert_eq!(nothing, "<review>\n</review>");
        let whole = format!("{one}</review>");
        assert_eq!(Review.complete(whole.clone(), &End::Length).unwrap(), whole);
    }

    #[test]
    fn half_a_repaired_file_is_a_failure() {
        assert!(Fix.complete("<fixed_code>\nfn ma".into(), &End::Length).is_err());
        assert!(Fix.complete("<fixed_code>\nx\n</fixed_code>".into(), &End::Length).is_ok());
    }
}
