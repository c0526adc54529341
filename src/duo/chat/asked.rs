//! What the model is told in one step of the agent (step 4 in the life of a request), fitted into its context.
//!
//! Where the whole conversation does not fit, the contents of older turns go first (the files and pages that came with
//! them), then the longest contents of this turn are cut down to three quarters of the room, and as many of the newest
//! turns as fit stay.

use serde_json::{Map, Value, json};

use super::tools::Tool;
use super::turns::{Conversation, Turn};
use crate::duo::fit;
use crate::duo::prompts::{Prompt, PromptError, Rendered, find};
use crate::duo::thought;
use crate::served::Model;
use crate::served::ask::Message;
use crate::text::date;

/// The prompt of a step.
pub async fn rendered(
    model: &Model,
    mut conversation: Conversation,
    tools: &[&Tool],
) -> Result<Rendered, PromptError> {
    let prompt =
        find("chat/react", model.family()).expect("bug: the agent's prompt is part of the catalogue");
    let system = prompt.part("system", &system(&conversation, tools))?;
    let thought = if model.family().thinks() { thought::TOKENS } else { 0 };
    let max_tokens = prompt.max_tokens + thought;
    let room = fit::room(model.context(), max_tokens);
    let mut history = texts(prompt, &conversation.turns)?;
    let mut question = history.pop().expect("bug: a conversation without a question");
    let mut begun = begun(prompt, &conversation)?;
    let mut counter = fit::Counter::new(model);
    let all: Vec<&str> = history.iter().map(|m| m.content.as_str()).collect();
    let all = [&all[..], &[&system, &question.content, &begun]].concat();
    if counter.excess(&all, room).await.is_some() {
        tracing::info!(
            model = model.name(),
            room,
            turns = history.len(),
            "conversation cut to the model's context"
        );
        let last = conversation.turns.len() - 1;
        conversation.turns[..last].iter_mut().for_each(forget);
        let share = if last == 0 { room } else { room / 4 * 3 };
        while let Some(excess) = counter.excess(&[&system, &question.content, &begun], share).await {
            if !shorten(&mut conversation, excess) {
                break;
            }
            question = text(prompt, &conversation.turns[last])?;
            begun = self::begun(prompt, &conversation)?;
        }
        history = texts(prompt, &conversation.turns[..last])?;
        newest(&mut counter, &mut history, [&system, &question.content, &begun], room).await;
    }
    let mut messages = vec![Message { role: "system".to_owned(), content: system }];
    messages.extend(history);
    messages.push(question);
    Ok(Rendered {
        messages: alternating(messages),
        begun,
        max_tokens,
        temperature: prompt.temperature,
        stops: prompt.stops.clone(),
        form: None,
        patience: None,
    })
}

fn system(conversation: &Conversation, tools: &[&Tool]) -> Map<String, Value> {
    let today = date::format("%A, %B, %d, %Y", date::today()).expect("bug: a date format");
    let inputs = [
        ("current_date", today.into()),
        ("tools", tools.iter().map(|tool| tool.shown()).collect()),
        ("unavailable", json!(conversation.unavailable)),
    ];
    inputs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn begun(prompt: &Prompt, conversation: &Conversation) -> Result<String, PromptError> {
    let inputs = [("steps".to_owned(), conversation.steps.clone().into())];
    prompt.part("assistant", &inputs.into_iter().collect())
}

fn text(prompt: &Prompt, turn: &Turn) -> Result<Message, PromptError> {
    let role = if turn.user { "user" } else { "assistant" };
    Ok(Message { role: role.to_owned(), content: prompt.part(role, &turn.inputs)? })
}

fn texts(prompt: &Prompt, turns: &[Turn]) -> Result<Vec<Message>, PromptError> {
    turns.iter().map(|turn| text(prompt, turn)).collect()
}

/// Of an old turn only what was asked and answered remains.
fn forget(turn: &mut Turn) {
    for name in ["page", "file", "additional", "steps"] {
        turn.inputs.remove(name);
    }
}

/// Takes so many bytes out of the longest contents of this turn, and where all are short the oldest of what the user
/// attached; whether anything could be taken.
fn shorten(conversation: &mut Conversation, excess: usize) -> bool {
    let turn = conversation.turns.last_mut().expect("bug: a conversation without a question");
    let mut strings = Vec::new();
    turn.inputs.values_mut().for_each(|value| fit::strings(value, &mut strings));
    conversation.steps.iter_mut().for_each(|value| fit::strings(value, &mut strings));
    if fit::cut(strings, excess) {
        return true;
    }
    let Some(items) = turn.inputs.get_mut("additional").and_then(Value::as_array_mut) else { return false };
    let any = !items.is_empty();
    items.drain(..items.len().div_ceil(4));
    any
}

/// The newest turns that fit beside what stays.
async fn newest(counter: &mut fit::Counter<'_>, history: &mut Vec<Message>, stays: [&str; 3], room: u32) {
    let mut total = 0;
    for text in stays {
        total += counter.tokens(text).await;
    }
    let mut kept = 0;
    for message in history.iter().rev() {
        total += counter.tokens(&message.content).await;
        if total > u64::from(room) {
            break;
        }
        kept += 1;
    }
    let dropped = history.len() - kept;
    history.drain(..dropped);
}

/// Chat templates want the user to begin after the system, and turns that alternate.
fn alternating(messages: Vec<Message>) -> Vec<Message> {
    let mut out: Vec<Message> = Vec::with_capacity(messages.len());
    for message in messages {
        match out.last_mut() {
            Some(last) if last.role == message.role => {
                last.content += "\n\n";
                last.content += &message.content;
            }
            Some(last) if last.role == "system" && message.role == "assistant" => {}
            _ => out.push(message),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_alternate_and_the_user_begins() {
        let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        let messages = vec![
            message("system", "s"),
            message("assistant", "cut off from its question"),
            message("user", "a"),
            message("user", "b"),
            message("assistant", "c"),
            message("user", "d"),
        ];
        let said = vec![
            message("system", "s"),
            message("user", "a\n\nb"),
            message("assistant", "c"),
            message("user", "d"),
        ];
        assert_eq!(alternating(messages), said);
    }
}
