//! The programs of a checkpoint, tried out where they can do no harm: its chat template and its tokenizer.
//!
//! Fuel bounds the steps of a template and not its memory: forty doublings of a text end a process. So both are run in a
//! child, the same binary with a hidden verb, under limits of the kernel: the template on twenty conversations with 512 MiB
//! and two seconds of processor time, then everything as a server would load it.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use hearth_models::spec::Spec;
use nix::sys::resource::{Resource, setrlimit};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bounded;
use super::error::StoreError;
use crate::text::chat::{self, ChatTemplate, Message};
use crate::text::{Text, TextFiles};

/// The hidden verb.
pub const VERB: &str = "vet";
const MIB: u64 = 1 << 20;
/// Beyond what the binary itself takes.
const TEMPLATE: Bounds = Bounds { what: "the chat template", memory: 512 * MIB, seconds: 2 };
const TEXT: Bounds = Bounds { what: "the tokenizer", memory: 4096 * MIB, seconds: 120 };
/// On a busy machine a second of work may take many.
const PATIENCE: u32 = 30;

struct Bounds {
    what: &'static str,
    memory: u64,
    seconds: u64,
}

/// A template as it goes to the child.
#[derive(Debug, Serialize, Deserialize)]
struct Template {
    source: String,
    bos: String,
    eos: String,
}

/// Tries out the programs in a checkpoint's directory.
pub fn checkpoint(directory: &Path) -> Result<(), StoreError> {
    let config = match bounded(&directory.join("tokenizer_config.json"), 16 * MIB) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|e| StoreError::Vetting { reason: format!("tokenizer_config.json: {e}") })?,
        Err(_) => Value::Null,
    };
    let jinja = directory.join("chat_template.jinja");
    let jinja = match jinja.exists() {
        true => Some(
            String::from_utf8(bounded(&jinja, MIB)?)
                .map_err(|_| StoreError::Vetting { reason: "chat_template.jinja is not text".to_owned() })?,
        ),
        false => None,
    };
    if let Some(source) = chat::source(jinja.as_deref(), &config) {
        let token = |key: &str| {
            let value = &config[key];
            value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_owned()
        };
        let template =
            Template { source: source.to_string(), bos: token("bos_token"), eos: token("eos_token") };
        let template = serde_json::to_vec(&template).expect("bug: a template is JSON");
        child(&TEMPLATE, &["template"], &template)?;
    }
    let directory = directory.canonicalize().map_err(StoreError::io(directory, "it cannot be opened"))?;
    child(&TEXT, &["text", &directory.to_string_lossy()], b"")
}

/// Runs the child to its end, or ends it.
fn child(bounds: &Bounds, arguments: &[&str], input: &[u8]) -> Result<(), StoreError> {
    let vetting = |reason: String| StoreError::Vetting { reason };
    let failed = |e: std::io::Error| vetting(format!("the process that tries it out: {e}"));
    let limits = [bounds.memory.to_string(), bounds.seconds.to_string()];
    let mut child = Command::new("/proc/self/exe")
        .arg(VERB)
        .args(&limits)
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut stdin = child.stdin.take().expect("bug: the child has a standard input");
    // A child that ended before it read everything says why itself.
    let _ = stdin.write_all(input);
    drop(stdin);
    let begin = Instant::now();
    let patience = Duration::from_secs(bounds.seconds) * PATIENCE;
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if begin.elapsed() > patience => {
                let _ = child.kill();
                break child.wait().map_err(failed)?;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_string(&mut said);
    }
    Err(vetting(why(bounds, status, &said)))
}

fn why(bounds: &Bounds, status: ExitStatus, said: &str) -> String {
    use std::os::unix::process::ExitStatusExt;
    let Bounds { what, memory, seconds } = bounds;
    match status.signal() {
        Some(24 | 9) => format!("{what} takes more than {seconds} s of processor time"),
        Some(6 | 11 | 7) => format!("{what} takes more than {} MiB", memory / MIB),
        Some(signal) => format!("{what} ended the process that tried it out, with signal {signal}"),
        None if said.contains("memory allocation of") => {
            format!("{what} takes more than {} MiB", memory / MIB)
        }
        None => match said.trim() {
            "" => format!("{what} does not work"),
            said => said.to_owned(),
        },
    }
}

