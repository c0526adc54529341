//! Good traffic beside hostile clients, on the embedded model: how much slower completions are while the front door is busy
//! with callers that hold connections, drip bytes and never mean it.
//!
//!     cargo bench --bench front              # five minutes; -- --quick: seconds
//!
//! Completions of a short prompt and 16 tokens come at a fixed rate, each on a connection of its own, and their time counts
//! from when they should have been made. Rounds without and with hostile clients take turns, so that what else the machine
//! does meets both; a figure is the median over the rounds of each sort. The limits of the front door are short here (1 s to
//! the first byte, 2 s for headers, 3 s for a body), so that a round sees every one of them at work many times.
//!
//! What is expected: the ratio of the medians of p95 is at most 1.10, in cleartext and over TLS, for the first token and for
//! the whole answer. A connection that says nothing costs a timer and a file descriptor; what costs is a handshake, of
//! which a hostile client gets one for each place it holds and no faster than the limits give the place back. Client and
//! server share the machine: the hostile thread's own processor time is in the table, and is none of the server's doing.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/front/authority.rs"]
mod authority;
mod good;
mod hostile;
#[path = "../../tests/served/mod.rs"]
mod served;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use authority::Authority;
use good::Good;
use hostile::{Storm, Tally};
use served::Served;
use tokio_rustls::TlsConnector;

/// The limits of this server, in seconds.
pub const FIRST_BYTE: u64 = 1;
pub const HEADERS: u64 = 2;
pub const BODY: u64 = 3;

/// After this long no round begins.
const PATIENCE: Duration = Duration::from_secs(320);

/// How the server is reached.
#[derive(Clone)]
pub struct Way {
    pub address: SocketAddr,
    /// HTTP/1.1 and HTTP/2 inside TLS; `None`: cleartext.
    pub tls: Option<[TlsConnector; 2]>,
}

struct Plan {
    rounds: usize,
    round: Duration,
}

/// The medians of one sort of rounds.
#[derive(Default)]
struct Rounds {
    figures: BTreeMap<&'static str, Vec<f64>>,
    failed: u64,
    /// Cores that the server kept busy, round by round.
    cores: Vec<f64>,
}

fn main() {
    // `cargo test --benches` runs this too: a short pass that shows it works.
    let arguments: Vec<String> = std::env::args().collect();
    let quick = !arguments.iter().any(|a| a == "--bench") || arguments.iter().any(|a| a == "--quick");
    let seconds = std::env::var("HEARTH_BENCH_SECONDS").ok().and_then(|s| s.parse().ok());
    let plan = Plan {
        rounds: if quick { 1 } else { 7 },
        round: Duration::from_secs_f64(seconds.unwrap_or(if quick { 4.0 } else { 9.0 })),
    };
    let begin = Instant::now();
    let authority = Authority::new();
    for encrypted in [false, true] {
        measure(&plan, &authority, encrypted, begin);
    }
}

