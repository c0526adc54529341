//! A generation: code that a person asked for in words, a comment, or by leaving a function empty (steps 3 to 5 in the
//! life of a request).

use serde_json::{Map, Value, json};

use super::call::Call;
use super::editor::Editor;
use super::rules::Rules;
use super::window::{keep_end, keep_start};
use super::written::Written;
use crate::duo::Gateway;
use crate::duo::body::Object;
use crate::duo::error::DuoError;
use crate::duo::prompts;
use crate::served::Model;
use crate::served::ask::{Ask, Failure, Input, Message};

const PROMPT: &str = "code_suggestions/generations";
/// Where there are no instructions.
const GENERIC: &str = "Write the code that belongs at the cursor.";
/// Characters of an instruction, and of a message.
pub const INSTRUCTION: usize = 400_000;
/// Messages of a prompt.
const MESSAGES: usize = 100;
/// Tokens of the prompt's own words.
const WORDS: u32 = 600;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// In words; may be empty.
    Text(String),
    /// As a conversation of its own.
    Messages(Vec<Message>),
}

impl Prompt {
    pub fn none() -> Self {
        Prompt::Text(String::new())
    }

    pub fn text(fields: &Object) -> Result<Option<Self>, DuoError> {
        Ok(fields.string("prompt", INSTRUCTION)?.map(Prompt::Text))
    }

    pub fn messages(fields: &Object) -> Result<Option<Self>, DuoError> {
        if fields.get("prompt").is_none() {
            return Ok(None);
        }
        let message = |fields: Object| {
            let role = fields.required_string("role", INSTRUCTION)?;
            if !["system", "user", "assistant"].contains(&role.as_str()) {
                return Err(fields.wrong("role", "must be system, user or assistant"));
            }
            Ok(Message { role, content: fields.required_string("content", INSTRUCTION)? })
        };
        let messages = fields.objects("prompt", MESSAGES)?.into_iter().map(message);
        Ok(Some(Prompt::Messages(messages.collect::<Result<_, _>>()?)))
    }

    pub fn either(fields: &Object) -> Result<Option<Self>, DuoError> {
        match fields.get("prompt") {
            Some(Value::Array(_)) => Self::messages(fields),
            _ => Self::text(fields),
        }
    }
}

/// What there is to a generation besides the file.
#[derive(Clone, Debug)]
pub struct Wish {
    pub prompt: Prompt,
    pub user_instruction: Option<String>,
    /// What GitLab has gathered: examples, related files, libraries. Its fields stand above all others.
    pub enhancer: Map<String, Value>,
    pub context: Vec<String>,
}

pub async fn write(
    gateway: &Gateway,
    model: &Model,
    call: &Call,
    editor: &Editor,
    wish: Wish,
) -> Result<Written, DuoError> {
    let (name, extension, word) = editor.labels();
    gateway.figures.language(name, extension, word);
    let ask = ask(model, call, editor, wish).await.map_err(|f| DuoError::inference(&f))?;
    let answer = gateway.ask(model, ask).await.map_err(|f| DuoError::inference(&f))?;
    Ok(Written::new(answer, Rules::generation(editor, model.family())))
}

async fn ask(model: &Model, call: &Call, editor: &Editor, wish: Wish) -> Result<Ask, Failure> {
    let inputs = Map::new();
    let unable = |e: prompts::PromptError| Failure::Unable(e.to_string());
    let sampling = prompts::render(PROMPT, model.family(), &inputs).map_err(unable)?;
    let max_tokens = sampling.max_tokens.min(model.context() / 4);
    let rendered = match wish.prompt {
        Prompt::Messages(messages) if !messages.is_empty() => {
            prompts::Rendered { begun: String::new(), messages, stops: Vec::new(), ..sampling }
        }
        _ => {
            let inputs = inputs_of(model, editor, wish, max_tokens).await?;
            prompts::render(PROMPT, model.family(), &inputs).map_err(unable)?
        }
    };
    let mut ask = rendered.ask(call.id.clone());
    if let Input::Chat { messages, begun } = &mut ask.input
        && begun.is_empty()
        && let Some(last) = messages.pop_if(|last| last.role == "assistant")
    {
        // A conversation of the caller's own may have begun the answer, too.
        *begun = last.content;
    }
    Ok(Ask { patience: Some(call.patience(editor)), max_tokens, ..ask })
}

