//! Text (steps 4 and 10 in the life of a request): prompts into tokens, tokens into a stream of text.
//!
//! Users' text never becomes special tokens. The stream is decode(prompt + output) minus decode(prompt).

mod added;
pub mod chat;
pub mod date;
pub mod detokenize;
pub mod fim;
pub mod generation;
pub mod grammar;
pub mod stop;
pub mod tokenizer;

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::Semaphore;

use chat::{ChatError, ChatPrompt, ChatTemplate, Message};
use fim::Fim;
use grammar::Grammars;
use tokenizer::{Tokenizer, TokenizerError};

/// The files of a checkpoint that say how it reads and writes.
#[derive(Clone, Debug, Default)]
pub struct TextFiles {
    pub tokenizer: Vec<u8>,
    pub tokenizer_config: Option<Vec<u8>>,
    pub chat_template: Option<String>,
}

/// No text file of a checkpoint is larger than this; the largest tokenizers are about 35 MB.
const LARGEST_FILE: u64 = 128 << 20;

impl TextFiles {
    /// Reads them from a checkpoint's directory; `tokenizer.json` must be there.
    pub fn read(directory: &Path) -> Result<Self, TextError> {
        let read = |name: &str| -> Result<Option<Vec<u8>>, TextError> {
            let path = directory.join(name);
            let failed = |e: std::io::Error| TextError::File {
                path: path.display().to_string(),
                reason: e.to_string(),
            };
            match std::fs::metadata(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(failed(e)),
                Ok(m) if m.len() > LARGEST_FILE => Err(failed(std::io::Error::other(format!(
                    "{} bytes; at most {LARGEST_FILE} are read",
                    m.len()
                )))),
                Ok(m) if !m.is_file() => Err(failed(std::io::Error::other("not a plain file"))),
                Ok(_) => std::fs::read(&path).map(Some).map_err(failed),
            }
        };
        let chat_template = match read("chat_template.jinja")? {
            Some(bytes) => Some(String::from_utf8(bytes).map_err(|e| TextError::File {
                path: directory.join("chat_template.jinja").display().to_string(),
                reason: e.to_string(),
            })?),
            None => None,
        };
        Ok(Self {
            tokenizer: read("tokenizer.json")?
                .ok_or_else(|| TextError::NoTokenizer { directory: directory.display().to_string() })?,
            tokenizer_config: read("tokenizer_config.json")?,
            chat_template,
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("{path}: {reason}")]
    File { path: String, reason: String },
    #[error("{directory} has no tokenizer.json; convert the checkpoint's tokenizer to that format")]
    NoTokenizer { directory: String },
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Chat(#[from] ChatError),
}

/// How one model reads and writes. Shared by all its requests.
#[derive(Debug)]
pub struct Text {
    pub tokenizer: Tokenizer,
    pub fim: Option<Fim>,
    pub chat: Option<ChatTemplate>,
    /// Tokens that end an answer.
    pub ends: Vec<u32>,
    /// Tokens of context, for the cap on bytes.
    context: u32,
    long: Arc<Semaphore>,
    grammars: Grammars,
}

/// Texts longer than this are tokenised off the async threads: at about 1 MB/s this is some 8 ms.
const LONG: usize = 8 * 1024;
/// Long texts tokenised at the same time; the others wait.
const LONG_AT_ONCE: usize = 2;
/// No vocabulary spells more bytes than this with a token on average; longer texts are refused before the work.
const BYTES_PER_TOKEN: usize = 16;

impl Text {
    /// `vocab`, `context` and the tokens that end an answer are the model's.
    pub fn new(files: &TextFiles, vocab: u32, context: u32, ends: &[u32]) -> Result<Self, TextError> {
        let tokenizer = Tokenizer::new(&files.tokenizer, files.tokenizer_config.as_deref())?;
        // Checked by the tokenizer a moment ago.
        let config = files.tokenizer_config.as_deref().and_then(|bytes| serde_json::from_slice(bytes).ok());
        let config: Value = config.unwrap_or_default();
        let chat = match chat::source(files.chat_template.as_deref(), &config) {
            Some(source) => {
                let text = |token: Option<u32>| token.and_then(|t| tokenizer.name(t)).unwrap_or_default();
                Some(ChatTemplate::new(source.to_string(), text(tokenizer.bos()), text(tokenizer.eos()))?)
            }
            None => None,
        };
        let mut ends = ends.to_vec();
        ends.extend(tokenizer.eos());
        ends.retain(|id| *id < vocab);
        ends.sort_unstable();
        ends.dedup();
        let fim = Fim::of(&tokenizer);
        let long = Arc::new(Semaphore::new(LONG_AT_ONCE));
        Ok(Self { tokenizer, fim, chat, ends, context, long, grammars: Grammars::default() })
    }

    /// The longest text that is tokenised at all.
    pub fn longest(&self) -> usize {
        self.context as usize * BYTES_PER_TOKEN + 4096
    }

    fn check(&self, bytes: usize) -> Result<(), TokenizerError> {
        let limit = self.longest();
        if bytes > limit {
            return Err(TokenizerError::TooLong { bytes, limit, context: self.context });
        }
        Ok(())
    }

    /// Runs tokenising work of a text of so many bytes where it does not hold up others.
    async fn off_thread<T: Send + 'static>(
        self: &Arc<Self>,
        bytes: usize,
        work: impl FnOnce(&Text) -> T + Send + 'static,
    ) -> Result<T, TokenizerError> {
        self.check(bytes)?;
        if bytes <= LONG {
            return Ok(work(self));
        }
        // The permit goes with the work, which a client that leaves does not stop.
        let permit = self.long.clone().acquire_owned().await.expect("bug: the semaphore is never closed");
        let text = self.clone();
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&text)
        })
        .await
        .map_err(|_| TokenizerError::Encode("the tokenizer failed on this text".to_owned()))
    }

    /// Users' text as tokens; `begin` puts the token in front that the checkpoint wants.
    pub async fn encode(self: &Arc<Self>, text: String, begin: bool) -> Result<Vec<u32>, TokenizerError> {
        self.off_thread(text.len(), move |t| match begin {
            true => t.tokenizer.encode_prompt(&text),
            false => t.tokenizer.encode(&text),
        })
        .await?
    }

    /// The prompt that asks for the text between `prefix` and `suffix`; `None` when the model cannot fill gaps.
    pub async fn fill(
        self: &Arc<Self>,
        prefix: String,
        suffix: String,
    ) -> Option<Result<Vec<u32>, TokenizerError>> {
        self.fim.as_ref()?;
        let bytes = prefix.len() + suffix.len();
        let work = move |t: &Text| {
            let fim = t.fim.as_ref().expect("bug: the format was there a moment ago");
            fim.prompt(&t.tokenizer, &prefix, &suffix)
        };
        Some(self.off_thread(bytes, work).await.and_then(|r| r))
    }

    /// The messages as a prompt; `None` when the checkpoint has no chat template.
    pub async fn chat(self: &Arc<Self>, messages: Vec<Message>) -> Option<Result<ChatPrompt, ChatError>> {
        self.chat.as_ref()?;
        let bytes = messages.iter().map(|m| m.content.len()).sum();
        let work = move |t: &Text| {
            let template = t.chat.as_ref().expect("bug: the template was there a moment ago");
            template.prompt(&t.tokenizer, &messages)
        };
        Some(self.off_thread(bytes, work).await.map_err(ChatError::from).and_then(|r| r))
    }
}
