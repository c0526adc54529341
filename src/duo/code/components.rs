//! The body of `/v3/code/completions` and `/v4/code/suggestions`: a list of components. The first one says what is
//! wanted, the others are context.

use serde_json::{Map, Value};

use super::editor::{Editor, NAME};
use super::generation::{INSTRUCTION, Prompt, Wish};
use crate::duo::body::Object;
use crate::duo::client::Version;
use crate::duo::error::DuoError;

const COMPONENTS: usize = 100;
const CONTEXT_NAME: usize = 1024;
const CONTEXT: usize = 100_000;
const PROVIDERS: &[&str] = &["vertex-ai", "anthropic", "amazon_q"];
/// Older language servers' context components are not used.
const CONTEXT_SINCE: Version = Version::new(7, 17, 1);

/// What the first component wants.
#[derive(Debug)]
pub enum Wanted {
    Completion,
    Generation(Wish),
}

#[derive(Debug)]
pub struct Components {
    pub wanted: Wanted,
    pub editor: Editor,
    pub context: Vec<String>,
    pub stream: bool,
}

/// One component, checked.
enum Component {
    Editor(Box<(Wanted, Editor, bool)>),
    Context(String),
}

impl Components {
    /// `language_server`: whose components these are.
    pub fn read(body: &Object, language_server: Version) -> Result<Self, DuoError> {
        let components = body.objects("prompt_components", COMPONENTS)?;
        let mut read = components.iter().map(component).collect::<Result<Vec<_>, _>>()?.into_iter();
        let (mut wanted, editor, stream) = match read.next() {
            Some(Component::Editor(first)) => *first,
            Some(Component::Context(_)) => {
                return Err(body.wrong("prompt_components", "must begin with a completion or a generation"));
            }
            None => return Err(body.wrong("prompt_components", "must have at least one entry")),
        };
        let contents = read.filter_map(|component| match component {
            Component::Context(content) => Some(content),
            Component::Editor(_) => None,
        });
        let context: Vec<String> = contents.filter(|_| language_server >= CONTEXT_SINCE).collect();
        if let Wanted::Generation(wish) = &mut wanted {
            wish.context.clone_from(&context);
        }
        Ok(Self { wanted, editor, context, stream })
    }
}

fn component(fields: &Object) -> Result<Component, DuoError> {
    if let Some(metadata) = fields.object("metadata")? {
        metadata.string("source", NAME)?;
        metadata.string("version", NAME)?;
    }
    let kind = fields.required_string("type", NAME)?;
    let payload = fields.required_object("payload")?;
    match kind.as_str() {
        "code_editor_completion" => {
            let (editor, stream) = editor(&payload)?;
            Prompt::either(&payload)?;
            Ok(Component::Editor(Box::new((Wanted::Completion, editor, stream))))
        }
        "code_editor_generation" => {
            let (editor, stream) = editor(&payload)?;
            Ok(Component::Editor(Box::new((Wanted::Generation(wish(&payload)?), editor, stream))))
        }
        "code_context" => {
            payload.required_string("type", CONTEXT_NAME)?;
            payload.required_string("name", CONTEXT_NAME)?;
            Ok(Component::Context(payload.required_string("content", CONTEXT)?))
        }
        _ => {
            Err(fields
                .wrong("type", "must be code_editor_completion, code_editor_generation or code_context"))
        }
    }
}

/// What both kinds have in common: the file, and whether a stream is wanted.
fn editor(payload: &Object) -> Result<(Editor, bool), DuoError> {
    let editor = Editor::read(payload)?;
    let provider = payload.string("model_provider", NAME)?;
    if provider.is_some_and(|provider| !PROVIDERS.contains(&provider.as_str())) {
        return Err(payload.wrong("model_provider", "must be vertex-ai, anthropic or amazon_q"));
    }
    payload.string("model_name", NAME)?;
    payload.integer("choices_count")?;
    Ok((editor, payload.bool("stream")?.unwrap_or(false)))
}

fn wish(payload: &Object) -> Result<Wish, DuoError> {
    payload.string("prompt_id", NAME)?;
    payload.string("prompt_version", NAME)?;
    let enhancer = payload.object("prompt_enhancer")?;
    let enhancer: Map<String, Value> = enhancer.map(|e| e.fields().clone()).unwrap_or_default();
    Ok(Wish {
        prompt: Prompt::either(payload)?.unwrap_or_else(Prompt::none),
        user_instruction: payload.string("user_instruction", INSTRUCTION)?,
        enhancer,
        context: Vec::new(),
    })
}
