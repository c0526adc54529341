//! Answers that GitLab parses: whatever the model would like to say, what goes out has the form. The parsers here are
//! GitLab's own, as far as its contract tells them.

use std::path::Path;
use std::sync::Arc;

use hearth::duo::prompts::form::Form;
use hearth::engine::request::Mask;
use hearth::text::grammar::GrammarError;
use hearth::text::{Text, TextFiles};
use serde_json::Value;

/// GitLab's reading of a resource reader's answer.
pub fn reader(text: &str) -> Value {
    let mut text = text.to_owned();
    if !text.contains("ResourceIdentifierType") {
        text = format!("```json\n{{\"ResourceIdentifierType\": \"{text}");
    }
    let text = text.split("Question:").next().unwrap();
    let json = match text.split_once("```json") {
        Some((_, rest)) => rest.split("```").next().unwrap(),
        None => text,
    };
    let value: Value = serde_json::from_str(json.trim()).unwrap_or_else(|e| panic!("{e} in {text:?}"));
    let kind = value["ResourceIdentifierType"].as_str().unwrap();
    assert!(["current", "iid", "url", "reference"].contains(&kind), "{value}");
    let id = &value["ResourceIdentifier"];
    assert!(id.is_i64() || id.is_string(), "{value}");
    value
}

/// Of one comment of a review: file, line before, line after, body, and what it replaces with what.
#[derive(Debug)]
pub struct Comment {
    pub place: (String, Option<u32>, Option<u32>),
    pub body: String,
    pub suggestion: Option<(String, String)>,
}

/// GitLab's reading of a review: the last block, its comments line by line.
pub fn review(text: &str) -> Vec<Comment> {
    let start = text.rfind("<review>").unwrap_or_else(|| panic!("no review in {text:?}"));
    let (block, _) = text[start + "<review>".len()..].split_once("</review>").expect("the review is closed");
    let mut comments = Vec::new();
    let mut lines = block.lines();
    while let Some(line) = lines.next() {
        let Some(attributes) = line.strip_prefix("<comment ") else {
            assert_eq!(line, "", "text between the comments");
            continue;
        };
        let attribute = |name: &str| {
            let (_, rest) = attributes.split_once(&format!("{name}=\"")).unwrap();
            rest.split('"').next().unwrap().to_owned()
        };
        let number = |name: &str| attribute(name).parse::<u32>().ok();
        let place = (attribute("file"), number("old_line"), number("new_line"));
        assert!(place.1.is_some() || place.2.is_some(), "a comment without a line: {line}");
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "</comment>").collect();
        let body = body.join("\n");
        let part = |tag: &str| {
            let (_, rest) = body.split_once(&format!("<{tag}>\n"))?;
            rest.split_once(&format!("</{tag}>")).map(|(part, _)| part.to_owned())
        };
        let suggestion = part("from").zip(part("to"));
        comments.push(Comment { place, body, suggestion });
    }
    assert!(comments.len() <= 50);
    comments
}

/// GitLab's reading of a repaired file.
#[derive(Debug)]
pub struct Fix {
    pub code: String,
    pub false_positive: bool,
}

pub fn fix(text: &str) -> Fix {
    let part = |tag: &str| {
        let (_, rest) =
            text.split_once(&format!("<{tag}>\n")).unwrap_or_else(|| panic!("no {tag}: {text:?}"));
        rest.split_once(&format!("</{tag}>")).unwrap_or_else(|| panic!("open {tag}: {text:?}")).0.to_owned()
    };
    assert!(!part("analysis").trim().is_empty() && !part("summary").trim().is_empty());
    let verdict = part("is_false_positive");
    assert!(["true", "false"].contains(&verdict.trim()), "{verdict:?}");
    Fix { code: part("fixed_code"), false_positive: verdict.trim() == "true" }
}

