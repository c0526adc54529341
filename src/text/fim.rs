//! Fill-in-the-middle: how each family writes "here is what stands before, here is what stands after".
//!
//! The format is chosen by the markers that the tokenizer really has, never by a model's name. Markers are put in as
//! tokens; prefix and suffix are users' text and cannot hold any.

use super::tokenizer::{Tokenizer, TokenizerError};

/// One part of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Marker(&'static str),
    Prefix,
    /// What follows the gap.
    Suffix,
    /// What follows the gap, without the space that some tokenizers put in front of every text.
    BareSuffix,
}

use Part::{BareSuffix, Marker, Prefix, Suffix};

/// A family's way of asking for the middle.
#[derive(Debug)]
struct Format {
    name: &'static str,
    parts: &'static [Part],
    /// Markers that end the middle, where the tokenizer has them, besides the model's own end tokens.
    ends: &'static [&'static str],
}

/// CodeLlama: "Code Llama", §2.3 and its reference `infilling_prompt_tokens`: the prefix keeps the space in front,
/// the suffix does not. Codestral: mistral-common's `encode_fim`, suffix first, no marker before the middle.
const FORMATS: &[Format] = &[
    Format {
        name: "fim_prefix (CodeGemma, Qwen, ember)",
        parts: &[
            Marker("<|fim_prefix|>"),
            Prefix,
            Marker("<|fim_suffix|>"),
            Suffix,
            Marker("<|fim_middle|>"),
        ],
        ends: &[
            "<|fim_prefix|>",
            "<|fim_suffix|>",
            "<|fim_middle|>",
            "<|fim_pad|>",
            "<|file_separator|>",
            "<|file_sep|>",
            "<|repo_name|>",
        ],
    },
    Format {
        name: "StarCoder",
        parts: &[Marker("<fim_prefix>"), Prefix, Marker("<fim_suffix>"), Suffix, Marker("<fim_middle>")],
        ends: &["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>", "<file_sep>"],
    },
    Format {
        name: "CodeLlama",
        parts: &[Marker("▁<PRE>"), Prefix, Marker("▁<SUF>"), BareSuffix, Marker("▁<MID>")],
        ends: &["▁<EOT>", "▁<PRE>", "▁<SUF>", "▁<MID>"],
    },
    Format {
        name: "DeepSeek",
        parts: &[
            Marker("<｜fim▁begin｜>"),
            Prefix,
            Marker("<｜fim▁hole｜>"),
            Suffix,
            Marker("<｜fim▁end｜>"),
        ],
        ends: &["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    },
    Format {
        name: "Codestral",
        parts: &[Marker("[SUFFIX]"), BareSuffix, Marker("[PREFIX]"), Prefix],
        ends: &["[PREFIX]", "[SUFFIX]", "[MIDDLE]"],
    },
];

/// Whether a text is a marker of any family.
pub(super) fn is_marker(text: &str) -> bool {
    FORMATS.iter().any(|f| {
        f.ends.contains(&text) || f.parts.iter().any(|p| matches!(p, Marker(marker) if *marker == text))
    })
}

/// The fill-in-the-middle format of one checkpoint.
#[derive(Debug)]
pub struct Fim {
    format: &'static Format,
    ends: Vec<u32>,
}

impl Fim {
    /// The format whose markers the tokenizer has; `None` for a model that was not trained to fill gaps.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let has = |format: &&Format| {
            format.parts.iter().all(|part| match part {
                Marker(marker) => tokenizer.marker(marker).is_some(),
                _ => true,
            })
        };
        let format = FORMATS.iter().find(has)?;
        let ends = format.ends.iter().filter_map(|end| tokenizer.marker(end)).collect();
        Some(Self { format, ends })
    }

    pub fn name(&self) -> &'static str {
        self.format.name
    }

    /// Tokens that end the middle, besides the model's own.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The prompt that asks for what stands between `prefix` and `suffix`.
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        prefix: &str,
        suffix: &str,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut ids: Vec<u32> = tokenizer.prompt_bos().into_iter().collect();
        for part in self.format.parts {
            match part {
                Marker(marker) => {
                    ids.push(tokenizer.marker(marker).expect("bug: a format was chosen without its markers"))
                }
                Prefix => ids.extend(tokenizer.encode(prefix)?),
                Suffix => ids.extend(tokenizer.encode(suffix)?),
                BareSuffix => ids.extend(tokenizer.encode_bare(suffix)?),
            }
        }
        Ok(ids)
    }
}
