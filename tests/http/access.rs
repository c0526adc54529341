//! Keys as callers meet them: every route with every kind of credential, what a key opens, how much of it, and when.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hearth::access::change::Wanted;
use hearth::access::{Access, Amounts, Class, FirstKey, Keys, Quotas};
use hearth::audit::Who;
use hearth::config::{Layers, Origin, Settings};
use hearth::engine::clock::Manual;
use hearth::server::guard::Access as Asks;
use hearth::server::routes::table;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{Line, Reply, request};
use super::site::{KEY, Options, Site, first};

/// A site with keys, and with clocks that stand still.
pub struct Rig {
    pub site: Site,
    pub access: Arc<Access>,
    pub keys: Keys,
    pub wall: Manual,
    pub ticks: Manual,
    _directory: TempDir,
}

pub fn named(name: &str) -> Wanted {
    Wanted { name: name.to_owned(), ..Wanted::default() }
}

impl Rig {
    pub fn start(quotas: Quotas) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (wall, ticks) = (Manual::default(), Manual::default());
        wall.advance(SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
        ticks.advance(Duration::from_secs(1000));
        let clocks = (Arc::new(wall.clone()), Arc::new(ticks.clone()));
        let access = Access::clocked(first(), directory.path(), quotas, clocks.0, clocks.1).unwrap();
        let access = Arc::new(access);
        let options = Options { access: Some(access.clone()), guarded_metrics: true, ..Options::default() };
        let site = Site::with(options);
        Self { site, access, keys: Keys::at(directory.path()), wall, ticks, _directory: directory }
    }

    /// A new key that is in force.
    pub fn key(&self, wanted: &Wanted) -> String {
        let key = self.keys.create(&Who::Server, wanted).unwrap().1;
        assert!(self.access.refresh().unwrap(), "the file has changed");
        key.expose().to_owned()
    }

    fn ask(&self, method: &str, path: &str, key: &str) -> Reply {
        ask(self.site.address, method, path, key, "")
    }

    fn complete(&self, key: &str, model: &str) -> Reply {
        self.open(key, model).reply()
    }

    fn open(&self, key: &str, model: &str) -> Line {
        let body = json!({"model": model, "prompt": "a@", "temperature": 0, "max_tokens": 5}).to_string();
        let headers = [("x-api-key", key), ("content-type", "application/json")];
        Line::open(self.site.address, &request("POST", "/v1/completions", &headers, &body))
    }
}

fn ask(address: SocketAddr, method: &str, path: &str, key: &str, body: &str) -> Reply {
    Line::open(address, &request(method, path, &[("x-api-key", key)], body)).reply()
}

fn code(reply: &Reply) -> String {
    reply.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn every_route_with_every_kind_of_credential() {
    let rig = Rig::start(Quotas::default());
    let hour = jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_hours(1)).unwrap();
    let good = rig.key(&named("good"));
    let expired = rig.key(&Wanted { expires: Some(hour), ..named("expired") });
    let revoked = rig.key(&named("revoked"));
    rig.keys.revoke(&Who::Server, "revoked").unwrap();
    let replaced = rig.key(&named("replaced"));
    rig.keys.rotate(&Who::Server, "replaced", None).unwrap();
    let elsewhere = rig.key(&Wanted { addresses: vec!["192.0.2.0/24".to_owned()], ..named("elsewhere") });
    let metrics = rig.key(&Wanted { classes: vec![Class::Metrics], ..named("metrics") });
    let admin = rig.key(&Wanted { classes: vec![Class::Admin], ..named("admin") });
    let foreign = Rig::start(Quotas::default()).key(&named("good"));
    let other_secret = format!("{}{}", &good[..good.len() - 1], if good.ends_with('0') { '1' } else { '0' });
    let other_id = format!("hearth_0000000000_{}", &good[good.len() - 64..]);
    rig.access.refresh().unwrap();
    rig.wall.advance(Duration::from_secs(2 * 3600));
    for route in table() {
        let path = route.path.replace("{*id}", "ember").replace("{*file}", "index.html");
        for (key, status, word) in [
            (&expired, 401, "expired_api_key"),
            (&revoked, 401, "revoked_api_key"),
            (&replaced, 401, "expired_api_key"),
            (&foreign, 401, "invalid_api_key"),
            (&other_secret, 401, "invalid_api_key"),
            (&other_id, 401, "invalid_api_key"),
            (&elsewhere, 403, "address_not_allowed"),
            (&metrics, 403, "not_permitted"),
            (&admin, 403, "not_permitted"),
        ] {
            for method in [route.method, "PATCH"] {
                let reply = rig.ask(method, &path, key);
                let told = format!("{method} {path} {word}: {} {}", reply.status, reply.body);
                match route.access {
                    Asks::Open => assert!(![401, 403].contains(&reply.status), "{told}"),
                    // A key is no token.
                    Asks::GitLab => assert_eq!(reply.status, 401, "{told}"),
                    Asks::Key | Asks::Page => {
                        assert_eq!((reply.status, code(&reply).as_str()), (status, word), "{told}");
                        let asked = reply.header("www-authenticate").is_some();
                        assert_eq!(asked, status == 401, "{told}");
                    }
                }
            }
        }
        if matches!(route.access, Asks::Key | Asks::Page) {
            let reply = rig.ask(route.method, &path, &good);
            assert!(![401, 403, 429].contains(&reply.status), "{path}: {}", reply.body);
        }
    }
    // What a refusal says of a key it says to those who have it, and never the key.
    for key in [&expired, &revoked, &elsewhere, &metrics] {
        let reply = rig.ask("GET", "/v1/models", key);
        assert!(reply.message().contains(&key[7..17]), "{}", reply.message());
        assert!(!reply.body.contains(&key[18..]), "{}", reply.body);
    }
}

