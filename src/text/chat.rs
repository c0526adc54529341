//! The checkpoint's own chat template (step 4 in the life of a request).
//!
//! Templates are the only program in a model directory: they come from the checkpoint and never from a request, their
//! instructions and their output are bounded, and they can neither load nor call anything.
//!
//! A template mixes its own markers with users' text, and only the markers may become control tokens. To know which is
//! which, the template is rendered twice: once as it stands, and once with every visible character of every message
//! replaced by a private stand-in of its own (blanks stay, so `trim` does what it did; one character for one, so
//! lengths stay). Mapped back, the second rendering is the first one with each users' character known as such. When the
//! two differ, the template looked into a message (`'</think>' in content`): then the plain rendering is used if the
//! messages contributed no control token to it, and refused otherwise.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};

use super::date;
use super::tokenizer::{Tokenizer, TokenizerError, Trusted};

/// What can go wrong between messages and a prompt.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// At load.
    #[error("the chat template cannot be read: {0}")]
    Template(String),
    /// The template's own words (`raise_exception`), or an expression that failed on these messages.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    #[error(
        "the messages hold the text of a control token and the model's chat template looks into messages, so the two \
         cannot be told apart; remove {0:?} from the messages"
    )]
    Ambiguous(String),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// One message, its role and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub role: String,
    pub content: String,
}

/// Instructions of one rendering: about ten for each message of a long conversation times a wide margin.
const FUEL: u64 = 5_000_000;
/// Output of one rendering at most: four times the messages and this much.
const SLACK: usize = 64 * 1024;
const NAME: &str = "chat";

pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    /// Whether a system message reaches the prompt.
    pub takes_system: bool,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").finish_non_exhaustive()
    }
}

/// A prompt in tokens and the text it was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatPrompt {
    pub text: String,
    pub tokens: Vec<u32>,
}

impl ChatTemplate {
    /// `bos` and `eos` are the texts of the tokens that begin and end a text, empty where there are none.
    pub fn new(source: String, bos: String, eos: String) -> Result<Self, ChatError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        // As the reference renders chat templates.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| ChatError::Template(e.to_string()))?);
        environment.set_debug(false);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(64);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |text: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, text))
        });
        environment.add_function("strftime_now", |format: String| {
            date::format(&format, date::today()).map_err(|c| {
                Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know %{c}"))
            })
        });
        environment.add_filter("tojson", |value: Value, options: Kwargs| to_json(&value, &options));
        environment.add_template_owned(NAME, source).map_err(|e| ChatError::Template(e.to_string()))?;
        let mut template = Self { environment, bos, eos, takes_system: true };
        // Some templates refuse the role, and some forget it.
        let probe = ["system", "user"].map(|role| Message { role: role.to_owned(), content: role.repeat(3) });
        template.takes_system = template.render(&probe).is_ok_and(|text| text.contains(&probe[0].content));
        Ok(template)
    }

    /// The messages as text, with the beginning of the assistant's turn.
    pub fn render(&self, messages: &[Message]) -> Result<String, ChatError> {
        let length: usize = messages.iter().map(|m| m.content.len() + m.role.len()).sum();
        let values: Vec<Value> = messages
            .iter()
            .map(|m| {
                let fields = [("role", &m.role), ("content", &m.content)];
                Value::from_pairs(fields.map(|(name, text)| (name, Value::from(text.as_str()))))
            })
            .collect();
        let context = Value::from(BTreeMap::from([
            ("messages", Value::from(values)),
            ("add_generation_prompt", Value::from(true)),
            ("bos_token", Value::from(self.bos.as_str())),
            ("eos_token", Value::from(self.eos.as_str())),
        ]));
        let template = self.environment.get_template(NAME).expect("bug: the template was added at load");
        let mut out = Bounded { text: Vec::new(), limit: 4 * length + SLACK };
        template.render_captured_to(context, &mut out).map_err(|e| ChatError::Refused(reason(&e)))?;
        String::from_utf8(out.text).map_err(|e| ChatError::Refused(e.to_string()))
    }

    /// The messages as a prompt in which only the template's own text holds control tokens.
    pub fn prompt(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<ChatPrompt, ChatError> {
        let plain = self.render(messages)?;
        let disguise = Disguise::of(messages, &plain);
        // A rendering that fails only on stand-ins looked into a message as well.
        let disguised = disguise.as_ref().and_then(|d| {
            let rendered = self.render(&d.messages(messages)).ok()?;
            Some(d.reveal(&rendered))
        });
        if let Some((text, trusted)) = &disguised
            && *text == plain
        {
            let tokens = tokenizer.encode_trusted(&plain, Trusted(trusted))?;
            return Ok(ChatPrompt { text: plain, tokens });
        }
        let whole = 0..plain.len();
        let everything = std::slice::from_ref(&whole);
        if let Some(text) = contributed(tokenizer, messages) {
            let same = match &disguised {
                Some((text, trusted)) => {
                    tokenizer.control_matches(text, Trusted(trusted))?
                        == tokenizer.control_matches(&plain, Trusted(everything))?
                }
                None => false,
            };
            if !same {
                return Err(ChatError::Ambiguous(text));
            }
        }
        let tokens = tokenizer.encode_trusted(&plain, Trusted(everything))?;
        Ok(ChatPrompt { text: plain, tokens })
    }
}

