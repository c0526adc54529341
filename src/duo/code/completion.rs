//! A completion: what stands between the text above the cursor and the text below it (steps 3 to 5 in the life of a
//! request). Models that were trained to fill gaps get both in their own tokens and no chat template; models that were
//! only trained for conversations are asked in words.

use serde_json::json;

use super::call::Call;
use super::editor::Editor;
use super::rules::Rules;
use super::sampling;
use super::window::Window;
use super::written::Written;
use crate::duo::Gateway;
use crate::duo::error::DuoError;
use crate::duo::prompts;
use crate::served::Model;
use crate::served::ask::{Ask, Failure, Input};

const PROMPT: &str = "code_suggestions/completions";
/// Tokens of the prompt that asks in words, the texts around the cursor left out.
const WORDS: u32 = 400;

/// `None`: nobody can say in which language the file is written, so nothing is asked.
pub async fn write(
    gateway: &Gateway,
    model: &Model,
    call: &Call,
    editor: &Editor,
    context: &[String],
) -> Result<Option<Written>, DuoError> {
    let Some(language) = editor.language() else { return Ok(None) };
    let (name, extension, word) = editor.labels();
    gateway.figures.language(name, extension, word);
    let ask = ask(model, call, editor, context, language).await;
    let answer = gateway.ask(model, ask.map_err(|f| DuoError::inference(&f))?).await;
    let answer = answer.map_err(|f| DuoError::inference(&f))?;
    Ok(Some(Written::new(answer, Rules::completion(editor, model.family()))))
}

async fn ask(
    model: &Model,
    call: &Call,
    editor: &Editor,
    context: &[String],
    language: String,
) -> Result<Ask, Failure> {
    let sampling = sampling::completion(model.family());
    // A small context is shared with the prompt.
    let max_tokens = sampling.max_tokens.min(model.context() / 4);
    let fills = model.fills() || !model.chats();
    let words = if fills { 0 } else { WORDS };
    let Window { prefix, suffix } = Window::of(model, editor, context, max_tokens + words).await?;
    let patience = Some(call.patience(editor));
    if fills {
        let input = Input::Fill { prefix, suffix };
        let temperature = sampling.temperature;
        return Ok(Ask { temperature, patience, ..Ask::new(call.id.clone(), input, max_tokens) });
    }
    let inputs = json!({
        "prefix": prefix, "suffix": suffix, "file_name": editor.file_name, "language": language
    });
    let inputs = inputs.as_object().expect("bug: an object was written here");
    let rendered = prompts::render(PROMPT, model.family(), inputs);
    let asked = rendered.map_err(|e| Failure::Unable(e.to_string()))?.ask(call.id.clone());
    Ok(Ask { patience, temperature: sampling.temperature, max_tokens, ..asked })
}
