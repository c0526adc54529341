//! `hearth bench`: how much a server answers in time, and for how many people that is enough.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::flags::ModelFlags;
use super::{CliError, Common, Exit};
use crate::bench::arrivals::Arrivals;
use crate::bench::client::{Client, ClientError};
use crate::bench::latency::ENOUGH;
use crate::bench::limits::{Limits, Verdict};
use crate::bench::load::{self, Cut, Plan, Progress};
use crate::bench::machine::Machine;
use crate::bench::own::Own;
use crate::bench::profile::{BYTES_PER_TOKEN, Profile, Workload};
use crate::bench::result::{Knee, Results, ResultsError, Run, Server, keep};
use crate::bench::sweep::{FASTEST, Search};
use crate::bench::{report, sizing, summary};
use crate::config::state::Secret;
use crate::config::{Origin, models_dir};
use crate::fit::built_in_papers;
use crate::outbound::Base;
use crate::store::{self, Store};

#[derive(Subcommand)]
pub enum Verb {
    /// Ask a server as users do, at one rate or so many at a time, and say how long they waited
    Serve(Serve),
    /// Raise the rate until the limits break: the knee
    Sweep(Sweep),
    /// Make one HTML page of files of results, and say how many GitLab users fit
    Report(Report),
    /// List the benchmarks of single parts
    Micro,
}

/// Whom to ask, and what.
#[derive(Args)]
struct Asking {
    /// The server's address, like https://hearth.example.com:5052; without one a server of this binary is started
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// A file with the API key for --url; HEARTH_KEY without it
    #[arg(long, value_name = "FILE", requires = "url")]
    key_file: Option<PathBuf>,
    /// Certificates in PEM form that are trusted for --url beside the system's
    #[arg(long, value_name = "FILE", requires = "url")]
    ca_file: Option<PathBuf>,
    #[command(flatten)]
    model: ModelFlags,
    /// Who asks
    #[arg(long, value_enum, default_value = "code-completion")]
    profile: Profile,
    /// Tokens of a prompt on average, instead of the profile's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..1_000_000))]
    prompt_tokens: Option<u32>,
    /// Tokens of an answer on average, instead of the profile's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..100_000))]
    output_tokens: Option<u32>,
    /// Share of the prompts that begin as others do, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share)]
    shared: f64,
    /// Another seed draws other prompts and other times
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Seconds at the beginning that are not counted [default: 5; with --quick 1]
    #[arg(long, value_name = "TIME", value_parser = time)]
    warmup: Option<Duration>,
    /// Counted requests of a run [default: 1000; with --quick 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,
    /// Show percentiles of few requests too: a look, not a measurement
    #[arg(long)]
    quick: bool,
    /// Limit of the p95 of a completion's first token
    #[arg(long, value_name = "MS", default_value_t = Limits::default().completion_first_ms, value_parser = positive)]
    first_ms: f64,
    /// Limit of the p95 of the first token of an answer in a conversation
    #[arg(long, value_name = "MS", default_value_t = Limits::default().chat_first_ms, value_parser = positive)]
    chat_first_ms: f64,
    /// Limit of the p95 of the time per token
    #[arg(long, value_name = "MS", default_value_t = Limits::default().token_ms, value_parser = positive)]
    token_ms: f64,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
    /// Keep the results in a file, for `hearth bench report`
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Args)]
pub struct Serve {
    #[command(flatten)]
    asking: Asking,
    /// Requests a second, at random times whether or not the server keeps up
    #[arg(long, value_name = "RATE", conflicts_with = "concurrency", value_parser = positive)]
    rate: Option<f64>,
    /// Requests at the same time, each followed by the next [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=8192))]
    concurrency: Option<u64>,
    /// Time after the warm-up in which requests are sent, like 90s or 10m, instead of a number of requests
    #[arg(long, value_name = "TIME", value_parser = time)]
    duration: Option<Duration>,
}

