//! The contract's table of routes, as data: `routes/contract.toml` has a line per route and version, and the files
//! beside it say of each what a good request is, what may be missing or wrong, and who may ask.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::client::Reply;
use super::site::{KEY, Site};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    contract: Vec<Line>,
    #[serde(default)]
    route: Vec<Row>,
}

/// A line of the contract.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    method: String,
    path: String,
    calls: String,
    mark: String,
    #[serde(default)]
    absent: bool,
}

/// A request as one caller makes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    method: String,
    path: String,
    /// The path with its parts filled in, where it has any.
    #[serde(default)]
    at: String,
    calls: String,
    #[serde(default)]
    #[allow(dead_code)] // for readers; the contract's line decides
    mark: String,
    /// Nothing is asked for.
    #[serde(default)]
    open: bool,
    /// The API key is asked for instead of a token.
    #[serde(default)]
    key: bool,
    #[serde(default)]
    scopes: Vec<String>,
    #[serde(default)]
    forbidden: String,
    #[serde(default)]
    direct: bool,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    script: String,
    #[serde(default)]
    begun: String,
    #[serde(default)]
    good: String,
    #[serde(default = "ok")]
    status: u16,
    content_type: String,
    #[serde(default)]
    missing: Vec<String>,
    #[serde(default)]
    wrong: BTreeMap<String, toml::Value>,
    #[serde(default)]
    over: BTreeMap<String, usize>,
}

fn ok() -> u16 {
    200
}

fn files() -> Vec<File> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/duo/routes");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap_or_else(|e| panic!("{path:?}: {e}"))
    };
    paths.iter().map(read).collect()
}

/// The place of a field: `a.b[0].c`.
fn field<'a>(value: &'a mut Value, place: &str) -> Option<&'a mut Value> {
    let pointer = format!("/{}", place.replace('[', ".").replace(']', "").replace('.', "/"));
    value.pointer_mut(&pointer)
}

fn split(place: &str) -> (String, &str) {
    match place.rsplit_once('.') {
        Some((parent, name)) => (parent.to_owned(), name),
        None => (String::new(), place),
    }
}

fn without(body: &Value, place: &str) -> Value {
    let mut body = body.clone();
    let (parent, name) = split(place);
    let object = if parent.is_empty() { Some(&mut body) } else { field(&mut body, &parent) };
    let object = object.and_then(Value::as_object_mut).unwrap_or_else(|| panic!("no {parent} for {place}"));
    assert!(object.remove(name).is_some(), "the good body has no {place}");
    body
}

fn set(body: &Value, place: &str, value: Value) -> Value {
    let mut body = body.clone();
    let (parent, name) = split(place);
    let object = if parent.is_empty() { Some(&mut body) } else { field(&mut body, &parent) };
    let object = object.and_then(Value::as_object_mut).unwrap_or_else(|| panic!("no {parent} for {place}"));
    object.insert(name.to_owned(), value);
    body
}

/// The same with a field that nobody knows in every object, as newer versions of GitLab send them.
fn with_unknown(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: serde_json::Map<String, Value> =
                fields.iter().map(|(name, value)| (name.clone(), with_unknown(value))).collect();
            fields.insert("a_field_of_tomorrow".into(), json!({"x": [1, null]}));
            Value::Object(fields)
        }
        Value::Array(list) => Value::Array(list.iter().map(with_unknown).collect()),
        other => other.clone(),
    }
}

/// What is wrong with one row.
struct Check<'a> {
    site: &'a Site,
    row: &'a Row,
    path: String,
    body: Value,
    wrong: Vec<String>,
}