#[test]
fn a_key_opens_its_models_and_no_others() {
    let rig = Rig::start(Quotas::default());
    let plain = rig.key(&Wanted { models: vec!["plain".to_owned()], ..named("plain") });
    let alias = rig.key(&Wanted { models: vec!["ember-alias".to_owned()], ..named("alias") });
    let gone = rig.key(&Wanted { models: vec!["gone".to_owned()], ..named("gone") });
    let listed = |key: &str| {
        let list = rig.ask("GET", "/v1/models", key).json();
        let ids = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap().to_owned());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(listed(KEY), ["ember", "plain"]);
    assert_eq!(listed(&plain), ["plain"]);
    assert_eq!(listed(&alias), ["ember"]);
    assert_eq!(listed(&gone), Vec::<String>::new());
    for path in ["/v1/models/ember", "/v1/models/ember-alias"] {
        let reply = rig.ask("GET", path, &plain);
        assert_eq!((reply.status, code(&reply).as_str()), (403, "model_not_allowed"), "{path}");
        assert_eq!(rig.ask("GET", path, &alias).status, 200, "{path}");
    }
    for (path, body) in [
        ("/v1/completions", json!({"model": "ember", "prompt": "x"})),
        ("/v1/completions", json!({"model": "ember-alias", "prompt": "x"})),
        ("/v1/chat/completions", json!({"model": "ember", "messages": [{"role": "user", "content": "x"}]})),
        ("/tokenize", json!({"model": "ember", "prompt": "x"})),
        ("/detokenize", json!({"model": "ember", "tokens": [5]})),
    ] {
        let reply = ask(rig.site.address, "POST", path, &plain, &body.to_string());
        assert_eq!(
            (reply.status, code(&reply).as_str()),
            (403, "model_not_allowed"),
            "{path}: {}",
            reply.body
        );
        assert!(reply.message().ends_with("it opens plain."), "{}", reply.message());
        assert_ne!(ask(rig.site.address, "POST", path, &alias, &body.to_string()).status, 403, "{path}");
        let reply = ask(rig.site.address, "POST", path, &gone, &body.to_string());
        assert!(reply.message().ends_with("it opens none that is served here."), "{}", reply.message());
    }
    assert_eq!(rig.complete(&plain, "plain").status, 200);
    // What there is beside its models, a key does not learn from other errors either.
    let body = json!({"model": "plain", "prompt": "x", "suffix": "y"}).to_string();
    let reply = ask(rig.site.address, "POST", "/v1/completions", &plain, &body);
    assert!(reply.status == 400 && !reply.body.contains("ember"), "{}", reply.body);
    assert!(!rig.complete(&plain, "unknown").body.contains("ember"));
    assert!(!ask(rig.site.address, "POST", "/v1/completions", &plain, "{}").body.contains("ember"));
}