#[derive(Args)]
pub struct Sweep {
    #[command(flatten)]
    asking: Asking,
    /// The first rate [default: half of what 8 at a time get]
    #[arg(long, value_name = "RATE", value_parser = positive)]
    from: Option<f64>,
    /// No higher rate is tried
    #[arg(long, value_name = "RATE", default_value_t = FASTEST, hide_default_value = true, value_parser = positive)]
    to: f64,
}

#[derive(Args)]
pub struct Report {
    /// Files that `hearth bench serve` or `hearth bench sweep` wrote
    #[arg(value_name = "FILE.json", required = true)]
    files: Vec<PathBuf>,
    /// Where the page goes; standard output without it
    #[arg(long, short, value_name = "FILE.html")]
    output: Option<PathBuf>,
    /// Say whether so many users of GitLab fit
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..1_000_000_000))]
    gitlab_users: Option<u64>,
    /// Print a table in Markdown instead, a row for each file
    #[arg(long, conflicts_with = "output")]
    table: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "it must be a number".to_owned())?;
    let usable = number.is_finite() && (0.001..=1e6).contains(&number);
    if usable { Ok(number) } else { Err("it must be from 0.001 to 1000000".to_owned()) }
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "it must be a number from 0 to 1".to_owned())
}

/// `90`, `90s`, `10m`, `2h`.
fn time(text: &str) -> Result<Duration, String> {
    let unit = [("s", 1u64), ("m", 60), ("h", 3600)].into_iter().find(|(unit, _)| text.ends_with(unit));
    let (digits, seconds) = match unit {
        Some((unit, seconds)) => (&text[..text.len() - unit.len()], seconds),
        None => (text, 1),
    };
    let number = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(seconds)).filter(|n| *n <= 7 * 86_400);
    number
        .map(Duration::from_secs)
        .ok_or_else(|| "it must be a time of at most a week, like 90s, 10m or 2h".to_owned())
}

pub fn run(verb: Verb, common: &Common) -> Result<(), CliError> {
    match verb {
        Verb::Serve(verb) => serve(&verb, common),
        Verb::Sweep(verb) => sweep(&verb, common),
        Verb::Report(verb) => make_report(&verb),
        Verb::Micro => micro(),
    }
}

/// A server that can be asked, and what is known before the first figure.
struct Session {
    runtime: Runtime,
    client: Arc<Client>,
    results: Results,
    stop: watch::Receiver<bool>,
    // Last: the server ends when everything else has.
    own: Option<Own>,
}

impl Asking {
    fn limits(&self) -> Limits {
        let Self { first_ms, chat_first_ms, token_ms, .. } = *self;
        Limits { completion_first_ms: first_ms, chat_first_ms, token_ms }
    }

    fn warmup(&self) -> Duration {
        self.warmup.unwrap_or(Duration::from_secs(if self.quick { 1 } else { 5 }))
    }

    /// Counted requests of a run, where nothing else says when it ends.
    fn count(&self) -> u64 {
        self.requests.unwrap_or(if self.quick { 100 } else { ENOUGH })
    }

    fn workload(&self) -> Workload {
        Workload {
            profile: self.profile,
            prompt_tokens: self.prompt_tokens,
            output_tokens: self.output_tokens,
            shared: self.shared,
            seed: self.seed,
            fills: true,
            whole_answers: true,
            context: None,
            bytes_per_token: BYTES_PER_TOKEN,
        }
    }