impl Check<'_> {
    fn send(&self, method: &str, auth: &[(String, String)], body: &Value) -> Reply {
        self.site.answers_after(&self.row.begun, &self.row.script);
        let own = self.row.headers.iter().map(|(name, value)| (name.clone(), value.clone()));
        let headers: Vec<(String, String)> = auth.iter().cloned().chain(own).collect();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let text = if body.is_null() { String::new() } else { body.to_string() };
        self.site.open_with(method, &self.path, &headers, &text).reply()
    }

    fn good(&self, auth: &[(String, String)], body: &Value) -> Reply {
        self.send(&self.row.method, auth, body)
    }

    fn expect(&mut self, what: &str, reply: &Reply, status: u16, body: Option<&Value>) {
        let same =
            body.is_none_or(|body| serde_json::from_str::<Value>(&reply.body).ok().as_ref() == Some(body));
        if reply.status != status || !same {
            let wanted = body.map(Value::to_string).unwrap_or_default();
            let shown: String = reply.body.chars().take(200).collect();
            self.wrong.push(format!(
                "{} {} ({}): {what}: {} {shown}, not {status} {wanted}",
                self.row.method, self.path, self.row.calls, reply.status
            ));
        }
    }

    fn run(mut self) -> Vec<String> {
        let (site, row) = (self.site, self.row);
        let body = self.body.clone();
        if row.open || row.key {
            let auth = match row.key {
                true => vec![("authorization".to_owned(), format!("Bearer {KEY}"))],
                false => Vec::new(),
            };
            let reply = self.good(&auth, &body);
            self.expect("good", &reply, row.status, None);
            if row.key {
                let reply = self.good(&[], &body);
                self.expect("without a key", &reply, 401, None);
            }
            return self.wrong;
        }
        let all = site.rails(&row.scopes);
        let reply = self.good(&all, &body);
        self.expect("good", &reply, row.status, None);
        let kind = reply.header("content-type").unwrap_or_default();
        if !kind.starts_with(&row.content_type) {
            self.wrong.push(format!("{} {}: content type {kind}", row.method, self.path));
        }
        let reply = self.good(&all, &with_unknown(&body));
        self.expect("with unknown fields", &reply, row.status, None);
        for scope in &row.scopes {
            let reply = self.good(&site.rails(std::slice::from_ref(scope)), &body);
            self.expect(&format!("with {scope} alone"), &reply, row.status, None);
        }
        if !row.forbidden.is_empty() {
            let refusal = json!({"detail": row.forbidden});
            let reply = self.good(&site.rails(&["other_scope".to_owned()]), &body);
            self.expect("without the scope", &reply, 403, Some(&refusal));
            let reply = self.good(&site.editor(), &body);
            match row.direct {
                true => self.expect("with an editor's token", &reply, row.status, None),
                false => self.expect("with an editor's token", &reply, 403, Some(&refusal)),
            }
        }
        let reply = self.good(&[], &body);
        let stranger = json!({"error": "No authorization header presented"});
        self.expect("without a token", &reply, 401, Some(&stranger));
        let reply = self.good(&site.forged(&row.scopes), &body);
        let forged = json!({"error": "Forbidden by auth provider"});
        self.expect("with a forged token", &reply, 401, Some(&forged));
        let reply = self.send("DELETE", &all, &Value::Null);
        self.expect("another method", &reply, 405, Some(&json!({"detail": "Method Not Allowed"})));
        if body.is_null() {
            return self.wrong;
        }
        let invalid = json!({"detail": "Validation error"});
        let reply = self.good(&all, &json!([1]));
        self.expect("a list for a body", &reply, 422, Some(&invalid));
        for place in &row.missing {
            let reply = self.good(&all, &without(&body, place));
            self.expect(&format!("without {place}"), &reply, 422, Some(&invalid));
        }
        for (place, value) in &row.wrong {
            let value = serde_json::to_value(value).unwrap();
            let reply = self.good(&all, &set(&body, place, value));
            self.expect(&format!("with a wrong {place}"), &reply, 422, Some(&invalid));
        }
        for (place, limit) in &row.over {
            let reply = self.good(&all, &set(&body, place, "é".repeat(limit + 1).into()));
            self.expect(&format!("with {place} over its limit"), &reply, 422, Some(&invalid));
            let reply = self.good(&all, &set(&body, place, "é".repeat(*limit).into()));
            if reply.status == 422 {
                self.wrong.push(format!("{} {}: {place} at its limit is refused", row.method, self.path));
            }
        }
        self.wrong
    }
}

#[test]
#[allow(clippy::print_stdout)] // the count of rows is part of what is shown
fn every_row_of_the_contract_answers_as_the_contract_says() {
    let (mut lines, mut rows) = (Vec::new(), Vec::new());
    for file in files() {
        lines.extend(file.contract);
        rows.extend(file.route);
    }
    let site = Site::start();
    let mut wrong = Vec::new();
    for row in &rows {
        let path = if row.at.is_empty() { row.path.clone() } else { row.at.clone() };
        let body = match row.good.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|e| panic!("{path} ({}): {e}", row.calls)),
        };
        wrong.extend(Check { site: &site, row, path, body, wrong: Vec::new() }.run());
    }
    let mut covered = 0;
    for line in &lines {
        if line.absent {
            let refused = site.open_with(&line.method, &line.path, &[], "").reply();
            if refused.status != 401 {
                wrong.push(format!("{} {}: {} without a token", line.method, line.path, refused.status));
            }
            let auth = site.rails(&[]);
            let auth: Vec<(&str, &str)> = auth.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let reply = site.open_with(&line.method, &line.path, &auth, "").reply();
            if reply.status != 404 {
                wrong.push(format!("{} {}: {} with a token, not 404", line.method, line.path, reply.status));
            }
        }
        let tests = |row: &Row| {
            row.method == line.method && row.path == line.path && row.calls.starts_with(&line.calls)
        };
        match rows.iter().any(tests) {
            true => covered += 1,
            false if ["Y", "IDE", "D"].contains(&line.mark.as_str()) => {
                wrong.push(format!("{} {} ({}): no test", line.method, line.path, line.calls));
            }
            false => {}
        }
    }
    let must = lines.iter().filter(|line| line.mark != "N").count();
    println!("{covered} of {must} rows of the contract covered by {} forms of requests", rows.len());
    assert!(wrong.is_empty(), "{} of the checks failed:\n{}", wrong.len(), wrong.join("\n"));
}