fn measure(plan: &Plan, authority: &Authority, encrypted: bool, begin: Instant) {
    let limits = [FIRST_BYTE, HEADERS, BODY].map(|seconds| seconds.to_string());
    let files = authority.files(false);
    let (certificate, key) = (files.certificate.display().to_string(), files.key.display().to_string());
    let mut environment = vec![
        ("HEARTH__SERVER__FIRST_BYTE_TIMEOUT", limits[0].as_str()),
        ("HEARTH__SERVER__HEADER_TIMEOUT", &limits[1]),
        ("HEARTH__SERVER__BODY_TIMEOUT", &limits[2]),
    ];
    if encrypted {
        environment.push(("HEARTH__SERVER__TLS_CERT", &certificate));
        environment.push(("HEARTH__SERVER__TLS_KEY", &key));
    }
    let served = Served::start_with(&["--with-parent"], &environment);
    let address = served.url.rsplit('/').next().and_then(|at| at.parse().ok());
    let connector = |protocol: &str| TlsConnector::from(authority.trusting(&[protocol], None));
    let way = Way {
        address: address.expect("the server says its address"),
        tls: encrypted.then(|| ["http/1.1", "h2"].map(connector)),
    };
    let good = Good::new(way.clone());
    // The first answers fill caches and pools that all later ones find.
    good.for_a_while(Duration::from_secs(1));
    let (mut alone, mut beside, mut tally) = (Rounds::default(), Rounds::default(), Tally::default());
    for round in 0..plan.rounds {
        if begin.elapsed() > PATIENCE {
            report(&format!("only {round} rounds: the time is over"));
            break;
        }
        // The second of two is not always of the same sort.
        for hostile in [round % 2 == 0, round % 2 == 1] {
            let storm = hostile.then(|| Storm::begin(&way));
            // Until all of it stands, or what the last one left is gone.
            std::thread::sleep(if hostile { hostile::PACE } else { Duration::from_millis(500) });
            let (before, start) = (processor_time(served.pid()), Instant::now());
            let seen = good.for_a_while(plan.round);
            let busy = (processor_time(served.pid()) - before) / start.elapsed().as_secs_f64();
            let rounds = if hostile { &mut beside } else { &mut alone };
            rounds.add(seen, busy);
            if let Some(storm) = storm {
                tally.add(storm.end());
            }
        }
    }
    table(if encrypted { "TLS" } else { "cleartext" }, plan, &alone, &beside);
    tally.table();
    let refused = served.metrics().1;
    for line in refused.lines().filter(|line| line.starts_with("hearth_connections_")) {
        report(line);
    }
    report("");
    served.stop();
}

impl Rounds {
    fn add(&mut self, mut seen: good::Seen, cores: f64) {
        self.failed += seen.failed;
        self.cores.push(cores);
        seen.first.sort_unstable();
        seen.whole.sort_unstable();
        for (name, share, times) in [
            ("first token p50", 0.5, &seen.first),
            ("first token p95", 0.95, &seen.first),
            ("whole answer p50", 0.5, &seen.whole),
            ("whole answer p95", 0.95, &seen.whole),
        ] {
            let at = (times.len().max(1) - 1) as f64 * share;
            let figure = times.get(at.round() as usize).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
            self.figures.entry(name).or_default().push(figure);
        }
    }
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn table(way: &str, plan: &Plan, alone: &Rounds, beside: &Rounds) {
    let seconds = plan.round.as_secs_f64();
    let what = format!("{way}: {} rounds of {seconds} s, {} completions/s", alone.cores.len(), good::RATE);
    report(&format!("{what:<46} {:>9} {:>9} {:>7}", "alone", "beside", "ratio"));
    for (name, figures) in &alone.figures {
        let (without, with) = (median(figures), beside.figures.get(name).map_or(f64::NAN, |f| median(f)));
        let name = format!("{name}, ms");
        report(&format!("  {name:<44} {without:>9.1} {with:>9.1} {:>7.3}", with / without));
    }
    let (without, with) = (median(&alone.cores), median(&beside.cores));
    report(&format!("  {:<44} {without:>9.2} {with:>9.2}", "the server's processor time, cores"));
    report(&format!("  {:<44} {:>9} {:>9}", "completions that failed", alone.failed, beside.failed));
}

/// Seconds of processor time that a process has used.
fn processor_time(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("stat of a running process");
    // After the name, which may hold anything, the first field is the state; 12 and 13 are ticks of a hundredth second.
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect::<Vec<_>>());
    let ticks = |at: usize| fields.as_ref()?.get(at)?.parse::<f64>().ok();
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / 100.0
}

/// A runtime of one thread.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime of one thread")
}

/// The name in the certificate.
pub fn name() -> rustls_pki_types::ServerName<'static> {
    "hearth.test".try_into().expect("a name")
}

pub type Shared<T> = Arc<std::sync::Mutex<T>>;

#[allow(clippy::print_stdout)] // the figures are what this program is for
pub fn report(line: &str) {
    println!("{line}");
}