    /// Finds or starts the server. Called on the main thread, with which a server of our own ends.
    fn begin(&self, common: &Common) -> Result<Session, CliError> {
        if let Some(path) = &self.output {
            // Told before an hour of measuring, not after.
            keep(&path.with_extension("probe"), b"").map_err(unwritten)?;
            let _ = std::fs::remove_file(path.with_extension("probe"));
        }
        if self.model.named().len() > 1 {
            return Err(
                CliError::new(Exit::Usage, "several models are named").fix("measure them one after another")
            );
        }
        let machine = Machine::this();
        let runtime = super::runtime()?;
        let stop = runtime.block_on(async { interrupted() })?;
        let mut digest = None;
        let (own, url, key) = match &self.url {
            Some(url) => {
                let url: Base = url.parse().map_err(|e| {
                    CliError::new(Exit::Usage, format!("--url is {url:?}")).fix(format!("it must be {e}"))
                })?;
                (None, url, self.key()?)
            }
            None => {
                let mut layers = common.layers()?;
                self.model.apply(&mut layers)?;
                let entry = layers.models().first();
                digest = entry.and_then(|entry| match &entry.path {
                    Some(path) => store::digest_at(&Store::at(models_dir(&layers)), path).ok(),
                    None => built_in_papers().digest,
                });
                let mut arguments = self.model.arguments();
                if let Some(file) = &common.config {
                    arguments.extend([OsString::from("--config"), file.into()]);
                }
                let own = Own::start(&arguments, &models_dir(&layers), |line| eprintln!("{line}"));
                let own = own.map_err(|e| {
                    CliError::new(Exit::Failed, e.to_string())
                        .fix("see what `hearth serve` with the same flags says")
                })?;
                let (url, key) = (own.url.clone(), own.key.clone());
                (Some(own), url, Some(key))
            }
        };
        let here = own.is_some() || is_here(&url);
        if !url.guarded() && key.is_some() {
            eprintln!("note: {url} is plain http: whoever is on the way can read the key");
        }
        let mut client = Client::new(&url, key.as_ref(), self.ca_file.as_deref()).map_err(|e| unasked(&e))?;
        let mut workload = self.workload();
        let name = self.url.as_ref().and_then(|_| self.model.named().first()).map(String::as_str);
        let mut stopping = stop.clone();
        runtime.block_on(async {
            tokio::select! {
                found = client.find(name, &mut workload) => found.map_err(|e| unasked(&e)),
                _ = stopping.wait_for(|stop| *stop) => {
                    Err(CliError::new(Exit::Interrupted, "interrupted before anything was measured"))
                }
            }
        })?;
        eprintln!("asking {} at {url}", client.model);
        let server =
            Server { url: own.is_none().then(|| url.to_string()), model: client.model.clone(), digest, here };
        let mut results = Results::begin(command(), machine, server, workload, self.limits());
        results.quick = self.quick;
        Ok(Session { runtime, client: Arc::new(client), results, stop, own })
    }

    fn key(&self) -> Result<Option<Secret>, CliError> {
        let text = match &self.key_file {
            Some(path) => Some((
                std::fs::read_to_string(path).map_err(|e| {
                    CliError::new(Exit::Config, format!("{} cannot be read: {e}", path.display()))
                        .fix("let --key-file name a file that holds the key and nothing else")
                })?,
                Origin::File(path.clone()),
            )),
            None => {
                std::env::var("HEARTH_KEY").ok().map(|key| (key, Origin::Environment("HEARTH_KEY".into())))
            }
        };
        Ok(text.map(|(text, origin)| Secret::given(text.trim(), &origin)).transpose()?)
    }
}

/// Whether an address is this very machine's.
fn is_here(url: &Base) -> bool {
    url.guarded() && url.to_string().starts_with("http://") || {
        let host = url.join("/").host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }
}

/// The command line as a shell takes it.
fn command() -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+".contains(c);
    let quoted = |text: String| match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    };
    let rest = std::env::args_os().skip(1).map(|argument| quoted(argument.to_string_lossy().into_owned()));
    std::iter::once("hearth".to_owned()).chain(rest).collect::<Vec<_>>().join(" ")
}

