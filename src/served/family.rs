//! Families as GitLab names them: the name an administrator picks for a model, which chooses prompts and their limits.

use hearth_models::spec;

use crate::text::Text;

/// A name of GitLab's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    Mistral,
    Mixtral,
    Codestral,
    CodeGemma,
    CodeLlama,
    DeepSeekCoder,
    Llama3,
    Qwen,
    Gpt,
    Claude3,
    Gemini,
    /// Whatever is in no other family.
    General,
}

use Family::*;

impl Family {
    pub const ALL: [Self; 12] = [
        Mistral,
        Mixtral,
        Codestral,
        CodeGemma,
        CodeLlama,
        DeepSeekCoder,
        Llama3,
        Qwen,
        Gpt,
        Claude3,
        Gemini,
        General,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Mistral => "mistral",
            Mixtral => "mixtral",
            Codestral => "codestral",
            CodeGemma => "codegemma",
            CodeLlama => "codellama",
            DeepSeekCoder => "deepseekcoder",
            Llama3 => "llama3",
            Qwen => "qwen",
            Gpt => "gpt",
            Claude3 => "claude_3",
            Gemini => "gemini",
            General => "general",
        }
    }

    /// The family of that name. GitLab also sends names of single models of a family.
    pub fn parse(name: &str) -> Option<Self> {
        let whole = Self::ALL.into_iter().find(|family| family.name() == name);
        whole.or(match name {
            "codestral-2501" | "codestral-2508" => Some(Codestral),
            "qwen2p5-coder-7b" => Some(Qwen),
            _ => None,
        })
    }

    /// Whose prompts serve, the nearest first; after them come the base prompts.
    pub fn folders(self) -> &'static [Self] {
        match self {
            Mixtral => &[Mixtral, Mistral],
            Codestral => &[Codestral, Mistral],
            Mistral => &[Mistral],
            CodeGemma => &[CodeGemma],
            CodeLlama => &[CodeLlama],
            DeepSeekCoder => &[DeepSeekCoder],
            Llama3 => &[Llama3],
            Qwen => &[Qwen],
            Gpt => &[Gpt],
            Gemini => &[Gemini],
            Claude3 | General => &[],
        }
    }

    /// Whether its models may write down a thought before they answer, between tags.
    pub fn thinks(self) -> bool {
        self == Qwen
    }

    /// The family of a checkpoint: its architecture, and the markers of its tokenizer where one architecture serves
    /// several families. `embedded` is the model inside the binary, whose architecture says nothing about its prompts.
    pub fn of(architecture: spec::Family, text: &Text, embedded: bool) -> Self {
        let has = |marker| text.tokenizer.marker(marker).is_some();
        match architecture {
            _ if embedded => General,
            spec::Family::Mistral if has("[SUFFIX]") && has("[PREFIX]") => Codestral,
            spec::Family::Mistral => Mistral,
            spec::Family::Mixtral => Mixtral,
            spec::Family::Gemma => CodeGemma,
            spec::Family::Llama if has("▁<PRE>") => CodeLlama,
            spec::Family::Llama if has("<｜fim▁begin｜>") => DeepSeekCoder,
            spec::Family::Llama => Llama3,
            spec::Family::Qwen2 => Qwen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back_and_unknown_ones_are_not() {
        for family in Family::ALL {
            assert_eq!(Family::parse(family.name()), Some(family));
        }
        assert_eq!(Family::parse("codestral-2508"), Some(Codestral));
        assert_eq!(Family::parse("Mistral"), None);
        assert_eq!(Family::parse(""), None);
    }
}
