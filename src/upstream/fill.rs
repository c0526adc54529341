//! How an upstream is asked for the text of a gap. Not all of them understand the field `suffix`; the models behind
//! them do understand the markers of their family, which a plain prompt can hold.

use crate::served::ask::Message;
use crate::served::family::Family;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The field `suffix` of a completion: what a second Hearth and OpenAI's older models understand.
    Suffix,
    /// A plain prompt with markers.
    Markers(&'static Markers),
    /// A chat that asks for it in words.
    Chat,
}

/// A family's markers as text, which the upstream's tokenizer reads as the tokens that they are.
#[derive(Debug, PartialEq, Eq)]
pub struct Markers {
    /// In the order in which they are written, with what comes after each.
    parts: &'static [(&'static str, Part)],
    /// What never belongs to an answer.
    pub ends: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Prefix,
    Suffix,
    Nothing,
}

use Part::{Nothing, Prefix, Suffix};

const CODESTRAL: Markers = Markers {
    parts: &[("[SUFFIX]", Suffix), ("[PREFIX]", Prefix)],
    ends: &["[SUFFIX]", "[PREFIX]", "[MIDDLE]"],
};
/// Qwen's too.
const CODEGEMMA: Markers = Markers {
    parts: &[("<|fim_prefix|>", Prefix), ("<|fim_suffix|>", Suffix), ("<|fim_middle|>", Nothing)],
    ends: &[
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        "<|fim_pad|>",
        "<|file_separator|>",
        "<|file_sep|>",
    ],
};
const CODELLAMA: Markers = Markers {
    parts: &[("<PRE> ", Prefix), (" <SUF>", Suffix), (" <MID>", Nothing)],
    ends: &["<PRE>", "<SUF>", "<MID>", "<EOT>"],
};
const DEEPSEEK: Markers = Markers {
    parts: &[("<｜fim▁begin｜>", Prefix), ("<｜fim▁hole｜>", Suffix), ("<｜fim▁end｜>", Nothing)],
    ends: &["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
};
const STARCODER: Markers = Markers {
    parts: &[("<fim_prefix>", Prefix), ("<fim_suffix>", Suffix), ("<fim_middle>", Nothing)],
    ends: &["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>", "<file_sep>"],
};

impl Fill {
    /// By its name in the settings; by family where there is none.
    pub fn of(name: &str, family: Family) -> Self {
        match name {
            "suffix" => Fill::Suffix,
            "chat" => Fill::Chat,
            "codestral" => Fill::Markers(&CODESTRAL),
            "codegemma" => Fill::Markers(&CODEGEMMA),
            "codellama" => Fill::Markers(&CODELLAMA),
            "deepseek" => Fill::Markers(&DEEPSEEK),
            "starcoder" => Fill::Markers(&STARCODER),
            _ => match family {
                Family::Codestral => Fill::Markers(&CODESTRAL),
                Family::CodeGemma => Fill::Markers(&CODEGEMMA),
                Family::CodeLlama => Fill::Markers(&CODELLAMA),
                Family::DeepSeekCoder => Fill::Markers(&DEEPSEEK),
                _ => Fill::Chat,
            },
        }
    }
}

impl Markers {
    /// The prompt for a gap. Markers in the user's text are left out of it: over there they would become tokens.
    pub fn prompt(&self, prefix: &str, suffix: &str) -> String {
        let mut prompt = String::with_capacity(prefix.len() + suffix.len() + 64);
        for (marker, part) in self.parts {
            prompt += marker;
            match part {
                Prefix => prompt += &self.plain(prefix),
                Suffix => prompt += &self.plain(suffix),
                Nothing => {}
            }
        }
        prompt
    }

    fn plain(&self, text: &str) -> String {
        let mut plain = text.to_owned();
        // Once more while there is any: what is left out may leave a marker behind.
        while let Some(marker) = self.ends.iter().find(|marker| plain.contains(**marker)) {
            plain = plain.replace(marker, "");
        }
        plain
    }
}

/// The messages that ask a model for conversations for the text of a gap.
pub fn messages(prefix: &str, suffix: &str) -> Vec<Message> {
    let system = "You complete text in an editor, mostly code. Between <before> and </before> stands the text in front of \
                  the cursor, between <after> and </after> the text behind it. Write what belongs at the cursor and \
                  nothing else: no explanation, no code fence, nothing that stands there already. Keep the style and \
                  the indentation. Stop where the text behind the cursor goes on.";
    let user = format!("<before>{prefix}</before>\n<after>{suffix}</after>");
    let message = |role: &str, content: String| Message { role: role.to_owned(), content };
    vec![message("system", system.to_owned()), message("user", user)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_written_in_the_order_of_the_family() {
        for (name, prompt) in [
            ("codestral", "[SUFFIX]b[PREFIX]a"),
            ("codegemma", "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"),
            ("codellama", "<PRE> a <SUF>b <MID>"),
            ("deepseek", "<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>"),
            ("starcoder", "<fim_prefix>a<fim_suffix>b<fim_middle>"),
        ] {
            let Fill::Markers(markers) = Fill::of(name, Family::General) else { panic!("{name}") };
            assert_eq!(markers.prompt("a", "b"), prompt);
        }
        assert_eq!(Fill::of("", Family::CodeGemma), Fill::of("codegemma", Family::Gpt));
        assert_eq!(Fill::of("", Family::Gpt), Fill::Chat);
    }

    #[test]
    fn users_cannot_write_markers() {
        assert_eq!(CODESTRAL.prompt("a[MIDDLE]b", "[PRE[SUFFIX]FIX]"), "[SUFFIX][PREFIX]ab");
    }
}
