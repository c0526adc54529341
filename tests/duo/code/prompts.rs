//! What models are told when code is asked of them, family by family.

use hearth::duo::prompts;
use hearth::served::family::Family;
use serde_json::{Map, Value, json};

fn inputs() -> Map<String, Value> {
    let inputs = json!({
        "file_name": "lib/greeter.rb", "language": "ruby", "prefix": "class Greeter\n  # says hello", "suffix": "\nend\n",
        "instruction": "says hello", "user_instruction": "says hello",
        "trimmed_content_above_cursor": "class Greeter\n  # says hello", "trimmed_content_below_cursor": "\nend\n",
        "examples_array": [{"example": "# adds", "response": "def add(a, b) = a + b", "trigger_type": "comment"}],
        "related_files": ["<file_content file_name=\"b.rb\">\nB = 1\n</file_content>"],
        "related_snippets": ["<snippet_content name=\"c\">\nC = 2\n</snippet_content>"],
        "libraries": ["rails", "rspec"],
    });
    inputs.as_object().unwrap().clone()
}

#[test]
fn every_family_is_told_as_it_was_reviewed() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots/code");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for (family, prompt) in prompts::all().filter(|(_, p)| p.id.starts_with("code_suggestions/")) {
            let rendered = prompt.render(&inputs()).unwrap();
            let mut out = format!(
                "max_tokens {} temperature {} stops {:?}\n",
                rendered.max_tokens, rendered.temperature, rendered.stops
            );
            for message in &rendered.messages {
                out += &format!("\n=== {}\n{}\n", message.role, message.content);
            }
            if !rendered.begun.is_empty() {
                out += &format!("\n=== begun\n{}", rendered.begun);
            }
            let name = format!("{}.{}", prompt.id.replace('/', "."), family.map_or("base", Family::name));
            insta::assert_snapshot!(name.as_str(), out);
        }
    });
}

#[test]
fn families_draw_as_the_contract_says() {
    for (family, temperature, max_tokens) in [
        (Family::CodeGemma, 0.95, 512),
        (Family::DeepSeekCoder, 0.95, 512),
        (Family::CodeLlama, 0.95, 256),
        (Family::Mistral, 0.95, 256),
        (Family::Codestral, 0.3, 256),
        (Family::Llama3, 0.0, 256),
        (Family::Gpt, 1.0, 512),
        (Family::Mixtral, 0.0, 4096),
        (Family::Claude3, 0.2, 2048),
        (Family::General, 0.2, 2048),
    ] {
        let prompt = prompts::find("code_suggestions/generations", family).unwrap();
        assert_eq!((prompt.temperature, prompt.max_tokens), (temperature, max_tokens), "{family:?}");
    }
}
