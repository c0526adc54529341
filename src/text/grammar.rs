//! Answers of a given form (steps 4, 8 and 9 in the life of a request): a grammar says before each draw which tokens may
//! come next.
//!
//! Grammars come from this house and never from a request. What is costly is done once for each model, at the first
//! request that needs it and off the async threads: the tree of all tokens by their bytes (half a second for 130,000 tokens) and
//! the compiled grammars (milliseconds). Requests take copies, which share what the lexer has learned: a mask of 130,000
//! tokens then costs some 10 to 100 µs, and up to 5 ms where the lexer meets something new.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use super::Text;
use crate::engine::request::Mask;

/// Why an answer cannot be held to a form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    #[error("the grammar is {0} bytes long; {LONGEST} is the limit")]
    TooLong(usize),
    #[error("the model has no token that ends an answer, which a form needs")]
    Endless,
    #[error("the grammar cannot be read: {0}")]
    Grammar(String),
    #[error("the grammar could not be compiled; the log has the place")]
    Lost,
}

/// Bytes of a grammar.
const LONGEST: usize = 64 * 1024;
/// Grammars of one model that are kept compiled.
const KEPT: usize = 32;
/// Of the lexer's states, about 1.5 kB each.
const STATES: usize = 50_000;

/// The grammars of one model.
#[derive(Default)]
pub struct Grammars {
    factory: OnceLock<Result<ParserFactory, GrammarError>>,
    compiled: Mutex<HashMap<Arc<str>, Grammar>>,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

/// A compiled grammar in the state after some tokens.
pub struct Grammar {
    matcher: Matcher,
    /// Set when it failed in use: copies share the lexer, so the next request compiles anew.
    broken: Arc<AtomicBool>,
}

impl Text {
    /// A mask that holds an answer to a grammar in llguidance's notation.
    pub async fn grammar(self: &Arc<Self>, source: Arc<str>) -> Result<Box<dyn Mask>, GrammarError> {
        if source.len() > LONGEST {
            return Err(GrammarError::TooLong(source.len()));
        }
        if let Some(grammar) = self.grammars.kept(&source) {
            return Ok(Box::new(grammar));
        }
        let text = self.clone();
        let work = move || text.compile(source);
        let compiled = tokio::task::spawn_blocking(work).await.map_err(|_| GrammarError::Lost)?;
        Ok(Box::new(compiled?))
    }

    fn compile(&self, source: Arc<str>) -> Result<Grammar, GrammarError> {
        let factory = self.grammars.factory.get_or_init(|| self.factory()).as_ref().map_err(Clone::clone)?;
        // One at a time: those who wait find it compiled.
        let mut compiled = self.grammars.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(grammar) = compiled.get(&source).filter(|grammar| !grammar.broken.load(Relaxed)) {
            return Ok(grammar.copy());
        }
        let parser = factory.create_parser(TopLevelGrammar::from_lark(source.to_string()));
        let matcher = Matcher::new(parser);
        if let Some(error) = matcher.get_error() {
            return Err(GrammarError::Grammar(error));
        }
        let grammar = Grammar { matcher, broken: Arc::default() };
        if compiled.len() >= KEPT {
            compiled.clear();
        }
        compiled.insert(source, grammar.copy());
        Ok(grammar)
    }

    /// The tree of all tokens. Control tokens have no bytes in it, so that no form can hold them.
    fn factory(&self) -> Result<ParserFactory, GrammarError> {
        let Some(last) = self.ends.iter().max() else { return Err(GrammarError::Endless) };
        let vocab = self.tokenizer.vocab().max(last + 1);
        let spelled = |token: u32| match self.tokenizer.is_control(token) || self.ends.contains(&token) {
            true => Vec::new(),
            false => self.tokenizer.bytes(token),
        };
        let words: Vec<Vec<u8>> = (0..vocab).map(spelled).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab, self.ends[0]), &words).with_eos_tokens(&self.ends);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let failed = |e: &dyn std::fmt::Display| GrammarError::Grammar(e.to_string());
        let mut factory = ParserFactory::new_simple(&env).map_err(|e| failed(&e))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = STATES;
        // Errors would hold what was written so far.
        limits.verbose_errors = false;
        Ok(factory)
    }
}

impl Grammars {
    fn kept(&self, source: &str) -> Option<Grammar> {
        // Somebody compiles: the caller waits for it off the async threads.
        let compiled = self.compiled.try_lock().ok()?;
        compiled.get(source).filter(|grammar| !grammar.broken.load(Relaxed)).map(Grammar::copy)
    }
}

impl Grammar {
    fn copy(&self) -> Self {
        Self { matcher: self.matcher.clone(), broken: self.broken.clone() }
    }

    fn failed(&self, error: impl std::fmt::Display) -> String {
        self.broken.store(true, Relaxed);
        error.to_string()
    }
}

impl Mask for Grammar {
    fn fill(&mut self, allowed: &mut [u32]) -> Result<(), String> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|e| self.failed(e))?;
        let words = mask.as_slice();
        let known = words.len().min(allowed.len());
        allowed[..known].copy_from_slice(&words[..known]);
        allowed[known..].fill(0);
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        self.matcher.consume_token(token).map_err(|e| self.failed(e))
    }

    fn fork(&self) -> Box<dyn Mask> {
        Box::new(self.copy())
    }
}