#[test]
fn requests_a_minute_are_counted_for_each_key() {
    let of_all = Amounts { requests: 3, ..Amounts::default() };
    let rig = Rig::start(Quotas { keys: of_all, ..Quotas::default() });
    let (one, two) = (rig.key(&named("one")), rig.key(&named("two")));
    let own = rig.key(&Wanted { requests: Some(5), ..named("own") });
    let any = rig.key(&Wanted { requests: Some(0), ..named("any") });
    let good = |key: &str| (0..10).take_while(|_| rig.ask("GET", "/v1/models", key).status == 200).count();
    assert_eq!((good(&one), good(&two), good(&own)), (3, 3, 5));
    assert_eq!((good(&any), good(KEY)), (10, 10), "no limit of its own, and the first key");
    let reply = rig.ask("GET", "/v1/models", &one);
    assert_eq!((reply.status, reply.header("retry-after")), (429, Some("20")));
    assert_eq!(code(&reply), "rate_limit_exceeded");
    assert!(reply.message().contains("3 requests a minute; retry in 20 s"), "{}", reply.message());
    rig.ticks.advance(Duration::from_secs(20));
    assert_eq!(good(&one), 1);
    // A file that is read again forgets nothing; a limit that is another one begins anew.
    rig.key(&named("another"));
    assert_eq!(good(&one), 0);
    let figures = ask(rig.site.metrics, "GET", "/metrics", KEY, "").body;
    assert!(figures.contains("hearth_rate_limited_total{scope=\"key\"} 6\n"), "{figures}");
}

