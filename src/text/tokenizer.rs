//! From text to tokens and from tokens to their bytes (step 4 in the life of a request).
//!
//! The pipeline is the one of the `tokenizers` crate (normaliser, pre-tokeniser, model), but the step in front of it,
//! which cuts added tokens out of the text, is ours: a control token (a turn marker, a fill-in-the-middle marker, an
//! end of text) is only found where the text is [`Trusted`], that is, where it came from the checkpoint's own template.
//! Inside users' text the same characters are tokenised as the plain characters they are. Everything else is equal to
//! the reference, token for token: added tokens that are plain vocabulary (runs of blanks, HTML tags) match everywhere.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::str::FromStr;

use serde_json::Value;
use tokenizers::normalizer::Range as In;
use tokenizers::{
    AddedToken, Model, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer, PreTokenizerWrapper, Token,
};

use super::added::{Matcher, Pattern};
use super::detokenize::Pieces;
use super::fim;

/// What can go wrong between a text and its tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("tokenizer.json cannot be read: {0}")]
    Definition(String),
    #[error("tokenizer_config.json cannot be read: {0}")]
    Config(String),
    #[error("tokenizer.json asks for the decoder {0}, which is not supported")]
    Decoder(String),
    #[error("the text cannot be tokenised: {0}")]
    Encode(String),
    #[error(
        "the text is {bytes} bytes long, which cannot fit {context} tokens of context (limit {limit} bytes)"
    )]
    TooLong { bytes: usize, limit: usize, context: u32 },
    #[error("token {token} is outside the vocabulary of {vocab} tokens")]
    Unknown { token: u32, vocab: u32 },
}

/// Which bytes of a text may hold control tokens: ascending ranges that do not touch.
#[derive(Clone, Copy, Debug)]
pub struct Trusted<'a>(pub &'a [Range<usize>]);