fn parses(form: Form, text: &str) {
    match form {
        Form::Reader => drop(reader(text)),
        Form::Commit => assert!(reader(text)["ResourceIdentifier"].is_string(), "{text}"),
        Form::Review => {
            for comment in review(text) {
                assert!(!comment.body.trim().is_empty() && !comment.place.0.is_empty());
                assert!(comment.suggestion.is_some() || !comment.body.contains("<from>"));
            }
        }
        Form::Fix => {
            let fix = fix(text);
            assert_eq!(fix.false_positive, fix.code.is_empty(), "{text:?}");
        }
        Form::Categories => {
            let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
            for name in ["category", "detailed_category", "language"] {
                assert!(value[name].as_str().is_some_and(|v| !v.is_empty()), "{value}");
            }
            assert!(value["labels"].as_array().unwrap().iter().all(Value::is_string));
        }
        Form::Features => {
            let ids: Vec<String> = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
            assert!(ids.len() <= 10);
        }
        Form::Intent => {
            assert!(["code_review_request", "write_actions", "agentic_chat"].contains(&text), "{text:?}");
        }
    }
}

/// A stream of numbers that depends on the seed alone.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// One of the allowed tokens, by chance.
fn draw(allowed: &[u32], numbers: &mut Numbers) -> u32 {
    let count: u32 = allowed.iter().map(|word| word.count_ones()).sum();
    assert!(count > 0, "the form allows nothing");
    let mut left = (numbers.next() % u64::from(count)) as u32;
    for (i, word) in allowed.iter().enumerate() {
        if left < word.count_ones() {
            let bit = (0..32).filter(|bit| word >> bit & 1 == 1).nth(left as usize).unwrap();
            return i as u32 * 32 + bit;
        }
        left -= word.count_ones();
    }
    unreachable!()
}

/// An answer of tokens drawn by chance under the mask; ended by the model's own end, or cut.
fn ramble(text: &Text, mask: &mut dyn Mask, closing: &[u32], numbers: &mut Numbers) -> (String, bool) {
    let mut allowed = vec![0; text.tokenizer.vocab().div_ceil(32) as usize];
    let mut tokens = Vec::new();
    while tokens.len() < 6000 {
        allowed.fill(u32::MAX);
        mask.fill(&mut allowed).unwrap();
        // Now and then something that may close what is open, or the answer would never end.
        if numbers.next().is_multiple_of(4) {
            let closing: Vec<u32> = allowed.iter().zip(closing).map(|(a, c)| a & c).collect();
            if closing.iter().any(|word| *word != 0) {
                allowed.copy_from_slice(&closing);
            }
        }
        let token = draw(&allowed, numbers);
        if text.ends.contains(&token) {
            return (text.tokenizer.decode(&tokens, true), true);
        }
        assert!(!text.tokenizer.is_control(token), "a control token inside an answer");
        mask.accept(token).unwrap();
        tokens.push(token);
    }
    (text.tokenizer.decode(&tokens, true), false)
}

fn load(folder: &str) -> Arc<Text> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = TextFiles::read(&folder).unwrap();
    let vocab = hearth::text::tokenizer::Tokenizer::new(&files.tokenizer, files.tokenizer_config.as_deref());
    Arc::new(Text::new(&files, vocab.unwrap().vocab(), 8192, &[]).unwrap())
}