/// The variables of the prompt, brought to the model's context: what stands above the cursor may take half of it, and
/// everything else shares the other half in fixed parts, so that none crowds out the others.
async fn inputs_of(
    model: &Model,
    editor: &Editor,
    wish: Wish,
    max_tokens: u32,
) -> Result<Map<String, Value>, Failure> {
    let budget = model.context().saturating_sub(max_tokens + WORDS);
    // Where all of it fits, nothing is cut. No text has more tokens than bytes.
    let gathered: usize = wish.enhancer.values().map(length).sum();
    let context: usize = wish.context.iter().map(String::len).sum();
    let asked = match &wish.prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Messages(_) => 0,
    };
    let all = 2 * (editor.above.len() + editor.below.len() + asked) + gathered + context;
    let part = |share: f64| match all <= budget as usize {
        true => budget,
        false => (f64::from(budget) * share) as u32,
    };
    let told = match wish.prompt {
        Prompt::Text(text) if !text.trim().is_empty() => Some(text),
        _ => None,
    };
    let enhanced = wish.enhancer.get("user_instruction").and_then(Value::as_str).map(str::to_owned);
    let user = wish.user_instruction.or(enhanced).filter(|text| !text.trim().is_empty());
    let instruction = told.or_else(|| user.clone()).unwrap_or_else(|| GENERIC.to_owned());
    let instruction = keep_end(model, &instruction, part(0.15)).await?;
    let text = |name: &str| wish.enhancer.get(name).and_then(Value::as_str);
    let above = text("trimmed_content_above_cursor").unwrap_or(&editor.above);
    let below = text("trimmed_content_below_cursor").unwrap_or(&editor.below);
    let mut inputs = json!({
        "file_name": editor.file_name,
        "language": editor.language().unwrap_or_default(),
        "prefix": keep_end(model, &editor.above, part(0.4)).await?,
        "instruction": instruction,
        "user_instruction": keep_end(model, user.as_deref().unwrap_or(instruction), part(0.05)).await?,
        "trimmed_content_above_cursor": keep_end(model, above, part(0.15)).await?,
        "trimmed_content_below_cursor": keep_start(model, below, part(0.1)).await?,
    });
    let fields = inputs.as_object_mut().expect("bug: an object was written here");
    let mut snippets = texts(wish.enhancer.get("related_snippets"));
    snippets.extend(wish.context);
    for (name, list, share) in [
        ("related_files", texts(wish.enhancer.get("related_files")), 0.07),
        ("related_snippets", snippets, 0.04),
        ("libraries", texts(wish.enhancer.get("libraries")), 0.02),
    ] {
        let list = first_of(model, list, part(share)).await?;
        fields.insert(name.to_owned(), list.into());
    }
    let examples = examples(model, wish.enhancer.get("examples_array"), part(0.02)).await?;
    fields.insert("examples_array".to_owned(), examples.into());
    Ok(std::mem::take(fields))
}

/// Bytes of the texts in a value.
fn length(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(length).sum(),
        Value::Object(fields) => fields.values().map(length).sum(),
        _ => 0,
    }
}

fn texts(list: Option<&Value>) -> Vec<String> {
    let list = list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The texts that fit from the first on; the one that does not fit is cut.
async fn first_of(model: &Model, list: Vec<String>, budget: u32) -> Result<Vec<String>, Failure> {
    if list.iter().map(String::len).sum::<usize>() <= budget as usize {
        return Ok(list);
    }
    let (mut left, mut kept) = (budget, Vec::new());
    for text in list {
        let part = keep_start(model, &text, left).await?;
        if part.is_empty() {
            break;
        }
        left = left.saturating_sub(model.count(part.to_owned()).await?);
        kept.push(part.to_owned());
    }
    Ok(kept)
}

/// The examples that fit whole: half of one would teach the wrong thing.
async fn examples(model: &Model, list: Option<&Value>, budget: u32) -> Result<Vec<Value>, Failure> {
    let list = list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let (mut left, mut kept) = (budget, Vec::new());
    for example in list {
        let text = |name: &str| example.get(name).and_then(Value::as_str);
        let (Some(before), Some(response)) = (text("example"), text("response")) else { continue };
        let all = format!("{before}\n{response}");
        let tokens = match all.len() <= left as usize {
            true => all.len() as u32,
            false => model.count(all).await?,
        };
        if tokens > left {
            break;
        }
        left -= tokens;
        kept.push(json!({"example": before, "response": response}));
    }
    Ok(kept)
}