/// In the child: takes its limits, then does what it was started for. The error goes to standard error.
pub fn run(memory: u64, seconds: u64, what: &str, directory: Option<&Path>) -> Result<(), String> {
    limit(memory, seconds).map_err(|e| format!("limits cannot be set: {e}"))?;
    match (what, directory) {
        ("template", None) => {
            let mut input = Vec::new();
            let read = std::io::stdin().lock().take(16 * MIB).read_to_end(&mut input);
            read.map_err(|e| e.to_string())?;
            let template: Template = serde_json::from_slice(&input).map_err(|e| e.to_string())?;
            try_template(template)
        }
        ("text", Some(directory)) => try_text(directory),
        _ => Err("the process that tries templates out was started with other words".to_owned()),
    }
}

fn limit(memory: u64, seconds: u64) -> Result<(), String> {
    // Pages of address space that the binary takes already.
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages: u64 = pages.and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or(0);
    let set = |resource, soft, hard| setrlimit(resource, soft, hard).map_err(|e| e.to_string());
    set(Resource::RLIMIT_AS, pages * 4096 + memory, pages * 4096 + memory)?;
    set(Resource::RLIMIT_CPU, seconds, seconds + 1)?;
    set(Resource::RLIMIT_CORE, 0, 0)?;
    set(Resource::RLIMIT_FSIZE, 0, 0)
}

/// Conversations that a served model meets.
fn conversations() -> Vec<Vec<Message>> {
    let message = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let long = "fn main() { println!(\"{}\", 1 + 1); }\n".repeat(800);
    let contents = [
        "Hello",
        "",
        " \n\t ",
        "</s><s>[INST] x [/INST]",
        "{{ messages }} {% for x in y %}",
        "<|im_start|>system",
        "naïve 漢字 🙂 \u{200b}",
        "'\"\\",
        &long,
    ];
    let mut all: Vec<Vec<Message>> = contents.iter().map(|c| vec![message("user", c)]).collect();
    all.extend(contents.iter().map(|c| vec![message("system", "Be brief."), message("user", c)]));
    let turns =
        |n: usize| (0..n).map(|i| message(if i % 2 == 0 { "user" } else { "assistant" }, "again")).collect();
    all.push(turns(3));
    all.push(turns(201));
    all
}

/// A question and a conversation must render; the others may be refused in the template's own words.
fn try_template(template: Template) -> Result<(), String> {
    let Template { source, bos, eos } = template;
    let template = ChatTemplate::new(source, bos, eos).map_err(|e| e.to_string())?;
    let conversations = conversations();
    for (i, messages) in conversations.iter().enumerate() {
        let rendered = template.render(messages);
        let needed = i == 0 || i == conversations.len() - 2;
        if let (true, Err(error)) = (needed, rendered) {
            return Err(error.to_string());
        }
    }
    Ok(())
}

/// Loads the tokenizer and everything that stands on it, as a server would.
fn try_text(directory: &Path) -> Result<(), String> {
    let files = TextFiles::read(directory).map_err(|e| e.to_string())?;
    // Not the checkpoint: its weights would not fit into the limit on address space.
    let config = bounded(&directory.join("config.json"), 16 * MIB).map_err(|e| e.to_string())?;
    let config: Value = serde_json::from_slice(&config).map_err(|e| format!("config.json: {e}"))?;
    let spec = Spec::from_config(&config).map_err(|e| e.to_string())?;
    let text =
        Text::new(&files, spec.vocab as u32, spec.context as u32, &spec.eos).map_err(|e| e.to_string())?;
    if text.tokenizer.vocab() > spec.vocab as u32 {
        let (has, rows) = (text.tokenizer.vocab(), spec.vocab);
        return Err(format!(
            "the tokenizer has {has} tokens and the embedding {rows}: they do not belong together"
        ));
    }
    let tokens =
        text.tokenizer.encode("fn main() {\n    println!(\"hello\");\n}\n").map_err(|e| e.to_string())?;
    match text.tokenizer.decode(&tokens, true).contains("println") {
        true => Ok(()),
        false => Err("the tokenizer does not give back the text that went in".to_owned()),
    }
}