fn rambles(folder: &str, times: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let text = load(folder);
    let mut closing = vec![0; text.tokenizer.vocab().div_ceil(32) as usize];
    for token in 0..text.tokenizer.vocab() {
        let bytes = text.tokenizer.bytes(token);
        if bytes.iter().any(|b| b"\n<>\"]}/".contains(b)) || text.ends.contains(&token) {
            closing[token as usize / 32] |= 1 << (token % 32);
        }
    }
    for form in Form::ALL {
        let (mut ended, mut comments, mut suggestions) = (0, 0, 0);
        for seed in 0..times {
            let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15 ^ (seed + 1));
            let mut mask = runtime.block_on(text.grammar(form.grammar())).unwrap();
            let (answer, whole) = ramble(&text, &mut *mask, &closing, &mut numbers);
            // The space that sentencepiece puts in front of a text belongs to the prompt in an answer.
            let answer = answer.trim_start();
            if whole {
                parses(form, answer);
                ended += 1;
                if form == Form::Review {
                    let said = review(answer);
                    comments += said.len();
                    suggestions += said.iter().filter(|comment| comment.suggestion.is_some()).count();
                }
            }
        }
        let many = form == Form::Review && times > 20;
        assert!(!many || (comments > 5 && suggestions > 0), "{comments} comments, {suggestions} suggestions");
        // A file has no length: by chance alone its end is rarely found. What it may hold is tested below.
        let found = ended > 0 || form == Form::Fix;
        assert!(found, "{folder}: no answer of the form {form:?} came to its end");
    }
}

#[test]
fn whatever_ember_says_has_the_form() {
    rambles("models/ember", 30);
}

#[test]
fn forms_hold_with_every_kind_of_vocabulary() {
    for name in [
        "mistral-v0.3",
        "codellama",
        "codegemma",
        "deepseek-coder",
        "llama-3",
        "qwen2.5-coder",
        "mistral-small",
    ] {
        rambles(&format!("tests/golden/tokenizers/{name}"), 2);
    }
}

/// Whether an answer may be said as it is, token by token, and may end there; else what stands before the first token that
/// may not be said.
fn allowed(text: &Arc<Text>, form: Form, answer: &str) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut mask = runtime.block_on(text.grammar(form.grammar())).unwrap();
    let tokens = text.tokenizer.encode(answer).unwrap();
    let may = |mask: &mut dyn Mask, token: u32| {
        let mut allowed = vec![0; text.tokenizer.vocab().div_ceil(32) as usize];
        mask.fill(&mut allowed).unwrap();
        allowed[token as usize / 32] >> (token % 32) & 1 == 1
    };
    for (i, token) in tokens.iter().enumerate() {
        if !may(&mut *mask, *token) {
            return Err(text.tokenizer.decode(&tokens[..i], true));
        }
        mask.accept(*token).unwrap();
    }
    match may(&mut *mask, text.ends[0]) {
        true => Ok(()),
        false => Err(answer.to_owned()),
    }
}

fn fixed(code: &str) -> String {
    format!(
        "<analysis>\nThe name `Option<T>` is put into the page as it is.\nIt must be escaped.\n</analysis>\n\
         <is_false_positive>\nfalse\n</is_false_positive>\n<summary>\nEscape the name.\n</summary>\n\
         <fixed_code>\n{code}\n</fixed_code>"
    )
}

const SHARP: &str = "using System;\r\n\r\n/// <summary>\r\n/// Says hello; see <analysis> and <see cref=\"List{T}\"/>.\r\n\
    /// </summary>\r\npublic class Hello<T> where T : IComparable<T>\r\n{\r\n\tprivate readonly T[] a = new T[3];\r\n}";
const PAGE: &str = "<!DOCTYPE html>\n<html>\n  <body>\n    <details><summary>More</summary>\n      <p>a &lt; b</p>\n\
    \x20   </details>\n    <review></review>\n  </body>\n</html>";
const REVIEW: &str = "<review>\n<comment file=\"src/app/main.rs\" old_line=\"\" new_line=\"12\">\n\
    `Option<tokio::Runtime>` is never empty here, and <commentId> and <summary> are no tags.\n\
    <details> would be better: vec![1, 2] < vec![3].\n<from>\n    let x: Option<tokio::Runtime> = None;\n\
    \x20   <commentId>\n</from>\n<to>\n    let x = reviewers::<Review>();\n\n    <summary>x</summary>\n</to>\n\
    </comment>\n<comment file=\"a b.rb\" old_line=\"3\" new_line=\"\">\nWhy is it gone?\n\nIt was needed.\n</comment>\n</review>";

