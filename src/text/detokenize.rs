//! From tokens to text while they arrive (step 10 in the life of a request).
//!
//! The stream is decode(prompt + output) minus decode(prompt): the leading space of a fill-in-the-middle survives, and
//! text is handed out as soon as no later token can change it. What can change it depends on the kind of vocabulary:
//!
//! * byte-level: an unfinished UTF-8 sequence waits for its last byte;
//! * byte fallback (`<0x0A>`): the reference replaces *every* byte of a run of byte tokens when the run as a whole is
//!   not UTF-8, so a run waits for the first token that is not a byte. This delays a line break by one token.
//!
//! Concatenated, the pieces are equal to decoding everything at once with the reference, invalid bytes included.

use std::collections::HashMap;

use serde_json::Value;

use super::tokenizer::{Tokenizer, TokenizerError};

/// How the tokens of a vocabulary spell text.
#[derive(Debug)]
pub struct Pieces(Spelling);

#[derive(Debug)]
enum Spelling {
    /// Each character of a token stands for a byte.
    Bytes(HashMap<char, u8>),
    /// Tokens are text with a sign for the space, beside tokens for single bytes; the first `strip` spaces of the whole
    /// text are dropped.
    Fallback { space: Option<(String, String)>, strip: usize, bytes: bool },
    /// Tokens are text with a sign for the space; signs in the first token are dropped if `strip`.
    Metaspace { space: char, strip: bool },
}

impl Pieces {
    pub(super) fn new(inner: &tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        let decoder =
            serde_json::to_value(inner.get_decoder()).map_err(|e| TokenizerError::Decoder(e.to_string()))?;
        let unsupported = || TokenizerError::Decoder(decoder.to_string());
        let stages = match &decoder["decoders"] {
            Value::Array(list) => list.clone(),
            _ => vec![decoder.clone()],
        };
        let kind = |stage: &Value| stage["type"].as_str().unwrap_or("none").to_owned();
        if let [stage] = &stages[..] {
            match kind(stage).as_str() {
                "ByteLevel" => return Ok(Self(Spelling::Bytes(byte_characters()))),
                "Metaspace" => {
                    let space = stage["replacement"].as_str().and_then(|s| s.chars().next()).unwrap_or('▁');
                    let strip = stage["prepend_scheme"].as_str().unwrap_or("always") != "never";
                    return Ok(Self(Spelling::Metaspace { space, strip }));
                }
                _ => {}
            }
        }
        let (mut space, mut bytes, mut fused, mut strip) = (None, false, false, 0);
        for stage in &stages {
            match kind(stage).as_str() {
                "Replace" if space.is_none() && !bytes && !fused => {
                    let from = stage["pattern"]["String"].as_str().ok_or_else(unsupported)?;
                    let to = stage["content"].as_str().ok_or_else(unsupported)?;
                    space = Some((from.to_owned(), to.to_owned()));
                }
                "ByteFallback" if !fused => bytes = true,
                "Fuse" => fused = true,
                "Strip" if fused && stage["content"] == " " && stage["stop"] == 0 && strip == 0 => {
                    strip = stage["start"].as_u64().ok_or_else(unsupported)? as usize;
                }
                _ => return Err(unsupported()),
            }
        }
        Ok(Self(Spelling::Fallback { space, strip, bytes }))
    }
}

impl Tokenizer {
    /// The bytes that a token stands for, in the middle of a text. Empty for a token that is not in the vocabulary.
    pub fn bytes(&self, token: u32) -> Vec<u8> {
        let Some(name) = self.spelled(token) else { return Vec::new() };
        match &self.pieces().0 {
            Spelling::Bytes(map) => unmap(map, &name),
            Spelling::Fallback { space, bytes, .. } => match byte_token(&name).filter(|_| *bytes) {
                Some(byte) => vec![byte],
                None => spaced(space, name).into_bytes(),
            },
            Spelling::Metaspace { space, .. } => name.replace(*space, " ").into_bytes(),
        }
    }

    fn spelled(&self, token: u32) -> Option<String> {
        let inner = self.inner();
        inner.get_added_vocabulary().simple_id_to_token(token).or_else(|| inner.id_to_token(token))
    }
}

/// The state of one stream of tokens. Cheap to clone: the choices of a request begin with the same state.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    skip_special: bool,
    /// Bytes whose text is not settled.
    waiting: Vec<u8>,
    /// Leading spaces of the whole text that are still to be dropped.
    drop: usize,
    /// Nothing was pushed yet.
    first: bool,
}

/// A run of byte tokens at the end of a prompt that is longer than this counts as settled.
const LONGEST_RUN: usize = 256;