#[test]
fn tokens_a_minute_are_counted_with_prompt_and_answer_also_of_those_who_leave() {
    let rig = Rig::start(Quotas::default());
    let key = rig.key(&Wanted { tokens: Some(60), ..named("tokens") });
    // Two tokens of prompt and five of answer each.
    let mut sent = 0;
    let refused = loop {
        let reply = rig.complete(&key, "ember");
        if reply.status != 200 {
            break reply;
        }
        sent += reply.json()["usage"]["total_tokens"].as_u64().unwrap();
        assert!(sent < 1000, "nothing is refused");
    };
    assert!((61..=74).contains(&sent), "the bucket's minute, and what was under way: {sent}");
    assert_eq!(code(&refused), "rate_limit_exceeded");
    assert!(refused.message().contains("60 tokens a minute"), "{}", refused.message());
    assert!(refused.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    rig.ticks.advance(Duration::from_secs(120));
    // A stream that nobody reads to its end is paid for as far as it was made.
    let body = json!({"model": "ember", "prompt": "a ".repeat(100), "stream": true}).to_string();
    let headers = [("x-api-key", key.as_str()), ("content-type", "application/json")];
    let mut line = Line::open(rig.site.address, &request("POST", "/v1/completions", &headers, &body));
    line.until("data: ");
    drop(line);
    assert_eq!(rig.complete(&key, "ember").status, 429);
}

#[test]
fn requests_at_the_same_time_are_counted_until_their_answer_has_ended() {
    let rig = Rig::start(Quotas::default());
    let key = rig.key(&Wanted { concurrent: Some(2), ..named("two") });
    rig.site.controls.allow(0);
    let (one, two) = (rig.open(&key, "ember"), rig.open(&key, "ember"));
    while rig.site.engine.status().running + rig.site.engine.status().waiting < 2 {
        std::thread::sleep(Duration::from_millis(2));
    }
    let refused = rig.complete(&key, "ember");
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert!(refused.message().contains("2 requests at the same time"), "{}", refused.message());
    drop(one);
    // The server sees that the client is gone when the connection tells it.
    let mut tries = 0;
    while rig.ask("GET", "/v1/models", &key).status == 429 {
        tries += 1;
        assert!(tries < 3000, "the place is not given back");
        std::thread::sleep(Duration::from_millis(10));
    }
    rig.site.controls.run();
    assert_eq!(two.reply().status, 200);
    assert_eq!(rig.complete(&key, "ember").status, 200);
}

#[test]
fn an_address_that_guesses_must_wait_and_holders_of_keys_need_not() {
    let rig = Rig::start(Quotas { failures: 20, ..Quotas::default() });
    let key = rig.key(&named("good"));
    for _ in 0..20 {
        assert_eq!(rig.ask("GET", "/v1/models", "wrong").status, 401);
    }
    for (method, path) in [("GET", "/v1/models"), ("GET", "/docs"), ("POST", "/nowhere")] {
        let reply = rig.ask(method, path, "wrong");
        assert_eq!((reply.status, code(&reply).as_str()), (429, "too_many_wrong_keys"), "{path}");
        assert_eq!(reply.header("retry-after"), Some("3"));
    }
    assert_eq!(rig.ask("GET", "/v1/models", &key).status, 200, "256 bits cannot be guessed");
    assert_eq!(rig.ask("GET", "/v1/models", KEY).status, 429, "a key that somebody chose could be");
    assert_eq!(rig.ask("GET", "/health/live", "wrong").status, 200);
    rig.ticks.advance(Duration::from_secs(3));
    assert_eq!(rig.ask("GET", "/v1/models", KEY).status, 200);
    // No credential is no guess, and GitLab's tokens are none either.
    for _ in 0..50 {
        let headers = [("authorization", "Bearer a.b.c"), ("x-gitlab-authentication-type", "oidc")];
        for path in ["/v2/code/completions", "/nowhere"] {
            assert_eq!(
                Line::open(rig.site.address, &request("POST", path, &headers, "")).reply().status,
                401
            );
        }
        assert_eq!(Line::open(rig.site.address, &request("GET", "/v1/models", &[], "")).reply().status, 401);
    }
    assert_eq!(rig.ask("GET", "/v1/models", KEY).status, 200);
}

#[test]
fn a_file_of_keys_that_is_wrong_changes_nothing_and_is_told() {
    let rig = Rig::start(Quotas::default());
    let key = rig.key(&named("good"));
    let whole = std::fs::read_to_string(rig.keys.path()).unwrap();
    let mut parsed: Value = serde_json::from_str(&whole).unwrap();
    let with = |change: &mut dyn FnMut(&mut Value)| {
        let mut parsed = parsed.clone();
        change(&mut parsed);
        parsed.to_string()
    };
    let twice = with(&mut |file| {
        let first = file["keys"][0].clone();
        file["keys"].as_array_mut().unwrap().push(first);
    });
    let other = tempfile::tempdir().unwrap();
    Keys::at(other.path()).create(&Who::Server, &named("other")).unwrap();
    let others = std::fs::read_to_string(other.path().join("keys.json")).unwrap();
    for (text, words) in [
        (whole[..whole.len() / 2].to_owned(), "it is no file of keys"),
        (String::new(), "it is no file of keys"),
        (with(&mut |file| file["needs"] = json!(2)), "a later version"),
        (with(&mut |file| file["keys"][0]["mac"] = json!("00")), "`mac` is not 64 hexadecimal digits"),
        (with(&mut |file| file["keys"][0]["expires"] = json!("soon")), "`expires` is no time"),
        (with(&mut |file| file["keys"][0]["addresses"] = json!(["all"])), "its `addresses` must be networks"),
        (twice, "stands twice"),
        (others, "does not belong to the secret beside it"),
    ] {
        std::fs::write(rig.keys.path(), &text).unwrap();
        let error = rig.access.refresh().unwrap_err();
        assert!(error.what.contains(words), "{words}: {}", error.what);
        assert_eq!(rig.ask("GET", "/v1/models", &key).status, 200, "{words}");
        assert!(!rig.access.refresh().unwrap(), "told once");
    }
    // A later version's file that this one can read keeps what this one does not know.
    parsed["version"] = json!(7);
    parsed["colour"] = json!("blue");
    parsed["keys"][0]["shape"] = json!("round");
    std::fs::write(rig.keys.path(), parsed.to_string()).unwrap();
    let new = rig.key(&named("new"));
    assert_eq!(rig.ask("GET", "/v1/models", &new).status, 200);
    let again: Value = serde_json::from_str(&std::fs::read_to_string(rig.keys.path()).unwrap()).unwrap();
    assert_eq!((&again["version"], &again["colour"]), (&json!(7), &json!("blue")));
    assert_eq!(again["keys"][0]["shape"], "round");
}

#[test]
fn a_session_of_the_first_key_ends_when_another_takes_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let state = || FirstKey::of_state(directory.path()).unwrap().0;
    let access = Access::open(state(), directory.path(), Quotas::default()).unwrap();
    let keys = Keys::at(directory.path());
    let of_key = access.recognise(Some(state().expose()), None).unwrap().known();
    let still = |known| access.still(known, None, Class::Admin).is_ok();
    assert_eq!(of_key, access.first());
    keys.create(&Who::Server, &named("other")).unwrap();
    assert!(access.refresh().unwrap() && still(&of_key), "it is the same key");
    keys.rotate_first(&Who::Server).unwrap();
    assert!(access.refresh().unwrap());
    assert!(!still(&of_key), "its text is another one");
    let new = access.recognise(Some(state().expose()), None).unwrap().known();
    assert!(still(&new) && new == access.first() && new != of_key);
}

