//! `hearth complete`: one completion in this process, without a server.

use std::io::Read;

use clap::Args;

use super::flags::ModelFlags;
use super::load;
use super::{CliError, Common, Exit, terminal};
use crate::engine::request::{Refused, Request, Sampling};
use crate::served::Served;
use crate::text::generation::{Generation, Shape};

#[derive(Args)]
pub struct Complete {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    answer: AnswerFlags,
    /// Text that follows: the answer is what stands between
    #[arg(long, value_name = "TEXT")]
    suffix: Option<String>,
    /// Text to continue; `-` reads standard input
    #[arg(value_name = "TEXT")]
    text: String,
}

/// How an answer is drawn.
#[derive(Args, Clone)]
pub struct AnswerFlags {
    /// Tokens of the answer at most
    #[arg(long, default_value_t = 128, value_name = "N")]
    max_tokens: u32,
    /// 0 takes the most probable token each time
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f32,
    /// Repeats the same draws
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Ends the answer in front of this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl AnswerFlags {
    /// Before a model is read for them.
    pub fn check(&self) -> Result<(), CliError> {
        let wrong = |what: String, fix: &str| Err(CliError::new(Exit::Usage, what).fix(fix));
        if !(0.0..=2.0).contains(&self.temperature) {
            return wrong(format!("--temperature is {}", self.temperature), "it must be from 0 to 2");
        }
        if self.max_tokens == 0 {
            return wrong("--max-tokens is 0".to_owned(), "it must be at least 1");
        }
        if self.stop.iter().any(String::is_empty) {
            return wrong("--stop is empty".to_owned(), "leave it out");
        }
        Ok(())
    }

    /// Submits a prompt; `more` are tokens that end the answer besides the model's own.
    pub fn ask(&self, model: &Served, prompt: Vec<u32>, more: &[u32]) -> Result<Generation, CliError> {
        let stops = self.stop.clone().into();
        let stop_tokens = model.text.ends.iter().chain(more).copied().collect();
        let shape = Shape { stops, stop_tokens, skip_special: true, ..Shape::default() };
        let request = Request {
            sampling: Sampling { temperature: self.temperature, seed: self.seed, ..Sampling::default() },
            max_tokens: self.max_tokens,
            stop_tokens: shape.stop_tokens.clone(),
            ..Request::new(prompt.as_slice())
        };
        let tokens = model.engine.submit(request).map_err(refused)?;
        Ok(Generation::new(model.text.clone(), tokens, &prompt, 1, shape))
    }
}

fn refused(refused: Refused) -> CliError {
    let what = refused.to_string();
    match refused {
        Refused::TooLong { .. } | Refused::TooBig { .. } => {
            CliError::new(Exit::Usage, what).fix("give less text or lower --max-tokens")
        }
        Refused::Empty => CliError::new(Exit::Usage, what).fix("give some text"),
        Refused::UnknownToken { .. } => CliError::new(Exit::Failed, what),
        Refused::Full { .. } | Refused::Late { .. } | Refused::Stopping => CliError::new(Exit::Busy, what),
    }
}

pub fn run(verb: Complete, common: &Common) -> Result<(), CliError> {
    verb.answer.check()?;
    let mut text = verb.text;
    if text == "-" {
        text.clear();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| CliError::new(Exit::Failed, format!("standard input cannot be read: {e}")))?;
    }
    let runtime = super::runtime()?;
    let model = load::single(&verb.model, common)?;
    let bad = |e: crate::text::tokenizer::TokenizerError| CliError::new(Exit::Usage, e.to_string());
    runtime.block_on(async {
        let answer = match verb.suffix.filter(|s| !s.is_empty()) {
            None => verb.answer.ask(&model, model.text.encode(text, true).await.map_err(bad)?, &[])?,
            Some(suffix) => {
                let ends = model.text.fim.as_ref().map(|fim| fim.ends()).unwrap_or_default();
                match model.text.fill(text, suffix).await {
                    Some(prompt) => verb.answer.ask(&model, prompt.map_err(bad)?, ends)?,
                    None => {
                        let what = format!("the model {} cannot fill gaps", model.name);
                        return Err(
                            CliError::new(Exit::Usage, what).fix("leave --suffix out, or use a code model")
                        );
                    }
                }
            }
        };
        terminal::write(answer).await.map(drop)
    })
}
