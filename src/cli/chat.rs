//! `hearth chat`: a conversation in this process, a line a turn.

use std::io::{BufRead, IsTerminal};

use clap::Args;

use super::complete::AnswerFlags;
use super::flags::ModelFlags;
use super::load;
use super::{CliError, Common, Exit, terminal};
use crate::text::chat::Message;

#[derive(Args)]
pub struct Chat {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    answer: AnswerFlags,
    /// What the model is told first
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
}

pub fn run(verb: Chat, common: &Common) -> Result<(), CliError> {
    verb.answer.check()?;
    let runtime = super::runtime()?;
    let model = load::single(&verb.model, common)?;
    if model.text.chat.is_none() {
        let what = format!("the model {} has no chat template", model.name);
        return Err(
            CliError::new(Exit::Usage, what).fix("use `hearth complete`, or a checkpoint made for chat")
        );
    }
    let message = |role: &str, content: String| Message { role: role.to_owned(), content };
    let mut messages: Vec<Message> = verb.system.map(|text| message("system", text)).into_iter().collect();
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        eprintln!("One line is one message; end with Ctrl-D.");
    }
    loop {
        if terminal {
            eprint!("> ");
        }
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        if read.map_err(|e| CliError::new(Exit::Failed, format!("standard input cannot be read: {e}")))? == 0
        {
            return Ok(());
        }
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        messages.push(message("user", line.to_owned()));
        let answer = runtime.block_on(async {
            let prompt =
                model.text.chat(messages.clone()).await.expect("bug: the template was there a moment ago");
            let prompt = prompt.map_err(|e| CliError::new(Exit::Failed, e.to_string()))?;
            terminal::write(verb.answer.ask(&model, prompt.tokens, &[])?).await
        })?;
        messages.push(message("assistant", answer));
    }
}
