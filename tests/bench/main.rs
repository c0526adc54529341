//! `hearth bench` as its users meet it: the real binary, real sockets, a server that is well, one that is not there, one
//! that dies half way.

mod fake;
mod page;
#[path = "../served/mod.rs"]
mod served;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fake::Fake;
use serde_json::Value;
use served::{KEY, Served};

/// Runs `hearth bench …` to its end.
fn bench(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    command(arguments, environment).output().expect("the binary runs")
}

fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command.arg("bench").args(arguments).env_remove("HEARTH_KEY").env("HEARTH_CONFIG", "/dev/null");
    command.envs(environment.iter().copied()).stdin(Stdio::null());
    command
}

fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text}"))
}

/// A bench in the background; it does not outlive its test.
struct Running(Option<Child>);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    fn id(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    fn end(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Short requests: what is tested is the bench, not the machine.
const SHORT: [&str; 6] = ["--prompt-tokens", "20", "--output-tokens", "4", "--warmup", "0"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut all = more.to_vec();
    all.extend(SHORT);
    all
}

#[test]
fn a_look_at_the_embedded_model_gives_figures_a_file_and_a_page_with_the_same_numbers() {
    let place = Place::new();
    let (serve, sweep, html) =
        (place.path("serve.json"), place.path("sweep.json"), place.path("report.html"));
    let output =
        bench(&with(&["serve", "--rate", "40", "--requests", "60", "--quick", "-o", text(&serve)]), &[]);
    let (code, shown, log) = said(&output);
    assert_eq!(code, 0, "{log}");
    assert!(shown.contains("60 requests answered") && shown.contains("QUICK"), "{shown}");
    let results = json(&serve);
    let run = &results["runs"][0];
    assert_eq!(
        (&run["requests"], &run["failed"], &run["refused"]),
        (&60.into(), &0.into(), &0.into()),
        "{run:#}"
    );
    assert_eq!(run["arrivals"], serde_json::json!({"poisson": 40.0}));
    assert_eq!(run["kinds"]["completion"]["first_ms"]["count"], 60);
    assert_eq!((&results["quick"], &results["server"]["model"]), (&true.into(), &"ember-demo".into()));
    assert!(results["server"]["digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")));
    assert!(results["command"].as_str().unwrap().starts_with("hearth bench serve --rate 40 --requests 60"));
    let tokens = run["output_tokens"].as_f64().unwrap();
    assert!((2.0..=6.0).contains(&tokens), "answers of 2 to 6 tokens were asked for, {tokens} came");

    // One rate within limits that are always held: what a sweep finds is for the unit tests, how it is told is for here.
    let sweeping =
        ["sweep", "--profile", "mixed", "--from", "20", "--to", "20", "--requests", "25", "--quick"];
    let wide =
        ["--first-ms", "600000", "--chat-first-ms", "600000", "--token-ms", "600000", "-o", text(&sweep)];
    let (code, shown, log) = said(&bench(&with(&[&sweeping[..], &wide[..]].concat()), &[]));
    assert_eq!(code, 0, "{log}");
    assert!(
        shown.contains("knee: at least 20 requests/s hold the limits; beyond: no higher rate was tried"),
        "{shown}"
    );
    let swept = json(&sweep);
    assert_eq!(
        (&swept["knee"]["rate"], &swept["knee"]["run"]),
        (&20.0.into(), &0.into()),
        "{}",
        swept["knee"]
    );
    assert!(swept["partial"].is_null() && swept["runs"][0]["kinds"]["chat"]["first_ms"]["count"] == 5);

    let reporting = ["report", text(&serve), text(&sweep), "--gitlab-users", "500", "-o", text(&html)];
    let (code, shown, log) = said(&bench(&reporting, &[]));
    assert_eq!(code, 0, "{log}");
    assert_eq!(shown.lines().count(), 2, "an answer for each file: {shown}");
    assert!(
        shown.starts_with("500 GitLab users make 3.50 requests/s; as code-completion: fits with at least"),
        "{shown}"
    );
    let page = std::fs::read_to_string(&html).unwrap();
    let compared = page::same_numbers(&page, &[results, swept]);
    assert!(compared > 40, "only {compared} figures of the page name their place");
    page::stands_alone(&page);
}

#[test]
fn a_run_of_few_requests_shows_no_percentile_and_says_how_many_are_needed() {
    let output = bench(&with(&["serve", "--concurrency", "4", "--requests", "30", "--json"]), &[]);
    let (code, shown, log) = said(&output);
    assert_eq!(code, 0, "{log}");
    let results: Value = serde_json::from_str(&shown).unwrap_or_else(|e| panic!("{e}: {shown}"));
    let first = &results["runs"][0]["kinds"]["completion"]["first_ms"];
    assert!(
        first["mean"].as_f64().unwrap() > 0.0 && first.get("p50").is_none() && first.get("curve").is_none(),
        "{first}"
    );
    let (_, shown, _) = said(&bench(&with(&["serve", "--requests", "30"]), &[]));
    assert!(shown.contains("No percentiles: 30 requests were counted and 1,000 are needed"), "{shown}");
}

#[test]
fn a_running_server_is_measured_with_its_key_and_no_other() {
    let served = Served::start(&[]);
    let url = format!("{}/v1", served.url);
    let asked = with(&["serve", "--url", &url, "--requests", "20", "--quick"]);
    let (code, shown, log) = said(&bench(&asked, &[("HEARTH_KEY", KEY)]));
    assert_eq!(code, 0, "{log}");
    assert!(shown.contains("20 requests answered"), "{shown}");

    let place = Place::new();
    let file = place.path("key");
    std::fs::write(&file, format!("{KEY}\n")).unwrap();
    let mut by_file = asked.clone();
    by_file.extend(["--key-file", text(&file), "--profile", "chat"]);
    let (code, _, log) = said(&bench(&by_file, &[]));
    assert_eq!(code, 0, "{log}");

    let (code, shown, log) = said(&bench(&asked, &[("HEARTH_KEY", "another-key-0123456789")]));
    assert_eq!((code, shown.as_str()), (3, ""), "{log}");
    assert!(
        log.contains("refuses the key (401)") && log.contains("fix: set HEARTH_KEY or --key-file"),
        "{log}"
    );
    assert!(!log.contains("another-key"), "{log}");
    let (code, _, log) = said(&bench(&asked, &[]));
    assert_eq!(code, 3);
    assert!(log.contains("wants a key, and none was given"), "{log}");

    let mut unknown = asked;
    unknown.extend(["--model", "gpt-9"]);
    let (code, _, log) = said(&bench(&unknown, &[("HEARTH_KEY", KEY)]));
    assert_eq!(code, 4, "{log}");
    assert!(log.contains("has no model gpt-9; it has ember-demo"), "{log}");
    served.stop();
}

#[test]
fn what_is_wrong_from_the_start_is_said_before_anything_is_measured() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = format!("http://{nobody}");
    let page = Fake::start(|_| fake::plain(404, "<h1>Not here</h1>"));
    let place = Place::new();
    let report = place.path("not-a-report.json");
    std::fs::write(&report, "{\"format\": \"other\"}").unwrap();
    let newer = place.path("newer.json");
    std::fs::write(&newer, "{\"format\": \"hearth-bench\", \"version\": 99}").unwrap();
    for (arguments, code, words) in [
        (vec!["serve", "--url", &nobody], 9, "cannot be reached"),
        (vec!["serve", "--url", &page.url], 1, "answers 404 to GET /v1/models: <h1>Not here</h1>"),
        (vec!["serve", "--url", "ftp://x"], 2, "it must be a URL with its scheme"),
        (vec!["serve", "--url", &nobody, "--key-file", "/nowhere"], 3, "/nowhere cannot be read"),
        (vec!["serve", "--rate", "0"], 2, "it must be from 0.001"),
        (vec!["serve", "--rate", "1", "--concurrency", "1"], 2, "cannot be used with"),
        (vec!["serve", "--duration", "soon"], 2, "like 90s, 10m or 2h"),
        (vec!["serve", "-o", "/nowhere/x.json"], 1, "cannot be written"),
        (vec!["serve", "--model", "/nowhere"], 4, "there is no model /nowhere"),
        (vec!["report", "/nowhere.json"], 1, "/nowhere.json cannot be read"),
        (vec!["report", text(&report)], 1, "is no file of `hearth bench`"),
        (vec!["report", text(&newer)], 1, "has version 99 of the format; this hearth reads version 1"),
    ] {
        let (found, shown, log) = said(&bench(&arguments, &[]));
        assert_eq!((found, shown.as_str()), (code, ""), "{arguments:?}: {log}");
        assert!(log.contains(words), "{arguments:?}: {log}");
    }
}

