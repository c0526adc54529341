//! `POST /v1/completions`: continue a text, or fill the gap between `prompt` and `suffix`.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::answers::{Answers, LogprobLists, Place, Prompt, Usage, now};
use super::asked::{Asked, Counts, MOST_CHOICES, MOST_LOGPROBS, model};
use super::error::ApiError;
use super::fields::{Fields, integer, wrong};
use super::sse;
use crate::access::Permitted;
use crate::engine::request::Logprobs;
use crate::served::{Model, Served};
use crate::server::RequestId;
use crate::text::Text;
use crate::text::generation::{Drawn, End, Output};

/// OpenAI's default.
const MAX_TOKENS: u32 = 16;
const MOST_PROMPTS: usize = 64;
/// Log probabilities of prompt tokens in one answer: every choice repeats its prompt's. About 100 bytes each.
const MOST_ECHOED: usize = 1 << 20;

pub async fn post(
    models: Permitted,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut fields = super::body(request).await?;
    let model = match model(&mut fields, &models)? {
        Model::Local(model) => model,
        Model::Upstream(model) => {
            return model.forward(&id.0, "/completions", fields.rest(), models.meter()).await;
        }
    };
    let mut asked = Asked::read(&mut fields, &model, &["max_tokens"])?;
    let echo = fields.bool("echo")?.unwrap_or(false);
    let logprobs = fields.integer("logprobs", 0, MOST_LOGPROBS)?.map(|n| n as u8);
    let suffix = fields.string("suffix")?.filter(|suffix| !suffix.is_empty());
    let inputs = inputs(&mut fields, model.context())?;
    let advice = "send `n`; every continuation comes back and none is thrown away.";
    fields.refuse("best_of", &[json!(1), json!(asked.choices)], advice)?;
    fields.refuse("response_format", &[json!({"type": "text"})], "answers are text.")?;
    fields.finish()?;
    asked.sampling.logprobs = logprobs;

    if inputs.len() as i64 * i64::from(asked.choices) > MOST_CHOICES {
        let message = format!(
            "`prompt` has {} prompts and `n` is {}: together at most {MOST_CHOICES} continuations.",
            inputs.len(),
            asked.choices
        );
        return Err(ApiError::invalid("n", message));
    }
    if suffix.is_some() && echo {
        return Err(ApiError::unsupported(
            "echo",
            "`echo` is not supported with `suffix`; leave one of them out.",
        ));
    }
    let max_tokens = asked.max_tokens.unwrap_or(MAX_TOKENS);
    if max_tokens == 0 && !echo {
        return Err(ApiError::invalid(
            "max_tokens",
            "`max_tokens` must be at least 1, or 0 together with `echo`.",
        ));
    }
    let ends = match (&suffix, &model.text.fim) {
        (Some(_), Some(fim)) => fim.ends(),
        (Some(_), None) => return Err(no_fim(&model, &models)),
        (None, _) => &[],
    };
    let shape = asked.shape(&model, ends);
    let mut texts = Vec::with_capacity(inputs.len());
    let mut prompts = Vec::with_capacity(inputs.len());
    let several = inputs.len() > 1;
    for (i, input) in inputs.into_iter().enumerate() {
        let name = if several { format!("prompt[{i}]") } else { "prompt".to_owned() };
        let (tokens, text) = tokens(&model, &name, input, suffix.as_deref(), echo).await?;
        let prompt_logprobs = logprobs.filter(|_| echo);
        let tokens: Arc<[u32]> = tokens.into();
        texts.push((tokens.clone(), text));
        prompts.push(Prompt { tokens, max_tokens, logprobs: prompt_logprobs });
    }
    if let Some(alternatives) = logprobs.filter(|_| echo) {
        let tokens: usize = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        let echoed = tokens * asked.choices as usize * (usize::from(alternatives) + 1);
        if echoed > MOST_ECHOED {
            let message = format!(
                "`echo` with `logprobs` repeats {echoed} log probabilities ({tokens} prompt tokens, `n` {}, `logprobs` \
                 {alternatives}); {MOST_ECHOED} is the limit: lower `n` or `logprobs`, or send fewer prompts.",
                asked.choices
            );
            return Err(ApiError::invalid("logprobs", message));
        }
    }
    let answers = Answers::submit(&model, &asked, &shape, &id.0, prompts, "prompt", models.meter())?;
    let writer = Writer {
        id: format!("cmpl-{}", id.0),
        created: now(),
        model,
        echo: if echo { texts } else { Vec::new() },
        choices: asked.choices,
        logprobs,
        counts: asked.counts,
        places: HashMap::new(),
    };
    match asked.stream {
        true => Ok(writer.stream(answers)),
        false => writer.whole(answers).await,
    }
}

