//! How each family draws its tokens in completions: the contract's values.

use crate::served::family::Family;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    pub temperature: f32,
    pub max_tokens: u32,
}

/// For completions. Generations have theirs beside their prompts.
pub fn completion(family: Family) -> Sampling {
    use Family::*;
    let (temperature, max_tokens) = match family {
        CodeGemma | CodeLlama => (0.95, 128),
        DeepSeekCoder => (0.0, 128),
        Codestral => (0.32, 64),
        Mistral | Mixtral | Llama3 | Gpt => (0.0, 64),
        // The original knows one of Qwen's models, at another host; the others take the base values.
        Qwen | Claude3 | Gemini | General => (0.0, 128),
    };
    Sampling { temperature, max_tokens }
}