#[test]
fn a_server_that_dies_half_way_leaves_a_partial_file_and_a_clear_end() {
    let mut served = Some(Served::start(&[]));
    let url = served.as_ref().unwrap().url.clone();
    let place = Place::new();
    let file = place.path("run.json");
    let arguments =
        with(&["serve", "--url", &url, "--rate", "30", "--duration", "10m", "--quick", "-o", text(&file)]);
    let mut running = command(&arguments, &[("HEARTH_KEY", KEY)]);
    let running = Running::start(&mut running);
    let asked = |served: &Served| served.metric("hearth_requests_total");
    let patience = Instant::now() + Duration::from_secs(60);
    while asked(served.as_ref().unwrap()) < 30.0 {
        assert!(Instant::now() < patience, "the bench asks nothing");
        std::thread::sleep(Duration::from_millis(50));
    }
    // SIGKILL, as the kernel does when memory ends.
    drop(served.take());
    let (code, shown, log) = said(&running.end());
    assert_eq!(code, 9, "{log}");
    assert!(log.contains("the server stopped answering") && log.contains("marked as partial"), "{log}");
    assert!(shown.contains("PARTIAL"), "{shown}");
    let results = json(&file);
    assert!(results["partial"].as_str().unwrap().contains("cannot be reached"), "{}", results["partial"]);
    assert!(
        results["runs"][0]["requests"].as_u64().unwrap() > 0
            && results["runs"][0]["failed"].as_u64().unwrap() >= 10
    );
    let (code, shown, log) = said(&bench(&["report", text(&file), "--gitlab-users", "10"], &[]));
    assert_eq!(code, 0, "{log}");
    assert!(shown.contains("Partial: ") && shown.contains("not known"), "{shown}");
}