impl Detokenizer {
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        let drop = match tokenizer.pieces().0 {
            Spelling::Fallback { strip, .. } => strip,
            _ => 0,
        };
        Self { skip_special, waiting: Vec::new(), drop, first: true }
    }

    /// The state after a prompt. Only its first and last few tokens matter.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32], skip_special: bool) -> Self {
        let mut stream = Self::new(tokenizer, skip_special);
        let mut text = String::new();
        let mut done = 0;
        while done < prompt.len() && (stream.first || stream.drop > 0) {
            stream.push(tokenizer, prompt[done], &mut text);
            done += 1;
        }
        let tail = prompt.len().saturating_sub(LONGEST_RUN).max(done);
        if tail > done {
            stream.waiting.clear();
        }
        for &token in &prompt[tail..] {
            stream.push(tokenizer, token, &mut text);
            text.clear();
        }
        // What the prompt itself settles is the prompt's; only an unfinished character is carried into the output.
        let unfinished = match std::str::from_utf8(&stream.waiting) {
            Err(e) if e.error_len().is_none() => stream.waiting.split_off(e.valid_up_to()),
            _ => Vec::new(),
        };
        stream.finish(tokenizer, &mut text);
        stream.waiting = unfinished;
        stream
    }

    /// Takes a token and appends the text that is settled now.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32, text: &mut String) {
        if self.skip_special && tokenizer.is_special(token) {
            return;
        }
        let Some(name) = tokenizer.spelled(token) else { return };
        match &tokenizer.pieces().0 {
            Spelling::Bytes(map) => {
                self.waiting.extend(unmap(map, &name));
                self.settle_bytes(text);
            }
            Spelling::Fallback { space, bytes, .. } => match byte_token(&name).filter(|_| *bytes) {
                Some(byte) => self.waiting.push(byte),
                None => {
                    self.settle_run(text);
                    self.emit(&spaced(space, name), text);
                }
            },
            Spelling::Metaspace { space, strip } => match self.first && *strip {
                true => text.extend(name.chars().filter(|c| c != space)),
                false => text.push_str(&name.replace(*space, " ")),
            },
        }
        self.first = false;
    }

    /// The end of the tokens: appends what was still waiting.
    pub fn finish(&mut self, tokenizer: &Tokenizer, text: &mut String) {
        match &tokenizer.pieces().0 {
            Spelling::Bytes(_) => {
                if !std::mem::take(&mut self.waiting).is_empty() {
                    text.push(char::REPLACEMENT_CHARACTER);
                }
            }
            Spelling::Fallback { .. } => self.settle_run(text),
            Spelling::Metaspace { .. } => {}
        }
    }

    /// Byte-level: everything but an unfinished sequence at the end, each invalid part replaced.
    fn settle_bytes(&mut self, text: &mut String) {
        let mut rest = &self.waiting[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (valid, after) = rest.split_at(e.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    match e.error_len() {
                        Some(bad) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &rest[bad..];
                        }
                        None => break,
                    }
                }
            }
        }
        let settled = self.waiting.len() - rest.len();
        self.waiting.drain(..settled);
    }

    /// Byte fallback: the run of bytes as text, or one replacement character a byte.
    fn settle_run(&mut self, text: &mut String) {
        if self.waiting.is_empty() {
            return;
        }
        let run = match String::from_utf8(std::mem::take(&mut self.waiting)) {
            Ok(run) => run,
            Err(e) => "\u{fffd}".repeat(e.as_bytes().len()),
        };
        self.emit(&run, text);
    }

    fn emit(&mut self, mut piece: &str, text: &mut String) {
        while self.drop > 0
            && let Some(rest) = piece.strip_prefix(' ')
        {
            piece = rest;
            self.drop -= 1;
        }
        if !piece.is_empty() {
            self.drop = 0;
        }
        text.push_str(piece);
    }
}

fn spaced(space: &Option<(String, String)>, name: String) -> String {
    match space {
        Some((from, to)) => name.replace(from.as_str(), to),
        None => name,
    }
}

/// `<0x0A>` and its like.
fn byte_token(name: &str) -> Option<u8> {
    let hex = name.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// A token that holds a character outside the alphabet (an added token) stands for itself.
fn unmap(map: &HashMap<char, u8>, name: &str) -> Vec<u8> {
    name.chars()
        .map(|c| map.get(&c).copied())
        .collect::<Option<_>>()
        .unwrap_or_else(|| name.as_bytes().to_vec())
}

/// GPT-2's alphabet: printable Latin-1 characters are themselves, the other bytes follow from U+0100 on.
fn byte_characters() -> HashMap<char, u8> {
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| {
            let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let code = if printable { u32::from(byte) } else { next };
            next += u32::from(!printable);
            (char::from_u32(code).expect("bug: the alphabet lies below the surrogates"), byte)
        })
        .collect()
}
