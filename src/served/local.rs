//! A model of this process answers an [`Ask`] (steps 4 and 5 in the life of a request).

use std::sync::Arc;

use futures::StreamExt;

use super::Served;
use super::ask::{Answer, Ask, Failure, Input, Message, Piece, Usage};
use crate::engine::request::{Refused, Request, Sampling};
use crate::text::chat::ChatError;
use crate::text::generation::{Generation, Output, Shape};
use crate::text::grammar::GrammarError;
use crate::text::tokenizer::TokenizerError;

impl Served {
    /// Submits the work; the answer comes piece by piece.
    pub async fn ask(self: &Arc<Self>, ask: Ask) -> Result<Answer, Failure> {
        let (prompt, ends) = self.prompt(ask.input).await?;
        let room = self.context().saturating_sub(prompt.len() as u32);
        if room == 0 {
            return Err(Failure::TooLong(format!(
                "the prompt has {} tokens; the model {} holds {} tokens of prompt and answer: send less, or serve it \
                 with a larger --context",
                prompt.len(),
                self.name,
                self.context()
            )));
        }
        let mask = match ask.grammar {
            Some(grammar) => Some(self.text.grammar(grammar).await.map_err(form)?),
            None => None,
        };
        let mut stop_tokens: Vec<u32> = self.text.ends.iter().copied().chain(ends).collect();
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        let shape = Shape {
            stops: ask.stops.into(),
            skip_special: true,
            stop_tokens: stop_tokens.into(),
            ..Shape::default()
        };
        let sampling = Sampling {
            temperature: ask.temperature,
            top_p: ask.top_p,
            seed: getrandom::u64().expect("bug: the system gives no random numbers"),
            ..Sampling::default()
        };
        let prompt: Arc<[u32]> = prompt.into();
        let id = ask.id;
        let request = Request {
            id: id.clone(),
            sampling,
            max_tokens: ask.max_tokens.min(room),
            stop_tokens: shape.stop_tokens.clone(),
            deadline: ask.patience,
            begin: ask.begin,
            mask,
            ..Request::new(prompt.clone())
        };
        let tokens = self.engine.submit(request).map_err(refused)?;
        let generation =
            Generation::new(self.text.clone(), tokens, &prompt, 1, shape).recorded(&id, &self.name, &prompt);
        let mut usage = Usage { input: prompt.len() as u32, output: 0 };
        Ok(Answer::new(generation.flat_map(move |output| futures::stream::iter(pieces(output, &mut usage)))))
    }

    /// How many tokens a text has.
    pub async fn count(&self, text: String) -> Result<u32, Failure> {
        Ok(self.text.encode(text, false).await.map_err(tokens)?.len() as u32)
    }

    /// The prompt's tokens, and tokens that end its answer besides the model's own.
    async fn prompt(&self, input: Input) -> Result<(Vec<u32>, Vec<u32>), Failure> {
        match input {
            Input::Fill { prefix, suffix } => match &self.text.fim {
                Some(fim) => {
                    let filled = self.text.fill(prefix, suffix).await;
                    Ok((filled.expect("bug: the model can fill gaps").map_err(tokens)?, fim.ends().to_vec()))
                }
                // A model that was not trained to fill gaps continues what stands before them.
                None => Ok((self.text.encode(prefix, true).await.map_err(tokens)?, Vec::new())),
            },
            Input::Chat { messages, begun } => {
                let messages = match &self.text.chat {
                    Some(template) if !template.takes_system => without_system(messages),
                    _ => messages,
                };
                let mut prompt = match self.text.chat {
                    Some(_) => {
                        let prompt = self.text.chat(messages).await;
                        prompt.expect("bug: the template was there a moment ago").map_err(chat)?.tokens
                    }
                    None => self.text.encode(transcript(&messages), true).await.map_err(tokens)?,
                };
                if !begun.is_empty() {
                    prompt.extend(self.text.encode(begun, false).await.map_err(tokens)?);
                }
                Ok((prompt, Vec::new()))
            }
        }
    }
}