/// The text of a control token that a message holds, or with which one begins or ends in part.
fn contributed(tokenizer: &Tokenizer, messages: &[Message]) -> Option<String> {
    let part = |content: &str, control: &str| {
        content.contains(control)
            || control.char_indices().skip(1).any(|(cut, _)| {
                (cut > 1 && content.ends_with(&control[..cut]))
                    || (control.len() - cut > 1 && content.starts_with(&control[cut..]))
            })
    };
    tokenizer
        .controls()
        .find(|control| messages.iter().any(|m| part(m.content.trim(), control)))
        .map(str::to_owned)
}

/// Stand-ins for the visible characters of the messages, from the private planes of Unicode.
struct Disguise {
    stand_in: HashMap<char, char>,
    original: HashMap<char, char>,
}

impl Disguise {
    /// `None` when there are more different characters than free stand-ins.
    fn of(messages: &[Message], plain: &str) -> Option<Self> {
        let used: HashSet<char> =
            plain.chars().chain(messages.iter().flat_map(|m| m.content.chars())).collect();
        let mut free =
            ('\u{F0000}'..='\u{FFFFD}').chain('\u{100000}'..='\u{10FFFD}').filter(|c| !used.contains(c));
        let mut disguise = Self { stand_in: HashMap::new(), original: HashMap::new() };
        for c in messages.iter().flat_map(|m| m.content.chars()).filter(|c| !c.is_whitespace()) {
            if let std::collections::hash_map::Entry::Vacant(entry) = disguise.stand_in.entry(c) {
                let other = free.next()?;
                entry.insert(other);
                disguise.original.insert(other, c);
            }
        }
        Some(disguise)
    }

    fn messages(&self, messages: &[Message]) -> Vec<Message> {
        let hide = |content: &str| content.chars().map(|c| *self.stand_in.get(&c).unwrap_or(&c)).collect();
        messages.iter().map(|m| Message { role: m.role.clone(), content: hide(&m.content) }).collect()
    }

    /// The text with the characters put back, and the ranges that are the template's own.
    fn reveal(&self, rendered: &str) -> (String, Vec<Range<usize>>) {
        let mut text = String::with_capacity(rendered.len());
        let mut trusted: Vec<Range<usize>> = Vec::new();
        let mut start = None;
        for c in rendered.chars() {
            match self.original.get(&c) {
                Some(original) => {
                    trusted.extend(start.take().map(|s| s..text.len()));
                    text.push(*original);
                }
                None => {
                    start.get_or_insert(text.len());
                    text.push(c);
                }
            }
        }
        trusted.extend(start.map(|s| s..text.len()));
        (text, trusted)
    }
}

struct Bounded {
    text: Vec<u8>,
    limit: usize,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.text.len() + bytes.len() > self.limit {
            return Err(std::io::Error::other(format!("its output is longer than {} bytes", self.limit)));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The template's own words where it has some; never a piece of a message.
fn reason(error: &Error) -> String {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return io.to_string();
        }
        source = inner.source();
    }
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "it takes too many steps".to_owned(),
        (_, Some(detail)) => detail.to_owned(),
        (kind, None) => kind.to_string(),
    }
}

/// Python's `json.dumps(value, ensure_ascii=False)`, which templates are written against.
fn to_json(value: &Value, options: &Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = String::new();
    write_json(value, indent, 0, &mut out)?;
    Ok(Value::from_safe_string(out))
}

fn write_json(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), Error> {
    use minijinja::value::ValueKind as Kind;
    if depth > 64 {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: nested too deeply"));
    }
    let quoted = |text: &str| serde_json::to_string(text).expect("bug: a string is always JSON");
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        Kind::None | Kind::Undefined => out.push_str("null"),
        Kind::Bool | Kind::Number => out.push_str(&value.to_string().to_lowercase()),
        Kind::String => out.push_str(&quoted(value.as_str().unwrap_or_default())),
        Kind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(out, depth + 1);
                out.push_str(&quoted(&key.to_string()));
                out.push_str(": ");
                write_json(&value.get_item(&key)?, indent, depth + 1, out)?;
            }
            line(out, depth);
            out.push('}');
        }
        _ => {
            out.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(out, depth + 1);
                write_json(&item, indent, depth + 1, out)?;
            }
            line(out, depth);
            out.push(']');
        }
    }
    Ok(())
}

/// The template in a checkpoint's files: `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`, which
/// is one template or a list of named ones.
pub fn source(jinja: Option<&str>, config: &serde_json::Value) -> Option<Arc<str>> {
    if let Some(text) = jinja {
        return Some(text.into());
    }
    let named = |name: &str| {
        let list = config["chat_template"].as_array()?;
        list.iter().find(|t| t["name"] == name)?["template"].as_str()
    };
    config["chat_template"].as_str().or_else(|| named("default")).map(Arc::from)
}
