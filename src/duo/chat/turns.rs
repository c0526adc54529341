//! A conversation as GitLab sends it (step 3 in the life of a request): messages with what the user looks at, and the
//! steps that were taken for the last question.
//!
//! The last message is the user's question, or behind it an assistant's message without text that holds the steps of
//! this turn; GitLab before 18 put those into `options`.

use serde_json::{Map, Value, json};

use crate::duo::body::Object;
use crate::duo::error::DuoError;
use crate::duo::identity::Caller;

/// One message, with the values that its part of the prompt takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    pub user: bool,
    pub inputs: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// Oldest first; the last one is the user's question.
    pub turns: Vec<Turn>,
    /// Taken for that question so far.
    pub steps: Vec<Value>,
    /// What GitLab cannot look up.
    pub unavailable: Vec<String>,
}

/// What the user can attach and which scope opens it.
const CATEGORIES: [(&str, Option<&str>); 11] = [
    ("file", Some("include_file_context")),
    ("snippet", Some("include_snippet_context")),
    ("merge_request", Some("include_merge_request_context")),
    ("issue", Some("include_issue_context")),
    ("dependency", Some("include_dependency_context")),
    ("local_git", Some("include_local_git_context")),
    ("terminal", Some("include_terminal_context")),
    ("repository", Some("include_repository_context")),
    ("directory", Some("include_directory_context")),
    ("agent_user_environment", Some("include_agent_user_environment_context")),
    ("os_information", None),
];

/// Messages of a conversation at most; GitLab sends some dozens.
const MESSAGES: usize = 1000;
const ITEMS: usize = 1000;
/// Names of what cannot be looked up, and their bytes, as they stand in the prompt; GitLab sends some five.
const UNAVAILABLE: usize = 50;
const NAME: usize = 64;
/// Texts are bounded by the body.
const ANY: usize = usize::MAX;

/// A conversation that is well-formed, or the words in which it is refused inside of the stream.
pub type Read = Result<Conversation, &'static str>;

pub fn read(body: &Object, caller: &Caller) -> Result<Read, DuoError> {
    let messages = body.objects("messages", MESSAGES)?;
    if messages.is_empty() {
        return Err(body.wrong("messages", "must hold at least one message"));
    }
    let mut unsupported = false;
    let mut turns = Vec::new();
    let mut steps = legacy(body)?;
    let last = messages.len() - 1;
    for (i, message) in messages.iter().enumerate() {
        let role = message.required_string("role", 20)?;
        let content = message.string("content", ANY)?;
        let scratchpad = scratchpad(message)?;
        if role != "assistant" && !scratchpad.is_empty() {
            let text = "agent_scratchpad can only be present when role is ASSISTANT";
            return Err(DuoError::bad_request(text));
        }
        match (role.as_str(), content) {
            ("user", content) => {
                turns.push(Turn { user: true, inputs: user(message, caller, content.unwrap_or_default())? });
            }
            ("assistant", Some(answer)) => {
                let inputs = json!({"steps": scratchpad, "answer": answer, "done": true});
                turns.push(Turn { user: false, inputs: fields(inputs) });
            }
            ("assistant", None) if i == last => steps = scratchpad,
            ("assistant", None) => {}
            ("system", _) => unsupported = true,
            _ => return Err(message.wrong("role", "must be user, assistant or system")),
        }
    }
    let unavailable = body.list("unavailable_resources", ITEMS)?.unwrap_or_default();
    let unavailable = unavailable.iter().filter_map(Value::as_str);
    let unavailable = unavailable.filter(|name| name.len() <= NAME).take(UNAVAILABLE).map(str::to_owned);
    let conversation = Conversation { unavailable: unavailable.collect(), turns, steps };
    Ok(match conversation.turns.last() {
        _ if unsupported => Err("Unsupported message"),
        Some(turn) if turn.user => Ok(conversation),
        _ => Err("Last message must be a human message"),
    })
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// The user's question and what the user looks at.
fn user(message: &Object, caller: &Caller, question: String) -> Result<Map<String, Value>, DuoError> {
    let mut inputs = Map::new();
    inputs.insert("question".to_owned(), question.into());
    if let Some(page) = message.object("context")? {
        let kind = page.string("type", 255)?.unwrap_or_default().replace('_', " ");
        let shown = json!({
            "type": kind,
            "title": page.string("title", ANY)?,
            "content": page.string("content", ANY)?,
        });
        if !kind.is_empty() {
            inputs.insert("page".to_owned(), shown);
        }
    }
    if let Some(file) = message.object("current_file")? {
        let shown = json!({
            "path": file.string("file_path", ANY)?,
            "content": file.string("data", ANY)?.unwrap_or_default(),
            "selected": file.bool("selected_code")?.unwrap_or(false),
        });
        inputs.insert("file".to_owned(), shown);
    }
    let mut additional = Vec::new();
    for item in message.objects("additional_context", ITEMS)? {
        let category = item.required_string("category", 255)?;
        let id = item.string("id", ANY)?;
        let content = item.string("content", ANY)?;
        match CATEGORIES.iter().find(|(name, _)| *name == category) {
            Some((_, Some(scope))) => caller.require(&[scope], format!("Unauthorized to access {scope}"))?,
            Some((_, None)) => {}
            // The language server adds categories with every version.
            None if category == "user_rule" && caller.can("include_user_rule_context") => {}
            None => continue,
        }
        if let Some(content) = content.filter(|content| !content.is_empty()) {
            additional.push(json!({"category": category, "id": id, "content": content}));
        }
    }
    inputs.insert("additional".to_owned(), additional.into());
    Ok(inputs)
}

/// The steps in an assistant's message.
fn scratchpad(message: &Object) -> Result<Vec<Value>, DuoError> {
    let mut steps = Vec::new();
    for step in message.objects("agent_scratchpad", ITEMS)? {
        let action = step.object("action")?;
        steps.push(match action {
            Some(action) => taken(&action, step.get("observation")),
            None => taken(&step, step.get("observation")),
        });
    }
    Ok(steps)
}

/// The steps where GitLab before 18 put them.
fn legacy(body: &Object) -> Result<Vec<Value>, DuoError> {
    let Some(scratchpad) = body.object("options")?.map(|options| options.object("agent_scratchpad")) else {
        return Ok(Vec::new());
    };
    let Some(scratchpad) = scratchpad? else { return Ok(Vec::new()) };
    let steps = scratchpad.objects("steps", ITEMS)?;
    Ok(steps.iter().map(|step| taken(step, step.get("observation"))).collect())
}

/// A step as the prompt shows it. Models write names with escaped underscores, as in Markdown.
fn taken(action: &Object, observation: Option<&Value>) -> Value {
    let text = |value: Option<&Value>| match value {
        None => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    json!({
        "thought": text(action.get("thought")).replace("\\_", "_"),
        "tool": text(action.get("tool")).replace("\\_", "_"),
        "input": text(action.get("tool_input")),
        "observation": text(observation),
    })
}
