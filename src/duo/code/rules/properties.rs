//! What holds for every text.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::duo::body::Object;

/// Texts in which rules find something.
fn text() -> impl Strategy<Value = String> {
    let parts = prop::sample::select(vec![
        "\n",
        "\n\n",
        "\r\n",
        "  ",
        "    ",
        "\t",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ";",
        ",",
        ":",
        "\"",
        "'",
        "`",
        "``",
        "```",
        "```ruby\n",
        "\\_",
        "\\",
        "# ",
        "// ",
        "/*",
        "*/",
        "\"\"\"",
        "end",
        "else",
        "} else {",
        "def a",
        "foo",
        "x = 1",
        "return total_sum",
        "\nreturn total_sum\nreturn total_sum\n",
        "# a comment",
        "é",
        "日本",
        "🦀",
        "</",
        "'('",
    ]);
    let odd = prop_oneof![8 => parts.prop_map(str::to_owned), 1 => ".{0,3}".prop_map(|s: String| s)];
    prop::collection::vec(odd, 0..14).prop_map(|parts| parts.concat())
}

fn editor(name: &str, above: &str, below: &str) -> Editor {
    let fields = json!({"file_name": name, "content_above_cursor": above, "content_below_cursor": below});
    Editor::read(&Object::new(fields.as_object().unwrap().clone())).unwrap()
}

fn stream(rules: Rules, text: &str, size: usize, end: &End) -> String {
    let mut editing = Editing::new(rules);
    let mut sent = String::new();
    let characters: Vec<char> = text.chars().collect();
    for piece in characters.chunks(size) {
        sent += &editing.push(&piece.iter().collect::<String>());
    }
    sent + &editing.finish(end)
}

#[test]
fn the_blanks_before_a_bracket_go_with_it_however_the_answer_comes() {
    let editor = editor("a.rb", "} else {", "\n}");
    for size in [1, usize::MAX] {
        let rules = Rules::completion(&editor, Family::General);
        assert_eq!(stream(rules, "enddef a\t}  (", size, &End::Stop), "enddef a");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn a_stream_in_any_pieces_is_the_whole_answer(
        above in text(), below in text(), written in text(), size in 1usize..6, cut in any::<bool>(),
        name in prop::sample::select(vec!["a.rb", "a.py", "a.rs", "a.js", "a.md", "a.html", "a"]),
    ) {
        let editor = editor(name, &above, &below);
        let end = if cut { End::Length } else { End::Stop };
        for make in [Rules::completion, Rules::generation] {
            let whole = stream(make(&editor, Family::Mixtral), &written, usize::MAX, &end);
            let pieces = stream(make(&editor, Family::Mixtral), &written, size, &end);
            prop_assert_eq!(&pieces, &whole);
        }
    }

    #[test]
    fn nothing_is_invented_and_what_says_something_stays(above in text(), written in text()) {
        // Without anything below that could be repeated.
        let editor = editor("a.rb", &above, "");
        let kept = stream(Rules::completion(&editor, Family::General), &written, usize::MAX, &End::Stop);
        prop_assert!(kept.len() <= written.len());
        let says = !written.trim().trim_matches('`').trim().is_empty() && !written.contains("```");
        prop_assert!(!says || !kept.trim().is_empty(), "{:?} became {:?}", written, kept);
    }
}