fn no_fim(model: &Served, models: &Permitted) -> ApiError {
    let able = models.all().filter(|model| matches!(model, Model::Local(_)) && model.fills());
    let able: Vec<String> = able.map(|model| model.name().to_owned()).collect();
    let instead = match able.is_empty() {
        true => "Leave `suffix` out.".to_owned(),
        false => format!("Leave `suffix` out, or use one that can: {}.", able.join(", ")),
    };
    let message = format!(
        "`suffix` asks for fill-in-the-middle, which the model `{}` cannot do. {instead}",
        model.name
    );
    ApiError::unsupported("suffix", message)
}

/// A prompt as it came.
enum Input {
    Text(String),
    Tokens(Vec<u32>),
}

/// A string, a list of strings, a list of tokens, or a list of lists of tokens.
fn inputs(fields: &mut Fields, context: u32) -> Result<Vec<Input>, ApiError> {
    let expected = "a string, a list of strings, or tokens";
    let list = match fields.take("prompt") {
        None => return Err(ApiError::missing("prompt", "`prompt` is missing; send a string.")),
        Some(Value::String(text)) => return Ok(vec![Input::Text(text)]),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong("prompt", expected, &other)),
    };
    if list.is_empty() {
        return Err(ApiError::invalid("prompt", "`prompt` is an empty list; send at least one prompt."));
    }
    if list[0].is_number() {
        return Ok(vec![Input::Tokens(token_list("prompt", &list, context)?)]);
    }
    if list.len() > MOST_PROMPTS {
        let message = format!("`prompt` has {} prompts; {MOST_PROMPTS} is the limit.", list.len());
        return Err(ApiError::invalid("prompt", message));
    }
    let input = |(i, value): (usize, Value)| match value {
        Value::String(text) => Ok(Input::Text(text)),
        Value::Array(tokens) => Ok(Input::Tokens(token_list(&format!("prompt[{i}]"), &tokens, context)?)),
        other => Err(wrong(&format!("prompt[{i}]"), expected, &other)),
    };
    list.into_iter().enumerate().map(input).collect()
}

/// At most as many tokens as the model's context has.
pub(super) fn token_list(name: &str, list: &[Value], context: u32) -> Result<Vec<u32>, ApiError> {
    if list.len() > context as usize {
        let message = format!("`{name}` has {} tokens; the model's context is {context} tokens.", list.len());
        return Err(ApiError::invalid(name, message));
    }
    let most = u32::MAX >> 1;
    let token = |(i, value): (usize, &Value)| match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) if id <= most => Ok(id),
        _ => integer(&format!("{name}[{i}]"), value, 0, i64::from(most)).map(|id| id as u32),
    };
    list.iter().enumerate().map(token).collect()
}

/// A prompt's tokens, and its text if it is to be echoed.
async fn tokens(
    model: &Served,
    name: &str,
    input: Input,
    suffix: Option<&str>,
    echo: bool,
) -> Result<(Vec<u32>, String), ApiError> {
    let failed = |e| ApiError::text(e, name);
    match (input, suffix) {
        (Input::Text(text), Some(suffix)) => {
            let filled = model.text.fill(text, suffix.to_owned()).await;
            Ok((filled.expect("bug: the model can fill gaps").map_err(failed)?, String::new()))
        }
        (Input::Text(text), None) => {
            let shown = if echo { text.clone() } else { String::new() };
            Ok((model.text.encode(text, true).await.map_err(failed)?, shown))
        }
        (Input::Tokens(_), Some(_)) => {
            let message = "`suffix` needs `prompt` as text; with tokens, write the fill-in-the-middle markers yourself.";
            Err(ApiError::unsupported("suffix", message))
        }
        (Input::Tokens(tokens), None) => {
            let shown = if echo { model.text.tokenizer.decode(&tokens, true) } else { String::new() };
            Ok((tokens, shown))
        }
    }
}

/// Writes the answers in OpenAI's shape.
struct Writer {
    id: String,
    created: u64,
    model: Arc<Served>,
    /// Each prompt's tokens and text, if they are repeated in the answer.
    echo: Vec<(Arc<[u32]>, String)>,
    /// Choices of a prompt.
    choices: u32,
    logprobs: Option<u8>,
    counts: Counts,
    /// Where the next token's text begins, by choice.
    places: HashMap<u32, Place>,
}

/// A choice being put together.
#[derive(Default)]
struct Whole {
    text: String,
    logprobs: LogprobLists,
    end: Option<End>,
}