impl Trusted<'_> {
    /// Users' text: nothing in it is a control token.
    pub const NOTHING: Trusted<'static> = Trusted(&[]);

    fn covers(&self, range: &Range<usize>) -> bool {
        let after = self.0.partition_point(|r| r.start <= range.start);
        after > 0 && range.end <= self.0[after - 1].end
    }
}

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Added tokens found in the text as it came.
    raw: Matcher,
    /// Added tokens found in the text after normalisation.
    normalized: Matcher,
    control: HashSet<u32>,
    /// Those of them that the checkpoint flags as special: left out of the text of an answer.
    special: HashSet<u32>,
    names: HashMap<String, u32>,
    pieces: Pieces,
    bare: Bare,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    vocab: u32,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// From the bytes of `tokenizer.json` and, where the checkpoint has one, `tokenizer_config.json`.
    pub fn new(definition: &[u8], config: Option<&[u8]>) -> Result<Self, TokenizerError> {
        let text = std::str::from_utf8(definition).map_err(|e| TokenizerError::Definition(e.to_string()))?;
        let mut inner =
            tokenizers::Tokenizer::from_str(text).map_err(|e| TokenizerError::Definition(e.to_string()))?;
        // A stored truncation or padding is a training setting; it must not cut or fill a prompt.
        inner.with_truncation(None).map_err(|e| TokenizerError::Definition(e.to_string()))?;
        inner.with_padding(None);
        let config: Value = match config {
            Some(bytes) => {
                serde_json::from_slice(bytes).map_err(|e| TokenizerError::Config(e.to_string()))?
            }
            None => Value::Null,
        };

        let mut added: Vec<(u32, AddedToken)> = inner.get_added_tokens_decoder().into_iter().collect();
        added.sort_by_key(|(id, _)| *id);
        let roles = roles(&config);
        let mut control = HashSet::new();
        let special = added.iter().filter(|(_, t)| t.special).map(|(id, _)| *id).collect();
        let mut names = HashMap::new();
        let (mut raw, mut normalized) = (Vec::new(), Vec::new());
        for (id, token) in &added {
            let is_control =
                token.special || roles.contains(token.content.as_str()) || is_marker(&token.content);
            if is_control {
                control.insert(*id);
            }
            names.insert(token.content.clone(), *id);
            let mut text = token.content.clone();
            if token.normalized
                && let Some(normalizer) = inner.get_normalizer()
            {
                let mut form = NormalizedString::from(text.as_str());
                normalizer.normalize(&mut form).map_err(|e| TokenizerError::Definition(e.to_string()))?;
                text = form.get().to_owned();
            }
            let pattern = Pattern {
                id: *id,
                text,
                control: is_control,
                single_word: token.single_word,
                lstrip: token.lstrip,
                rstrip: token.rstrip,
            };
            if token.normalized { normalized.push(pattern) } else { raw.push(pattern) }
        }
        let pieces = Pieces::new(&inner)?;
        let bare = Bare::new(&inner).map_err(|e| TokenizerError::Definition(e.to_string()))?;
        let find = |role: &str| {
            let name = role_text(config.get(role)?)?;
            names.get(name).copied().or_else(|| inner.token_to_id(name))
        };
        let (bos, eos) = (find("bos_token"), find("eos_token"));
        let first = inner
            .encode_fast("", true)
            .map_err(|e| TokenizerError::Definition(e.to_string()))?
            .get_ids()
            .first()
            .copied();
        let add_bos = match config.get("add_bos_token").and_then(Value::as_bool) {
            Some(add) => add,
            None => first.is_some() && (bos.is_none() || first == bos),
        };
        let bos = bos.or(first.filter(|_| add_bos));
        let highest = added.iter().map(|(id, _)| id + 1).max().unwrap_or(0);
        let vocab = highest.max(inner.get_vocab_size(true) as u32);
        let matcher = |patterns| Matcher::new(patterns).map_err(TokenizerError::Definition);
        Ok(Self {
            raw: matcher(raw)?,
            normalized: matcher(normalized)?,
            control,
            special,
            names,
            pieces,
            bare,
            bos,
            eos,
            add_bos,
            vocab,
            inner,
        })
    }

    /// Users' text as tokens; none of them is a control token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_trusted(text, Trusted::NOTHING)
    }

    /// A text of which parts may hold control tokens. Added tokens are cut out before normalisation and after it, each
    /// piece is normalised on its own, and all pieces are split and tokenised together: the reference's own order.
    pub fn encode_trusted(&self, text: &str, trusted: Trusted<'_>) -> Result<Vec<u32>, TokenizerError> {
        self.run(text, trusted, self.inner.get_normalizer(), self.inner.get_pre_tokenizer())
    }

    /// Users' text without the space that sentencepiece tokenizers put in front of every text.
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.run(text, Trusted::NOTHING, self.bare.normalizer.as_ref(), self.bare.splitter.as_ref())
    }

    fn run(
        &self,
        text: &str,
        trusted: Trusted<'_>,
        normalizer: Option<&NormalizerWrapper>,
        splitter: Option<&PreTokenizerWrapper>,
    ) -> Result<Vec<u32>, TokenizerError> {
        let failed = |e: tokenizers::Error| TokenizerError::Encode(e.to_string());
        let mut pre = PreTokenizedString::from(text);
        pre.split(|_, piece| {
            let cuts = self.raw.cuts(piece.get(), |range| trusted.covers(&range));
            Ok(cut(piece, cuts))
        })
        .map_err(failed)?;
        pre.split(|_, mut piece| {
            if let Some(normalizer) = normalizer {
                normalizer.normalize(&mut piece)?;
            }
            let shift = piece.offsets_original().0;
            let cuts = self.normalized.cuts(piece.get(), |range| {
                piece
                    .convert_offsets(In::Normalized(range))
                    .is_some_and(|r| trusted.covers(&(r.start + shift..r.end + shift)))
            });
            Ok(cut(piece, cuts))
        })
        .map_err(failed)?;
        if let Some(splitter) = splitter {
            splitter.pre_tokenize(&mut pre).map_err(failed)?;
        }
        let model = self.inner.get_model();
        pre.tokenize(|piece| model.tokenize(piece.get())).map_err(failed)?;
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        for (_, _, tokens) in pre.get_splits(OffsetReferential::Original, OffsetType::None) {
            ids.extend(tokens.iter().flatten().map(|t| t.id));
        }
        Ok(ids)
    }

    /// Users' text as a prompt: with the token that begins a text, where the checkpoint wants one.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.encode(text)?;
        if let Some(bos) = self.prompt_bos() {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The token in front of every prompt, where the checkpoint wants one.
    pub fn prompt_bos(&self) -> Option<u32> {
        self.bos.filter(|_| self.add_bos)
    }

    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// One more than the highest token.
    pub fn vocab(&self) -> u32 {
        self.vocab
    }

    pub fn check(&self, token: u32) -> Result<(), TokenizerError> {
        if token < self.vocab { Ok(()) } else { Err(TokenizerError::Unknown { token, vocab: self.vocab }) }
    }

    /// The token of an added token's text.
    pub fn marker(&self, text: &str) -> Option<u32> {
        self.names.get(text).copied()
    }

    pub fn is_control(&self, token: u32) -> bool {
        self.control.contains(&token)
    }

    pub fn is_special(&self, token: u32) -> bool {
        self.special.contains(&token)
    }

    /// The texts of all control tokens.
    pub fn controls(&self) -> impl Iterator<Item = &str> {
        self.names.iter().filter(|(_, id)| self.control.contains(id)).map(|(name, _)| name.as_str())
    }

    /// The control tokens found in a text, in order.
    pub fn control_matches(&self, text: &str, trusted: Trusted<'_>) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.encode_trusted(text, trusted)?;
        ids.retain(|id| self.control.contains(id));
        Ok(ids)
    }

    /// The token as it stands in the vocabulary.
    pub fn name(&self, token: u32) -> Option<String> {
        // Not `id_to_token`, which gives added tokens in their normalised form.
        match self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&token) {
            Some(added) => Some(added.content.clone()),
            None => self.inner.id_to_token(token),
        }
    }

    pub(super) fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    pub(super) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// Tokens as text, all at once.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> String {
        let mut stream = super::detokenize::Detokenizer::new(self, skip_special);
        let mut text = String::new();
        for &token in tokens {
            stream.push(self, token, &mut text);
        }
        stream.finish(self, &mut text);
        text
    }
}

