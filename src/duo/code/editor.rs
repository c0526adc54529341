//! The file in the editor and the place of the cursor in it (step 3 in the life of a request).

use super::language::{self, Language, UNKNOWN};
use crate::duo::body::Object;
use crate::duo::error::DuoError;

/// Characters of names, and of the text on either side of the cursor.
pub const NAME: usize = 255;
pub const CONTENT: usize = 100_000;

#[derive(Clone, Debug)]
pub struct Editor {
    pub file_name: String,
    /// Visual Studio Code's id of the language, or GitLab's name of it.
    identifier: Option<String>,
    pub above: String,
    pub below: String,
}

impl Editor {
    /// Read from `current_file`, or from a component's payload: the fields are the same.
    pub fn read(fields: &Object) -> Result<Self, DuoError> {
        Ok(Self {
            file_name: fields.required_string("file_name", NAME)?.trim().to_owned(),
            identifier: fields.string("language_identifier", NAME)?.filter(|id| !id.trim().is_empty()),
            above: fields.required_string("content_above_cursor", CONTENT)?,
            below: fields.required_string("content_below_cursor", CONTENT)?,
        })
    }

    /// The language as prompts name it: the editor's word, else by the file's name, else its extension.
    pub fn language(&self) -> Option<String> {
        let editor = self.identifier.as_deref().map(|id| id.trim().to_lowercase());
        editor
            .or_else(|| Language::of_file(&self.file_name).map(|l| l.name.to_owned()))
            .or_else(|| language::extension(&self.file_name).map(str::to_lowercase))
    }

    /// The language as rules know it.
    pub fn known(&self) -> &'static Language {
        let editor = || Language::of_id(&self.identifier.as_deref()?.trim().to_lowercase());
        Language::of_file(&self.file_name).or_else(editor).unwrap_or(&UNKNOWN)
    }

    /// The language as answers name it: by the file's name, else the editor's exact id, else nothing.
    pub fn shown(&self) -> &'static str {
        let editor = || Language::of_id(self.identifier.as_deref()?);
        Language::of_file(&self.file_name).or_else(editor).map_or("", |l| l.name)
    }

    /// Language, extension and the editor's language, for the figures: only names that are known here.
    pub fn labels(&self) -> (&'static str, &'static str, &'static str) {
        let file = Language::of_file(&self.file_name);
        let editor = self.identifier.as_deref().and_then(Language::of_id);
        let extension = file.map_or("", |l| l.extension_of(&self.file_name));
        (self.shown(), extension, editor.map_or("", |l| l.name))
    }

    /// GitLab's own probe of the whole chain: it waits 3 s, and its name for this body is "end to end".
    pub fn probe(&self) -> bool {
        self.file_name == "test.rb" && self.above == "def hello_world" && self.below.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn editor(name: &str, identifier: Value) -> Editor {
        let fields = json!({"file_name": name, "language_identifier": identifier,
            "content_above_cursor": "", "content_below_cursor": ""});
        Editor::read(&Object::new(fields.as_object().unwrap().clone())).unwrap()
    }

    #[test]
    fn the_editors_word_goes_before_the_files_name_in_prompts_and_after_it_in_answers() {
        let both = editor("a.py", json!("Ruby"));
        assert_eq!((both.language().as_deref(), both.shown()), (Some("ruby"), "python"));
        let exact = editor("a", json!("ruby"));
        assert_eq!((exact.language().as_deref(), exact.shown()), (Some("ruby"), "ruby"));
        let other = editor("a", json!("Ruby"));
        assert_eq!((other.language().as_deref(), other.shown()), (Some("ruby"), ""));
        let extension = editor("a.Unheard", json!(null));
        assert_eq!((extension.language().as_deref(), extension.shown()), (Some("unheard"), ""));
        assert_eq!(editor("a", json!("")).language(), None);
    }
}