#[test]
fn an_interrupted_run_keeps_what_it_has_and_ends_its_server() {
    let place = Place::new();
    let file = place.path("run.json");
    let mut running = command(&with(&["serve", "--rate", "30", "--duration", "10m", "-o", text(&file)]), &[]);
    let mut running = Running::start(&mut running);
    let (server, log) = asking(&mut running);
    let _ = Command::new("kill").args(["-INT", &running.id().to_string()]).status();
    let (code, shown, _) = said(&running.end());
    let log = log.join().unwrap();
    assert_eq!(code, 130, "{log}");
    assert!(
        log.contains("interrupted; what was measured before is in") && shown.contains("PARTIAL: interrupted"),
        "{log}{shown}"
    );
    let results = json(&file);
    assert_eq!(results["partial"], "interrupted");
    assert!(results["runs"][0]["requests"].as_u64().is_some());
    gone(server);
}

#[test]
fn a_bench_that_is_killed_takes_its_server_with_it() {
    let mut running = command(&with(&["serve", "--rate", "5", "--duration", "10m"]), &[]);
    let mut running = Running::start(&mut running);
    let (server, _) = asking(&mut running);
    drop(running);
    gone(server);
}

/// The process that another one started.
fn child_of(parent: u32) -> u32 {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let of = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).ok();
        let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).unwrap();
        let children: String = tasks.filter_map(|task| of(task.ok()?)).collect();
        if let Some(child) = children.split_whitespace().next() {
            return child.parse().unwrap();
        }
        assert!(Instant::now() < patience, "no server is started");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Reads what a bench says until it asks its server, then some seconds more, and gives the server's process. The rest of