#[test]
fn what_a_form_is_for_may_be_said() {
    let long = format!("const DATA = \"{}\";", "QmFzZTY0".repeat(2000));
    let block = |kind: &str, id: &str| {
        format!("```json\n{{\"ResourceIdentifierType\": \"{kind}\", \"ResourceIdentifier\": {id}}}\n```")
    };
    let answers = [
        (Form::Reader, block("iid", "410")),
        (Form::Reader, block("url", "\"https://gitlab.example.com/a/b/-/issues/4?x=1#note_2\"")),
        (Form::Reader, block("reference", "\"group/project#12\"")),
        (Form::Reader, block("reference", "\"&12\"")),
        (Form::Reader, block("current", "\"current\"")),
        (Form::Commit, block("iid", "\"6104942438\"")),
        (Form::Commit, block("reference", "\"group/project@6104942\"")),
        (Form::Review, REVIEW.to_owned()),
        (Form::Review, "<review>\n</review>".to_owned()),
        (Form::Fix, fixed(SHARP)),
        (Form::Fix, fixed(PAGE)),
        (Form::Fix, fixed(&long)),
        (Form::Fix, fixed("x = 1").replace("\nfalse\n", "\ntrue\n").replace("x = 1\n", "")),
        (
            Form::Categories,
            "{\"detailed_category\": \"Explain code\", \"category\": \"Write, improve, or explain code\", \"labels\": \
             [\"contains_code\", \"is_question\"], \"language\": \"en\"}"
                .to_owned(),
        ),
        (Form::Features, "[\"ci/pipelines\", \"merge_trains\"]".to_owned()),
        (Form::Features, "[]".to_owned()),
        (Form::Intent, "write_actions".to_owned()),
    ];
    for name in ["models/ember", "tests/golden/tokenizers/llama-3", "tests/golden/tokenizers/qwen2.5-coder"] {
        let text = load(name);
        for (form, answer) in &answers {
            parses(*form, answer);
            if let Err(before) = allowed(&text, *form, answer) {
                panic!("{name}: {form:?} does not allow what follows {before:?}");
            }
        }
    }
    let text = load("models/ember");
    assert!(allowed(&text, Form::Commit, &block("iid", "6104942438")).is_err(), "a hash is no number");
    assert!(allowed(&text, Form::Fix, &fixed("a </fixed_code> b")).is_err());
    assert!(allowed(&text, Form::Review, &REVIEW.replace("<details>", "</comment>")).is_err());
}

#[test]
fn a_grammar_that_cannot_be_used_says_why() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let text = load("models/ember");
    let refused = |source: &str| runtime.block_on(text.grammar(source.into())).err().unwrap();
    assert!(matches!(refused("start: nowhere"), GrammarError::Grammar(_)));
    assert_eq!(refused(&" ".repeat(70_000)), GrammarError::TooLong(70_000));
    // A lexer of more work than a step may have fails its own request and says why, and the next one begins anew.
    let hard = r#"start: TEXT
TEXT: /[a-z \n]{0,4000}/ & ~/(?s:.*)(ab|cd|ef).{5,50}(gh|ij)(?s:.*)/"#;
    let token = text.tokenizer.encode("a").unwrap()[0];
    for _ in 0..2 {
        let error = match runtime.block_on(text.grammar(hard.into())) {
            Err(error) => error.to_string(),
            Ok(mut mask) => {
                let mut allowed = vec![0; text.tokenizer.vocab().div_ceil(32) as usize];
                let mut step = || mask.fill(&mut allowed).and_then(|()| mask.accept(token));
                (0..5000)
                    .find_map(|_| step().err())
                    .expect("4000 characters at most, and little work for each")
            }
        };
        assert!(!error.is_empty() && error.len() < 300, "{error}");
    }
    let mut mask = runtime.block_on(text.grammar(Form::Intent.grammar())).unwrap();
    mask.fill(&mut vec![0; text.tokenizer.vocab().div_ceil(32) as usize]).unwrap();
}