/// Turns true at the first SIGINT or SIGTERM; a second one ends the process at once.
fn interrupted() -> Result<watch::Receiver<bool>, CliError> {
    let caught = |kind| {
        signal(kind).map_err(|e| CliError::new(Exit::Failed, format!("signals cannot be caught: {e}")))
    };
    let (mut terminate, mut interrupt) = (caught(SignalKind::terminate())?, caught(SignalKind::interrupt())?);
    let (tell, told) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        let _ = tell.send(true);
        let told = Instant::now();
        // timeout(1) and shells tell a process and its group, so one wish comes as two signals.
        while told.elapsed() < Duration::from_millis(500) {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        }
        std::process::exit(Exit::Interrupted as i32);
    });
    Ok(told)
}

fn unasked(error: &ClientError) -> CliError {
    let (exit, fix) = match error {
        ClientError::Away(_) => (Exit::NotRunning, "start the server, or correct --url"),
        ClientError::Prepare(_) => (Exit::Config, "correct --ca-file, or install the system's certificates"),
        ClientError::Key { .. } => {
            (Exit::Config, "set HEARTH_KEY or --key-file to a key of that server which may use the model")
        }
        ClientError::NoKey { .. } => (Exit::Config, "set HEARTH_KEY, or give --key-file FILE"),
        ClientError::Foreign { .. } => {
            (Exit::Failed, "let --url name an OpenAI-compatible server, without a path")
        }
        ClientError::NoModel { .. } => (Exit::Model, "give one of them: --model NAME"),
        ClientError::Busy { .. } => (Exit::Busy, "measure when nobody else uses the server"),
        ClientError::Request { .. } => (
            Exit::Failed,
            "choose another --profile or --model, or shorter --prompt-tokens and --output-tokens",
        ),
    };
    CliError::new(exit, error.to_string()).fix(fix)
}

fn unwritten(error: ResultsError) -> CliError {
    let fix = match error {
        ResultsError::Write { .. } => "choose another place: -o FILE",
        ResultsError::Read { .. } => {
            "give files that `hearth bench serve -o FILE` or `hearth bench sweep -o FILE` wrote"
        }
        ResultsError::Foreign { .. } => "give files that `hearth bench` wrote, whole",
        ResultsError::Version { .. } => "use the hearth that wrote it, or measure again",
    };
    CliError::new(Exit::Failed, error.to_string()).fix(fix)
}

impl Session {
    /// Runs a plan, with progress on standard error.
    fn load(&mut self, plan: &Plan) -> (Run, Option<Cut>) {
        let bar = std::io::stderr().is_terminal();
        let wanted = match (plan.requests, plan.duration) {
            (Some(requests), _) => format!("of {requests} answered"),
            (None, Some(time)) => format!("answered, {} s in all", time.as_secs()),
            (None, None) => "answered".to_owned(),
        };
        let mut said = 0;
        let mut show = |progress: &Progress| {
            let Progress { elapsed, warm, answered, lost, in_flight } = progress;
            let seconds = elapsed.as_secs();
            let state =
                if *warm { format!("{answered} {wanted}, {lost} lost") } else { "warming up".to_owned() };
            let line = format!("{}: {seconds} s, {state}, {in_flight} in flight", plan.arrivals);
            if bar {
                eprint!("\r\x1b[K{line}");
            } else if seconds >= said + 10 {
                said = seconds;
                eprintln!("{line}");
            }
        };
        let done = self.runtime.block_on(load::run(
            &self.client,
            &self.results.workload,
            plan,
            &mut self.stop,
            &mut show,
        ));
        if bar {
            eprint!("\r\x1b[K");
        }
        done
    }

    /// Why a cut run is an error of the whole; the partial results are kept by then.
    fn cut(&mut self, cut: &Cut, kept: Option<&Path>) -> CliError {
        let what = match kept {
            Some(path) => {
                format!("{cut}; what was measured before is in {}, marked as partial", path.display())
            }
            None => format!("{cut}; what was measured before is above, marked as partial"),
        };
        match (cut, self.own.as_mut().and_then(Own::ended)) {
            (Cut::Gone(_), Some(ended)) => CliError::new(Exit::NotRunning, what).at(ended.to_string()),
            (Cut::Gone(_), None) => {
                CliError::new(Exit::NotRunning, what).fix("see the server's log, then measure again")
            }
            (Cut::Interrupted, _) => CliError::new(Exit::Interrupted, what),
            (Cut::Late | Cut::Stuck, _) => {
                CliError::new(Exit::Failed, what).fix("lower --rate or --concurrency")
            }
        }
    }