/// what it says is read too, or it would wait for its reader.
fn asking(running: &mut Running) -> (u32, std::thread::JoinHandle<String>) {
    let mut lines =
        BufReader::new(running.0.as_mut().unwrap().stderr.take().unwrap()).lines().map_while(Result::ok);
    let asks = lines.find(|line| line.starts_with("asking ember-demo at http://127.0.0.1:"));
    assert!(asks.is_some(), "it ended before it asked");
    let server = child_of(running.id());
    let rest = std::thread::spawn(move || lines.collect::<Vec<_>>().join("\n"));
    std::thread::sleep(Duration::from_secs(1));
    (server, rest)
}

fn gone(pid: u32) {
    let patience = Instant::now() + Duration::from_secs(60);
    let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Nobody waits for an orphan here, so it may stay as a zombie.
    while !state().is_empty() && !state().contains(") Z ") {
        assert!(Instant::now() < patience, "the server lives on");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_server_that_takes_neither_gaps_nor_fixed_lengths_is_asked_without_them_and_refusals_are_counted() {
    // Like engines that know OpenAI's fields alone, and that refuse each third request.
    let fake = Fake::start(|request| match request.path.as_str() {
        "/v1/models" => fake::plain(200, r#"{"data":[{"id":"other"}]}"#),
        "/v1/completions" if request.body["suffix"].is_string() || request.body["ignore_eos"] == true => {
            fake::plain(400, r#"{"error":{"message":"unknown field"}}"#)
        }
        "/v1/completions" if request.number % 3 == 1 => fake::plain(429, r#"{"error":{"message":"busy"}}"#),
        "/v1/completions" => fake::stream(&["a", "b", "c"]),
        _ => fake::plain(404, "{}"),
    });
    let output = bench(
        &with(&["serve", "--url", &fake.url, "--requests", "60", "--concurrency", "1", "--quick", "--json"]),
        &[],
    );
    let (code, shown, log) = said(&output);
    assert_eq!(code, 0, "{log}");
    let results: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (&results["workload"]["fills"], &results["workload"]["whole_answers"]),
        (&false.into(), &false.into())
    );
    let run = &results["runs"][0];
    let (answered, refused) = (run["requests"].as_u64().unwrap(), run["refused"].as_u64().unwrap());
    assert!(
        answered + refused == 60 && (15..=25).contains(&refused),
        "{answered} answered, {refused} refused"
    );
    assert_eq!(run["output_tokens"], 3.0, "pieces are counted where the server counts nothing");
    assert_eq!(run["first_failure"], "429: busy");
}

#[test]
fn answers_that_break_off_are_failures_and_not_fast_answers() {
    let fake = Fake::start(|request| match request.path.as_str() {
        "/v1/models" => fake::plain(200, r#"{"data":[{"id":"other"}]}"#),
        "/v1/completions" if request.number < 8 => fake::stream(&["a", "b"]),
        "/v1/completions" => fake::cut(&["a"]),
        _ => fake::plain(404, "{}"),
    });
    let output = bench(
        &with(&["serve", "--url", &fake.url, "--requests", "500", "--concurrency", "1", "--quick", "--json"]),
        &[],
    );
    let (code, shown, log) = said(&output);
    assert_eq!(code, 9, "nothing but broken answers is a server that is gone: {log}");
    let run = &serde_json::from_str::<Value>(&shown).unwrap()["runs"][0];
    let broken = run["failures"]["broken off"].as_u64().unwrap();
    assert_eq!(run["failed"], broken);
    assert!(broken >= 10 && run["requests"].as_u64().unwrap() < 8, "{run:#}");
}