/// The messages for a model whose chat template has no system role (CodeGemma, the first Mistral models): what the system
/// says stands in front of what the user says.
fn without_system(messages: Vec<Message>) -> Vec<Message> {
    let (system, mut rest): (Vec<_>, Vec<_>) = messages.into_iter().partition(|m| m.role == "system");
    let said: Vec<String> = system.into_iter().map(|m| m.content).collect();
    let said = said.join("\n\n");
    match rest.iter_mut().find(|m| m.role == "user") {
        _ if said.is_empty() => {}
        Some(user) => user.content = format!("{said}\n\n{}", user.content),
        None => rest.insert(0, Message { role: "user".to_owned(), content: said }),
    }
    rest
}

/// The messages for a model without a chat template: a base model goes on with a plain text best.
fn transcript(messages: &[Message]) -> String {
    let mut text = String::new();
    for message in messages {
        match message.role.as_str() {
            "assistant" => text += "Answer:\n",
            "user" => text += "Request:\n",
            _ => {}
        }
        text += &message.content;
        text += "\n\n";
    }
    text + "Answer:\n"
}

fn pieces(output: Output, usage: &mut Usage) -> Vec<Result<Piece, Failure>> {
    match output {
        Output::Prompt { .. } => Vec::new(),
        Output::Piece { text, .. } => {
            usage.output += 1;
            if text.is_empty() { Vec::new() } else { vec![Ok(Piece::Text(text))] }
        }
        Output::Finished { text, end, .. } => {
            let rest = (!text.is_empty()).then_some(Ok(Piece::Text(text)));
            rest.into_iter().chain([Ok(Piece::End { end, usage: *usage })]).collect()
        }
        Output::Failed { error } => vec![Err(Failure::Lost(error))],
    }
}

fn refused(refused: Refused) -> Failure {
    let message = refused.to_string();
    match refused {
        Refused::Full { retry_after, .. } => Failure::Busy { message, retry_after },
        Refused::Late { .. } => Failure::Late(message),
        Refused::Stopping => Failure::Stopping(message),
        Refused::TooLong { .. } | Refused::TooBig { .. } => Failure::TooLong(message),
        Refused::UnknownToken { .. } | Refused::Empty => Failure::Unable(message),
    }
}

fn tokens(error: TokenizerError) -> Failure {
    match error {
        TokenizerError::TooLong { .. } => Failure::TooLong(error.to_string()),
        other => Failure::Unable(other.to_string()),
    }
}

fn form(error: GrammarError) -> Failure {
    Failure::Unable(error.to_string())
}

fn chat(error: ChatError) -> Failure {
    match error {
        ChatError::Tokenizer(error) => tokens(error),
        other => Failure::Unable(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::chat::ChatTemplate;

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }

    #[test]
    fn a_template_without_a_system_role_is_known_by_what_it_does() {
        let takes = |source: &str| {
            ChatTemplate::new(source.to_owned(), String::new(), String::new()).unwrap().takes_system
        };
        assert!(takes("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"));
        assert!(!takes(
            "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages }}"
        ));
        assert!(
            !takes("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"),
            "forgets it"
        );
    }

    #[test]
    fn what_the_system_says_then_stands_in_front_of_the_first_question() {
        let asked = [
            message("system", "Be brief."),
            message("user", "Why?"),
            message("assistant", "So."),
            message("user", "How?"),
        ];
        let told =
            [message("user", "Be brief.\n\nWhy?"), message("assistant", "So."), message("user", "How?")];
        assert_eq!(without_system(asked.to_vec()), told);
        assert_eq!(without_system(vec![message("system", "Hello.")]), [message("user", "Hello.")]);
        assert_eq!(without_system(told.to_vec()), told);
    }
}
