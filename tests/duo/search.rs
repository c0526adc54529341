//! `/v1/search/gitlab-docs`: what GitLab's chat finds in the documentation.

use std::fs;

use hearth::duo::Gateway;
use hearth::duo::identity::{Bypass, Rules};
use hearth::duo::search::Docs;
use serde_json::{Value, json};

use super::client::Reply;
use super::gitlab::{GitLab, pairs};
use super::site::Site;

const PATH: &str = "/v1/search/gitlab-docs";

fn question(payload: Value) -> Value {
    json!({"type": "search-docs", "metadata": {"source": "GitLab EE", "version": "18.9.0"}, "payload": payload})
}

/// A gateway with these files as its documentation.
fn site(files: &[(&str, String)]) -> Site {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let docs = Docs::read(directory.path()).unwrap();
    Site::shaped(Rules { bypass: Bypass::All, ..Rules::default() }, |gateway| Gateway { docs, ..gateway })
}

fn found(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{}", reply.body);
    let answer = reply.json();
    assert_eq!(answer["metadata"]["provider"], "sqlite");
    assert!(answer["metadata"]["timestamp"].as_u64().unwrap() > 1_700_000_000);
    answer["response"]["results"].as_array().unwrap().clone()
}

#[test]
fn without_documentation_there_is_an_answer_and_nothing_in_it() {
    let site = Site::open();
    assert_eq!(
        found(&site.post(PATH, &question(json!({"query": "How do I register a runner?"})))),
        [] as [Value; 0]
    );
}

#[test]
fn passages_come_with_an_id_that_can_be_cited_and_what_gitlab_shows_of_a_source() {
    let site = site(&[
        (
            "ci/runners.md",
            "---\ntitle: Runners\n---\n\n## Register\n\nRun the register command on the machine.".into(),
        ),
        ("user/issues.md", "---\nurl: https://docs.example.com/issues\n---\n\n# Issues\n\nA task.".into()),
    ]);
    let results =
        found(&site.post(PATH, &question(json!({"query": "How do I register a runner? (urgent!)"}))));
    assert_eq!(results.len(), 1);
    let id = results[0]["id"].as_str().unwrap();
    assert!(!id.is_empty() && id.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()), "{id}");
    assert_eq!(results[0]["content"], "Register\n\nRun the register command on the machine.");
    let metadata = json!({"filename": "ci/runners.md", "title": "Runners", "source_url": "ci/runners.md"});
    assert_eq!(results[0]["metadata"], metadata);
    let issues = found(&site.post(PATH, &question(json!({"query": "issue"}))));
    assert_eq!(issues[0]["metadata"]["source_url"], "https://docs.example.com/issues");
    assert_eq!(issues[0]["metadata"]["title"], "Issues");
    let again = found(&site.post(PATH, &question(json!({"query": "REGISTERED"}))));
    assert_eq!(again[0]["id"], results[0]["id"], "the same passage has the same id");
}

#[test]
fn so_many_passages_come_as_were_asked_for_and_as_a_model_can_read() {
    let files: Vec<_> =
        (0..30).map(|i| (format!("{i}.md"), format!("# Page {i}\n\n{}", "runner ".repeat(280)))).collect();
    let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    let site = site(&files);
    let count = |payload: Value| found(&site.post(PATH, &question(payload))).len();
    assert_eq!(count(json!({"query": "runner"})), 4);
    assert_eq!(count(json!({"query": "runner", "page_size": 1})), 1);
    assert_eq!(count(json!({"query": "runner", "page_size": "7"})), 7);
    assert_eq!(count(json!({"query": "runner", "page_size": null})), 4);
    // 282 words are about 395 tokens.
    assert_eq!(count(json!({"query": "runner", "page_size": 20})), 20);
    let long: Vec<_> = (0..20).map(|i| (format!("{i}.md"), "run ".repeat(499))).collect();
    let long: Vec<_> = long.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    let site = self::site(&long);
    assert_eq!(found(&site.post(PATH, &question(json!({"query": "run", "page_size": 20})))).len(), 11);
    let longest = format!("run {}", "x y ".repeat(99_999));
    assert_eq!(longest.len(), 400_000);
    assert_eq!(found(&site.post(PATH, &question(json!({"query": longest})))).len(), 4);
}

#[test]
fn tokens_for_chat_open_it_and_others_do_not() {
    let site = Site::start();
    let gitlab: &GitLab = site.gitlab();
    for (scope, status) in
        [("documentation_search", 200), ("duo_classic_chat", 200), ("duo_chat", 403), ("complete_code", 403)]
    {
        let headers = gitlab.with(&gitlab.token().scopes(&[scope]).sign(), "19.3.0");
        let reply = site.post_with(PATH, &pairs(&headers), &question(json!({"query": "x"})));
        assert_eq!(reply.status, status, "{scope}: {}", reply.body);
        if status == 403 {
            assert_eq!(reply.json(), json!({"detail": "Unauthorized to search documentations"}));
        }
    }
}