impl Writer {
    fn frame(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model.name,
            "choices": choices,
        })
    }

    fn text(&self) -> &Text {
        &self.model.text
    }

    fn lists(&mut self, index: u32, drawn: &Drawn) -> LogprobLists {
        let mut lists = LogprobLists::default();
        if self.logprobs.is_some() {
            let place = self.places.entry(index).or_default();
            lists.push(&self.model.text, drawn.token, drawn.logprobs.as_ref(), place);
        }
        lists
    }

    /// The prompt's part of the answer, for a choice of it.
    fn echoed(&mut self, index: u32, logprobs: &[Option<Logprobs>]) -> Option<(String, LogprobLists)> {
        let (tokens, text) = self.echo.get((index / self.choices) as usize)?.clone();
        let mut lists = LogprobLists::default();
        if self.logprobs.is_some() {
            let mut place = Place::default();
            for (i, token) in tokens.iter().enumerate() {
                let known = logprobs.get(i).and_then(Option::as_ref);
                lists.push(self.text(), *token, known, &mut place);
            }
            lists.shift(place.characters.saturating_sub(text.chars().count()));
        }
        self.places.insert(index, Place::after(&text));
        Some((text, lists))
    }

    async fn whole(mut self, mut answers: Answers) -> Result<Response, ApiError> {
        let mut wholes: Vec<Whole> = Vec::new();
        let at = |wholes: &mut Vec<Whole>, index: u32| {
            let index = index as usize;
            if wholes.len() <= index {
                wholes.resize_with(index + 1, Whole::default);
            }
            index
        };
        while let Some((index, output)) = answers.next().await {
            match output {
                Output::Prompt { logprobs, .. } => {
                    for index in index..index + self.choices {
                        let i = at(&mut wholes, index);
                        if let Some((text, lists)) = self.echoed(index, &logprobs) {
                            (wholes[i].text, wholes[i].logprobs) = (text, lists);
                        }
                    }
                }
                Output::Piece { text, drawn, .. } => {
                    let i = at(&mut wholes, index);
                    wholes[i].text += &text;
                    if self.logprobs.is_some() {
                        let place = self.places.entry(index).or_default();
                        let list = &mut wholes[i].logprobs;
                        list.push(&self.model.text, drawn.token, drawn.logprobs.as_ref(), place);
                    }
                }
                Output::Finished { text, end, .. } => {
                    let i = at(&mut wholes, index);
                    wholes[i].text += &text;
                    wholes[i].end = Some(end);
                }
                Output::Failed { error } => return Err(ApiError::failed(error)),
            }
        }
        let with_logprobs = self.logprobs.is_some();
        let choices = wholes.into_iter().enumerate().map(|(index, whole)| {
            let logprobs = with_logprobs.then_some(&whole.logprobs);
            json!({
                "text": whole.text,
                "index": index,
                "logprobs": logprobs,
                "finish_reason": reason(whole.end.as_ref().unwrap_or(&End::Length)),
            })
        });
        let mut frame = self.frame(choices.collect());
        frame["usage"] = answers.usage.object();
        Ok(axum::Json(frame).into_response())
    }

    fn stream(self, answers: Answers) -> Response {
        let say = |writer: &mut Writer, index: u32, output: Output, usage: &Usage| {
            writer.chunks(index, output, usage)
        };
        let last = |writer: &mut Writer, usage: &Usage| match writer.counts != Counts::Nowhere {
            true => {
                let mut frame = writer.frame(json!([]));
                frame["usage"] = usage.object();
                vec![frame.to_string()]
            }
            false => Vec::new(),
        };
        sse::response(answers.speak(self, say, last))
    }

    fn chunks(&mut self, index: u32, output: Output, usage: &Usage) -> Vec<String> {
        match output {
            Output::Prompt { logprobs, .. } => (index..index + self.choices)
                .filter_map(|index| {
                    let (text, lists) = self.echoed(index, &logprobs)?;
                    Some(self.chunk(index, text, lists, None, usage))
                })
                .collect(),
            // Text that is held back says nothing yet.
            Output::Piece { text, .. } if text.is_empty() && self.logprobs.is_none() => Vec::new(),
            Output::Piece { text, drawn, .. } => {
                let lists = self.lists(index, &drawn);
                vec![self.chunk(index, text, lists, None, usage)]
            }
            Output::Finished { text, end, .. } => {
                vec![self.chunk(index, text, LogprobLists::default(), Some(reason(&end)), usage)]
            }
            Output::Failed { .. } => Vec::new(),
        }
    }

    fn chunk(
        &self,
        index: u32,
        text: String,
        lists: LogprobLists,
        end: Option<&str>,
        usage: &Usage,
    ) -> String {
        let logprobs = Some(&lists).filter(|l| !l.is_empty());
        let choice = json!({"text": text, "index": index, "logprobs": logprobs, "finish_reason": end});
        let mut frame = self.frame(json!([choice]));
        if let Some(usage) = usage.within(self.counts) {
            frame["usage"] = usage;
        }
        frame.to_string()
    }
}

pub(super) fn reason(end: &End) -> &'static str {
    match end {
        End::Stop => "stop",
        End::Length => "length",
    }
}