#[test]
fn what_a_reload_brings_is_not_undone_by_a_look_at_the_files_that_began_before_it() {
    let rig = Rig::start(Quotas::default());
    let key = rig.key(&named("ci"));
    let mut layers = Layers::new();
    let path = rig.keys.path();
    let state = path.parent().unwrap().display();
    let text = format!("[server]\nkey = \"{KEY}\"\nstate_dir = \"{state}\"\n[limits]\nkey_requests = 1\n");
    layers.toml(&text, &Origin::Default).unwrap();
    let reload = rig.access.prepare(&Settings::of(&layers).unwrap()).unwrap();
    // A file that is read for as long as this test wants.
    let text = std::fs::read(&path).unwrap();
    let aside = path.with_extension("aside");
    std::fs::rename(&path, &aside).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let access = rig.access.clone();
    let look = std::thread::spawn(move || access.refresh().unwrap());
    let mut slow = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::fs::rename(&aside, &path).unwrap();
    let reload = std::thread::spawn(reload);
    std::thread::sleep(Duration::from_millis(200));
    slow.write_all(&text).unwrap();
    drop(slow);
    assert!(look.join().unwrap());
    reload.join().unwrap();
    assert_eq!(rig.ask("GET", "/v1/models", &key).status, 200);
    assert_eq!(rig.ask("GET", "/v1/models", &key).status, 429, "one request a minute");
    rig.access.refresh().unwrap();
    assert_eq!(rig.ask("GET", "/v1/models", &key).status, 429, "still");
}

#[test]
fn a_replaced_key_is_good_until_its_time_and_the_new_one_at_once() {
    let rig = Rig::start(Quotas::default());
    let old = rig.key(&Wanted { models: vec!["plain".to_owned()], owner: "ada".to_owned(), ..named("ci") });
    let day = jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_hours(24)).unwrap();
    let (record, new) = rig.keys.rotate(&Who::Server, "ci", Some(day)).unwrap();
    rig.access.refresh().unwrap();
    assert_eq!((record.name.as_str(), record.owner.as_str()), ("ci", "ada"));
    for key in [&old, new.expose()] {
        assert_eq!(rig.complete(key, "plain").status, 200);
        assert_eq!(rig.complete(key, "ember").status, 403, "it opens the same");
    }
    rig.wall.advance(Duration::from_secs(25 * 3600));
    assert_eq!(rig.complete(&old, "plain").status, 401);
    assert_eq!(rig.complete(new.expose(), "plain").status, 200);
    // The name now means the new one.
    let next = rig.keys.rotate(&Who::Server, "ci", Some(day)).unwrap().0;
    assert_eq!(rig.keys.list().unwrap()[1].successor, Some(next.id));
    // Revoking the name ends all of them, also the one that had some time left.
    assert_eq!(rig.keys.revoke(&Who::Server, "ci").unwrap().len(), 3);
    rig.access.refresh().unwrap();
    assert_eq!(code(&rig.complete(new.expose(), "plain")), "revoked_api_key");
    assert!(rig.keys.revoke(&Who::Server, "ci").is_err());
}

#[test]
fn metrics_are_opened_by_keys_made_for_them() {
    use base64::Engine;
    let rig = Rig::start(Quotas::default());
    let metrics = rig.key(&Wanted { classes: vec![Class::Metrics], ..named("prometheus") });
    let openai = rig.key(&named("ci"));
    let status = |key: &str| ask(rig.site.metrics, "GET", "/metrics", key, "").status;
    assert_eq!((status(&metrics), status(KEY), status(&openai), status("wrong")), (200, 200, 403, 401));
    assert_eq!(Line::open(rig.site.metrics, &request("GET", "/metrics", &[], "")).reply().status, 401);
    let password = base64::engine::general_purpose::STANDARD.encode(format!("prometheus:{metrics}"));
    let headers = [("authorization", format!("Basic {password}"))];
    let headers = [(headers[0].0, headers[0].1.as_str())];
    assert_eq!(Line::open(rig.site.metrics, &request("GET", "/metrics", &headers, "")).reply().status, 200);
    assert_eq!(rig.ask("GET", "/v1/models", &metrics).status, 403);
    let figures = ask(rig.site.metrics, "GET", "/metrics", &metrics, "").body;
    assert!(figures.contains("hearth_auth_failures_total{reason=\"wrong\"} 1\n"), "{figures}");
}