/// The pipeline without the space that it puts in front of every text.
struct Bare {
    normalizer: Option<NormalizerWrapper>,
    splitter: Option<PreTokenizerWrapper>,
}

impl Bare {
    fn new(inner: &tokenizers::Tokenizer) -> Result<Self, serde_json::Error> {
        let mut normalizer = serde_json::to_value(inner.get_normalizer())?;
        without_prepend(&mut normalizer);
        if normalizer["type"] == "Prepend" {
            normalizer = Value::Null;
        }
        let mut splitter = serde_json::to_value(inner.get_pre_tokenizer())?;
        without_prepend(&mut splitter);
        Ok(Self {
            normalizer: serde_json::from_value(normalizer)?,
            splitter: serde_json::from_value(splitter)?,
        })
    }
}

fn without_prepend(stage: &mut Value) {
    for list in ["normalizers", "pretokenizers"] {
        if let Some(Value::Array(stages)) = stage.get_mut(list) {
            stages.retain(|stage| stage["type"] != "Prepend");
            stages.iter_mut().for_each(without_prepend);
        }
    }
    if stage["type"] == "Metaspace" {
        stage["prepend_scheme"] = "never".into();
    }
}

/// Cuts a piece at the given places; a cut with a token is that token.
fn cut(
    piece: NormalizedString,
    cuts: Vec<(Option<u32>, Range<usize>)>,
) -> Vec<(NormalizedString, Option<Vec<Token>>)> {
    if let [(None, _)] = cuts[..] {
        return vec![(piece, None)];
    }
    cuts.into_iter()
        .map(|(id, range)| {
            let part = piece.slice(In::Normalized(range)).expect("bug: a cut inside a character");
            let tokens = id.map(|id| vec![Token::new(id, part.get().to_owned(), (0, part.get().len()))]);
            (part, tokens)
        })
        .collect()
}

fn role_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The texts that `tokenizer_config.json` gives a role or calls special.
fn roles(config: &Value) -> HashSet<&str> {
    let mut roles = HashSet::new();
    for key in ["bos_token", "eos_token", "pad_token", "sep_token", "cls_token", "mask_token"] {
        roles.extend(config.get(key).and_then(role_text));
    }
    for key in ["additional_special_tokens", "extra_special_tokens"] {
        match config.get(key) {
            Some(Value::Array(list)) => roles.extend(list.iter().filter_map(role_text)),
            Some(Value::Object(map)) => roles.extend(map.values().filter_map(role_text)),
            _ => {}
        }
    }
    if let Some(Value::Object(map)) = config.get("added_tokens_decoder") {
        roles.extend(
            map.values().filter(|t| t.get("special") == Some(&Value::Bool(true))).filter_map(role_text),
        );
    }
    roles
}

/// Real checkpoints leave markers without the special flag (DeepSeek's and Qwen's fill-in-the-middle markers, Gemma's
/// reserved ones), so the shape of the text decides too. HTML tags and runs of blanks are none of these shapes.
fn is_marker(text: &str) -> bool {
    let inside = |open: &str, close: &str| {
        text.strip_prefix(open).and_then(|t| t.strip_suffix(close)).filter(|t| !t.is_empty())
    };
    fim::is_marker(text)
        || inside("<|", "|>").is_some()
        || inside("<｜", "｜>").is_some()
        || inside("[", "]").is_some_and(|t| t.chars().all(|c| c.is_ascii_uppercase() || "/_".contains(c)))
        || matches!(text, "<start_of_turn>" | "<end_of_turn>")
        || inside("<unused", ">").is_some_and(|t| t.bytes().all(|b| b.is_ascii_digit()))
}