    /// Prints and keeps what there is.
    fn hand_over(&self, asking: &Asking, text: &str) -> Result<(), CliError> {
        if let Some(path) = &asking.output {
            self.results.write(path).map_err(unwritten)?;
        }
        let mut out = std::io::stdout().lock();
        match asking.json {
            true => out.write_all(self.results.json().as_bytes())?,
            false => out.write_all(text.as_bytes())?,
        }
        out.flush()?;
        Ok(())
    }
}

fn serve(verb: &Serve, common: &Common) -> Result<(), CliError> {
    let asking = &verb.asking;
    let mut session = asking.begin(common)?;
    let arrivals = match (verb.rate, verb.concurrency) {
        (Some(rate), _) => Arrivals::Poisson(rate),
        (None, n) => Arrivals::Concurrent(n.unwrap_or(8)),
    };
    let plan = Plan {
        arrivals,
        warmup: asking.warmup(),
        requests: match verb.duration {
            Some(_) => asking.requests,
            None => Some(asking.count()),
        },
        duration: verb.duration,
        limits: asking.limits(),
        stop_early: false,
        quick: asking.quick,
        first: 0,
    };
    let (run, cut) = session.load(&plan);
    let mut text = summary::run(&session.results, &run);
    session.results.runs.push(run);
    if let Some(cut) = &cut {
        session.results.partial = Some(cut.to_string());
        text += &format!("\nPARTIAL: {cut}\n");
    }
    session.hand_over(asking, &text)?;
    match cut {
        Some(cut) => Err(session.cut(&cut, asking.output.as_deref())),
        None => Ok(()),
    }
}

fn sweep(verb: &Sweep, common: &Common) -> Result<(), CliError> {
    let asking = &verb.asking;
    let mut session = asking.begin(common)?;
    let plan = |arrivals, requests, number: u64| Plan {
        arrivals,
        warmup: asking.warmup(),
        requests: Some(requests),
        duration: None,
        limits: asking.limits(),
        stop_early: matches!(arrivals, Arrivals::Poisson(_)),
        quick: asking.quick,
        first: number << 32,
    };
    let (mut cut, mut beyond) = (None, "no higher rate was tried".to_owned());
    let mut search = match verb.from {
        Some(rate) => Some(Search::new(rate, verb.to)),
        None => {
            let (run, ended) = session.load(&plan(Arrivals::Concurrent(8), 40, 0));
            eprintln!("8 at a time: {:.2} answers/s", run.requests_per_s);
            cut = ended;
            cut.is_none().then(|| Search::new(run.requests_per_s / 2.0, verb.to))
        }
    };
    while let (Some(search), None) = (&mut search, &cut) {
        let Some(rate) = search.next() else { break };
        let number = session.results.runs.len() as u64 + 1;
        let (run, ended) = session.load(&plan(Arrivals::Poisson(rate), asking.count(), number));
        eprintln!("{}", summary::step(&session.results, &run));
        let verdict = session.results.limits.judge(&run);
        session.results.runs.push(run);
        match verdict {
            Verdict::Holds => search.told(rate, true),
            Verdict::Breaks(why) => {
                search.told(rate, false);
                beyond = format!("at {rate} requests/s {why}");
            }
            Verdict::Open(why) if ended.is_none() => {
                let what = format!("the sweep cannot go on: {why}");
                return Err(
                    CliError::new(Exit::Usage, what).fix("raise --requests, or take a look with --quick")
                );
            }
            Verdict::Open(_) => {}
        }
        cut = ended.filter(|cut| *cut != Cut::Late);
        if let Some(path) = &asking.output {
            // Whatever ends this process, what was measured is there.
            session.results.partial = Some("the sweep had not ended".to_owned());
            session.results.write(path).map_err(unwritten)?;
        }
    }
    session.results.partial = cut.as_ref().map(Cut::to_string);
    let holds = search.as_ref().and_then(Search::holds);
    let at = |rate| move |run: &Run| run.arrivals == Arrivals::Poisson(rate);
    let best = holds.and_then(|rate| {
        let held = |run: &&(usize, &Run)| session.results.limits.judge(run.1) == Verdict::Holds;
        session
            .results
            .runs
            .iter()
            .enumerate()
            .filter(|(_, run)| at(rate)(run))
            .find(|run| held(&run))
            .map(|(i, _)| i)
    });
    let at_least = !search.as_ref().is_some_and(Search::is_bounded);
    if !session.results.runs.is_empty() {
        session.results.knee = Some(Knee { rate: holds, run: best, at_least, beyond });
    }
    session.hand_over(asking, &summary::sweep(&session.results))?;
    match cut {
        Some(cut) => Err(session.cut(&cut, asking.output.as_deref())),
        None => Ok(()),
    }
}

