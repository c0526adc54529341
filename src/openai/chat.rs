//! `POST /v1/chat/completions`: the next turn of a conversation, written by the checkpoint's own chat template.

use std::sync::Arc;

use axum::Extension;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::answers::{Answers, Prompt, Usage, chat_logprob, now};
use super::asked::{Asked, Counts, MOST_LOGPROBS, model};
use super::completions::reason;
use super::error::ApiError;
use super::fields::{Fields, wrong};
use super::sse;
use crate::access::Permitted;
use crate::served::{Model, Served};
use crate::server::RequestId;
use crate::text::chat::Message;
use crate::text::generation::{Drawn, End, Output};

const MOST_MESSAGES: usize = 2048;
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

pub async fn post(
    models: Permitted,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut fields = super::body(request).await?;
    let model = match model(&mut fields, &models)? {
        Model::Local(model) => model,
        Model::Upstream(model) => {
            return model.forward(&id.0, "/chat/completions", fields.rest(), models.meter()).await;
        }
    };
    let mut asked = Asked::read(&mut fields, &model, &["max_completion_tokens", "max_tokens"])?;
    let logprobs = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0, MOST_LOGPROBS)?.map(|n| n as u8);
    if top.is_some() && !logprobs {
        return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs: true`."));
    }
    asked.sampling.logprobs = logprobs.then_some(top.unwrap_or(0));
    let mut messages = messages(&mut fields)?;
    let begun = begun(&mut fields, &mut messages)?;
    refuse(&mut fields)?;
    fields.finish()?;
    if asked.max_tokens == Some(0) {
        return Err(ApiError::invalid(
            "max_completion_tokens",
            "`max_completion_tokens` must be at least 1.",
        ));
    }

    let mut tokens = match model.text.chat(messages).await {
        Some(prompt) => prompt.map_err(ApiError::chat)?.tokens,
        None => {
            let message = format!(
                "The model `{}` has no chat template; use /v1/completions, or a checkpoint made for chat.",
                model.name
            );
            return Err(ApiError::unsupported("model", message));
        }
    };
    if let Some(begun) = begun {
        tokens.extend(model.text.encode(begun, false).await.map_err(|e| ApiError::text(e, "messages"))?);
    }
    let shape = asked.shape(&model, &[]);
    let prompt =
        Prompt { tokens: tokens.into(), max_tokens: asked.max_tokens.unwrap_or(u32::MAX), logprobs: None };
    let answers = Answers::submit(&model, &asked, &shape, &id.0, vec![prompt], "messages", models.meter())?;
    let writer = Writer {
        id: format!("chatcmpl-{}", id.0),
        created: now(),
        model,
        choices: asked.choices,
        logprobs,
        counts: asked.counts,
    };
    match asked.stream {
        true => Ok(writer.stream(answers)),
        false => writer.whole(answers).await,
    }
}

/// What is understood and not honoured.
fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    let no_tools =
        "this server does not call tools; describe them in a message and read the answer yourself.";
    fields.refuse("tools", &[json!([])], no_tools)?;
    fields.refuse("tool_choice", &[json!("none"), json!("auto")], no_tools)?;
    fields.refuse("functions", &[json!([])], no_tools)?;
    fields.refuse("function_call", &[json!("none"), json!("auto")], no_tools)?;
    let text = "answers are plain text; ask for JSON in a message.";
    fields.refuse("response_format", &[json!({"type": "text"})], text)?;
    fields.refuse("modalities", &[json!(["text"])], "answers are text.")?;
    fields.refuse("audio", &[], "answers are text.")?;
    fields.refuse("prediction", &[], "leave it out; the answer is the same without it.")?;
    fields.refuse("reasoning_effort", &[json!("none")], "the model has no such setting.")?;
    fields.refuse("verbosity", &[json!("medium")], "the model has no such setting.")?;
    fields.refuse("web_search_options", &[], "this server opens no outside connection.")?;
    fields.refuse("chat_template", &[], "templates come from the checkpoint only.")?;
    fields.refuse("chat_template_kwargs", &[json!({})], "templates come from the checkpoint only.")
}

/// What the answer goes on with: the last message, if it is the assistant's and the request says so. The two fields are
/// those of other engines, which want both.
fn begun(fields: &mut Fields, messages: &mut Vec<Message>) -> Result<Option<String>, ApiError> {
    let go_on = fields.bool("continue_final_message")?.unwrap_or(false);
    let turn = fields.bool("add_generation_prompt")?.unwrap_or(!go_on);
    match (go_on, turn) {
        (false, true) => return Ok(None),
        (true, false) => {}
        _ => {
            let message =
                "`add_generation_prompt` must be false with `continue_final_message`, and true without.";
            return Err(ApiError::unsupported("add_generation_prompt", message));
        }
    }
    match messages.pop() {
        Some(last) if last.role == "assistant" && !messages.is_empty() => Ok(Some(last.content)),
        _ => Err(ApiError::invalid(
            "continue_final_message",
            "`continue_final_message` needs a last message of the assistant, after others.",
        )),
    }
}

fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let list = match fields.take("messages") {
        None => return Err(ApiError::missing("messages", "`messages` is missing; send a list of messages.")),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong("messages", "a list of messages", &other)),
    };
    if list.is_empty() || list.len() > MOST_MESSAGES {
        let message = format!("`messages` must have 1 to {MOST_MESSAGES} messages; it has {}.", list.len());
        return Err(ApiError::invalid("messages", message));
    }
    list.into_iter().enumerate().map(|(i, value)| message(&format!("messages[{i}]"), value)).collect()
}

fn message(path: &str, value: Value) -> Result<Message, ApiError> {
    let mut fields = Fields::inside(path, value)?;
    let (name, known) = (fields.name("role"), ROLES.join(", "));
    let Some(role) = fields.string("role")? else {
        return Err(ApiError::missing(&name, format!("`{name}` is missing; send one of {known}.")));
    };
    if !ROLES.contains(&role.as_str()) {
        let shown: String = role.chars().take(40).collect();
        let message = format!("`{name}` must be one of {known}; it is {shown:?}.");
        return Err(ApiError::invalid(&name, message));
    }
    let name = fields.name("content");
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let text = |(i, part)| part_text(&format!("{name}[{i}]"), part);
            parts.into_iter().enumerate().map(text).collect::<Result<_, _>>()?
        }
        // An assistant's turn may be empty.
        None if role == "assistant" => String::new(),
        None => {
            return Err(ApiError::missing(&name, format!("`{name}` is missing; send the message's text.")));
        }
        Some(other) => return Err(wrong(&name, "a string or a list of text parts", &other)),
    };
    let no_tools = "this server does not call tools; put the result into the message's text.";
    fields.refuse("tool_calls", &[json!([])], no_tools)?;
    fields.refuse("function_call", &[], no_tools)?;
    fields.refuse("refusal", &[], "leave it out.")?;
    fields.refuse("audio", &[], "messages are text.")?;
    // Names of participants and of calls: no template of the supported families shows them.
    fields.ignore(&["name", "tool_call_id", "annotations"]);
    fields.finish()?;
    // OpenAI's newer name of the system role; no checkpoint's template knows it.
    let role = if role == "developer" { "system".to_owned() } else { role };
    Ok(Message { role, content })
}

fn part_text(path: &str, part: Value) -> Result<String, ApiError> {
    let mut fields = Fields::inside(path, part)?;
    let kind = fields.string("type")?.unwrap_or_default();
    if kind != "text" {
        let name = fields.name("type");
        let shown: String = kind.chars().take(40).collect();
        return Err(ApiError::unsupported(
            &name,
            format!("`{name}` must be \"text\", not {shown:?}: messages are text here."),
        ));
    }
    let name = fields.name("text");
    let text = fields.string("text")?;
    fields.ignore(&["cache_control"]);
    fields.finish()?;
    text.ok_or_else(|| ApiError::missing(&name, format!("`{name}` is missing.")))
}

/// Writes the answers in OpenAI's shape.
struct Writer {
    id: String,
    created: u64,
    model: Arc<Served>,
    choices: u32,
    logprobs: bool,
    counts: Counts,
}

#[derive(Default)]
struct Whole {
    text: String,
    logprobs: Vec<Value>,
    end: Option<End>,
}

impl Writer {
    fn frame(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model.name,
            "choices": choices,
        })
    }

    fn logprob(&self, drawn: &Drawn) -> Option<Value> {
        drawn.logprobs.as_ref().map(|l| chat_logprob(&self.model.text, drawn.token, l))
    }

    async fn whole(self, mut answers: Answers) -> Result<Response, ApiError> {
        let mut wholes: Vec<Whole> = Vec::new();
        wholes.resize_with(self.choices as usize, Whole::default);
        while let Some((index, output)) = answers.next().await {
            let whole = &mut wholes[index as usize];
            match output {
                Output::Prompt { .. } => {}
                Output::Piece { text, drawn, .. } => {
                    whole.text += &text;
                    whole.logprobs.extend(self.logprob(&drawn));
                }
                Output::Finished { text, end, .. } => {
                    whole.text += &text;
                    whole.end = Some(end);
                }
                Output::Failed { error } => return Err(ApiError::failed(error)),
            }
        }
        let choices = wholes.into_iter().enumerate().map(|(index, whole)| {
            let logprobs = self.logprobs.then(|| json!({"content": whole.logprobs, "refusal": null}));
            json!({
                "index": index,
                "message": {"role": "assistant", "content": whole.text, "refusal": null},
                "logprobs": logprobs,
                "finish_reason": reason(whole.end.as_ref().unwrap_or(&End::Length)),
            })
        });
        let mut frame = self.frame("chat.completion", choices.collect());
        frame["usage"] = answers.usage.object();
        Ok(axum::Json(frame).into_response())
    }

    fn stream(self, answers: Answers) -> Response {
        let say = |writer: &mut Writer, index: u32, output: Output, usage: &Usage| {
            writer.chunks(index, output, usage)
        };
        let last = |writer: &mut Writer, usage: &Usage| match writer.counts != Counts::Nowhere {
            true => {
                let mut frame = writer.frame("chat.completion.chunk", json!([]));
                frame["usage"] = usage.object();
                vec![frame.to_string()]
            }
            false => Vec::new(),
        };
        sse::response(answers.speak(self, say, last))
    }

    fn chunks(&self, index: u32, output: Output, usage: &Usage) -> Vec<String> {
        match output {
            Output::Prompt { .. } => {
                let first = json!({"role": "assistant", "content": "", "refusal": null});
                (0..self.choices).map(|index| self.chunk(index, first.clone(), None, None, usage)).collect()
            }
            Output::Piece { text, .. } if text.is_empty() && !self.logprobs => Vec::new(),
            Output::Piece { text, drawn, .. } => {
                vec![self.chunk(index, json!({"content": text}), self.logprob(&drawn), None, usage)]
            }
            Output::Finished { text, end, .. } => {
                let rest = (!text.is_empty())
                    .then(|| self.chunk(index, json!({"content": text}), None, None, usage));
                rest.into_iter()
                    .chain([self.chunk(index, json!({}), None, Some(reason(&end)), usage)])
                    .collect()
            }
            Output::Failed { .. } => Vec::new(),
        }
    }

    fn chunk(
        &self,
        index: u32,
        delta: Value,
        logprob: Option<Value>,
        end: Option<&str>,
        usage: &Usage,
    ) -> String {
        let logprobs = logprob.map(|l| json!({"content": [l], "refusal": null}));
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": end});
        let mut frame = self.frame("chat.completion.chunk", json!([choice]));
        if let Some(usage) = usage.within(self.counts) {
            frame["usage"] = usage;
        }
        frame.to_string()
    }
}
