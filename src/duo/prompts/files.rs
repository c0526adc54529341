//! The data files of the catalogue, part of the binary. A test compares this list with the folder.

macro_rules! files {
    ($($path:literal),* $(,)?) => { &[$(($path, include_str!(concat!("data/", $path, ".toml")))),*] };
}

/// Folder and family of each file, and its text.
pub const FILES: &[(&str, &str)] = files![
    "categorize_question/base",
    "chat/build_reader/base",
    "chat/commit_reader/base",
    "chat/documentation_search/base",
    "chat/epic_reader/base",
    "chat/explain_code/base",
    "chat/explain_vulnerability/base",
    "chat/fix_code/base",
    "chat/fix_code/codestral",
    "chat/fix_code/llama3",
    "chat/issue_reader/base",
    "chat/merge_request_reader/base",
    "chat/react/base",
    "chat/react/gpt",
    "chat/react/llama3",
    "chat/refactor_code/base",
    "chat/summarize_comments/base",
    "chat/troubleshoot_job/base",
    "chat/work_item_reader/base",
    "chat/write_tests/base",
    "chat/write_tests/codestral",
    "chat/write_tests/llama3",
    "classify_code_review_mention_intent/base",
    "feature_discovery_search/base",
    "generate_commit_message/base",
    "generate_description/base",
    "generate_session_title/base",
    "glab_ask_git_command/base",
    "measure_comment_temperature/base",
    "model_configuration/check/base",
    "resolve_vulnerability/base",
    "review_merge_request/base",
    "summarize_duo_workflow/base",
    "summarize_new_merge_request/base",
    "summarize_review/base",
];