fn make_report(verb: &Report) -> Result<(), CliError> {
    let read = |path: &PathBuf| Ok((path.display().to_string(), Results::read(path).map_err(unwritten)?));
    let files = verb.files.iter().map(read).collect::<Result<Vec<_>, CliError>>()?;
    let mut out = std::io::stdout().lock();
    if verb.table {
        out.write_all(sizing::table(&files).as_bytes())?;
        return Ok(());
    }
    let page = report::page(&files, verb.gitlab_users);
    match &verb.output {
        Some(path) => {
            keep(path, page.as_bytes()).map_err(unwritten)?;
            if let Some(users) = verb.gitlab_users {
                for (_, results) in &files {
                    writeln!(out, "{}", sizing::sentence(results, users))?;
                }
            }
        }
        None if std::io::stdout().is_terminal() => {
            return Err(
                CliError::new(Exit::Usage, "the page would fill this terminal").fix("give -o report.html")
            );
        }
        None => out.write_all(page.as_bytes())?,
    }
    Ok(())
}

/// What `cargo bench` measures, for those with the sources.
const MICRO: &str = "\
The benchmarks of single parts are built from the sources:

  cargo bench --bench kernels      products of the CPU beside a plain read of the same bytes
  cargo bench --bench scheduler    a step's cost beside the device: plan, batch, commit
  cargo bench --bench sampler      a token drawn from a row of logits, by way of drawing
  cargo bench --bench request      a request's way from JSON to tokens, and an answer's to events

To compare with an earlier state of the same machine:

  cargo bench --bench sampler -- --save-baseline before
  cargo bench --bench sampler -- --baseline before
";

fn micro() -> Result<(), CliError> {
    std::io::stdout().lock().write_all(MICRO.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_limits() {
        let seconds = |text| time(text).map(|time| time.as_secs());
        assert_eq!(
            (seconds("90"), seconds("90s"), seconds("10m"), seconds("2h")),
            (Ok(90), Ok(90), Ok(600), Ok(7200))
        );
        for wrong in ["", "s", "-1", "1.5m", "10d", "99999999999999999999m", "169h"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
        assert!(positive("0").is_err() && positive("nan").is_err() && positive("7.5") == Ok(7.5));
        assert!(share("1.01").is_err() && share("NaN").is_err() && share("0") == Ok(0.0));
    }

    #[test]
    fn a_server_on_loopback_is_here() {
        let here = |url: &str| is_here(&url.parse().unwrap());
        assert!(here("http://127.0.0.1:5052") && here("https://localhost:1") && here("http://[::1]:1"));
        assert!(!here("https://hearth.example.com") && !here("http://10.0.0.1:5052"));
    }
}
