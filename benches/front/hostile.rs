//! The traffic that is not meant: a few hundred connections that hold what they can, made again as they are closed.
//!
//! One thread and one runtime for all of them, and nothing computed that can be computed once: what they cost shares the
//! machine with the server.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::rustls::ClientConnection;

use super::served::KEY;
use super::{BODY, FIRST_BYTE, HEADERS, Shared, Way, name, report, runtime};

/// Connections at once of every kind.
const EACH: u32 = 40;
/// A place is not taken anew more often than this.
pub const PACE: Duration = Duration::from_secs(2);
/// Between two drops of what drips.
const DRIP: Duration = Duration::from_millis(500);
/// Who holds a connection for longer than its limit by this much has won.
const WON: Duration = Duration::from_secs(20);

/// One way to be a nuisance.
struct Kind {
    name: &'static str,
    /// What ends it, and when at the latest.
    limit: (&'static str, u64),
    line: Line,
    first: Vec<u8>,
    drip: Vec<u8>,
}

/// What lies under the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    /// As they are, also where the server speaks TLS.
    Bare,
    /// As the server speaks it.
    Http1,
    Http2,
}

fn kinds(way: &Way) -> Vec<Kind> {
    let kind = |name, limit, line, first: &[u8], drip: &[u8]| Kind {
        name,
        limit,
        line,
        first: first.to_vec(),
        drip: drip.to_vec(),
    };
    let (first_byte, headers, body) = (("first byte", FIRST_BYTE), ("headers", HEADERS), ("body", BODY));
    let many =
        format!("GET / HTTP/1.1\r\nhost: x\r\n{}", "x-bomb: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(2000));
    let body_of = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-type: application/json\r\n\
         content-length: 100000\r\n\r\n"
    );
    let mut kinds = vec![
        kind("silence", first_byte, Line::Bare, b"", b""),
        kind("headers that drip", headers, Line::Http1, b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: ", b"a"),
        kind("a header bomb", ("bytes of headers", HEADERS), Line::Http1, many.as_bytes(), b""),
        kind("a body that trickles", body, Line::Http1, body_of.as_bytes(), b" "),
        kind("half a preface", headers, Line::Http2, b"PRI * HTTP/2.0\r\n", b""),
    ];
    if let Some([_, http2]) = &way.tls {
        // What a client says first, the same bytes for all: the server answers with its half of the keys and a signature.
        let mut hello = Vec::new();
        let client = ClientConnection::new(Arc::clone(http2.config()), name());
        let written = client.map(|mut client| client.write_tls(&mut hello));
        assert!(written.is_ok_and(|written| written.is_ok()), "a client's first words");
        kinds.push(kind("TLS that stalls", headers, Line::Bare, &[0x16, 3, 1], b""));
        kinds.push(kind("TLS that says hello and no more", headers, Line::Bare, &hello, b""));
        kinds.push(kind("a storm of resets", ("HTTP/2", HEADERS), Line::Http2, &resets(), b""));
    }
    kinds
}

/// Requests with a good key, each reset in the frame after it.
fn resets() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let mut frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        bytes.extend(&(payload.len() as u32).to_be_bytes()[1..]);
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
    };
    frame(4, 0, 0, &[]);
    // POST, https, then names and values as they are.
    let mut block = vec![0x83, 0x87];
    for (index, value) in [(4, "/v1/completions"), (1, "hearth.test")] {
        block.extend([index, value.len() as u8]);
        block.extend(value.as_bytes());
    }
    block.extend([0, 9]);
    block.extend(b"x-api-key");
    block.push(KEY.len() as u8);
    block.extend(KEY.as_bytes());
    for number in 0..500 {
        frame(1, 4, 2 * number + 1, &block);
        frame(3, 0, 2 * number + 1, &8u32.to_be_bytes());
    }
    bytes
}

/// Hostile clients at work.
pub struct Storm {
    over: oneshot::Sender<()>,
    thread: JoinHandle<Tally>,
}

/// What became of them.
#[derive(Default)]
pub struct Tally {
    kinds: BTreeMap<&'static str, Ends>,
    /// Seconds of their own processor time, and of the clock.
    processor: f64,
    clock: f64,
}

#[derive(Clone, Default)]
struct Ends {
    limit: &'static str,
    seconds: u64,
    made: u64,
    closed: u64,
    won: u64,
    /// The longest that one lived beyond its limit.
    over: Duration,
}

impl Storm {
    pub fn begin(way: &Way) -> Self {
        let way = way.clone();
        let (over, ended) = oneshot::channel();
        let thread = std::thread::spawn(move || runtime().block_on(storm(way, ended)));
        Self { over, thread }
    }

    pub fn end(self) -> Tally {
        let _ = self.over.send(());
        self.thread.join().expect("the hostile clients do not panic")
    }
}

async fn storm(way: Way, ended: oneshot::Receiver<()>) -> Tally {
    let begin = Instant::now();
    let all: Shared<BTreeMap<&'static str, Ends>> = Shared::default();
    let mut places = JoinSet::new();
    for kind in kinds(&way) {
        let kind = Arc::new(kind);
        for place in 0..EACH {
            let (way, kind, all) = (way.clone(), kind.clone(), all.clone());
            // Not all in one moment.
            let begin = PACE.mul_f64(f64::from(place) / f64::from(EACH));
            places.spawn(async move {
                sleep(begin).await;
                loop {
                    let next = Instant::now() + PACE;
                    attempt(&way, &kind, &all).await;
                    tokio::time::sleep_until(next).await;
                }
            });
        }
    }
    let _ = ended.await;
    places.shutdown().await;
    let used = getrusage(UsageWho::RUSAGE_THREAD).expect("a thread's own usage");
    let micros = used.user_time().num_microseconds() + used.system_time().num_microseconds();
    let kinds = all.lock().expect("one thread").clone();
    Tally { kinds, processor: micros as f64 / 1e6, clock: begin.elapsed().as_secs_f64() }
}

/// One connection, from its making to its end.
async fn attempt(way: &Way, kind: &Kind, all: &Shared<BTreeMap<&'static str, Ends>>) {
    let Ok(stream) = TcpStream::connect(way.address).await else { return };
    let (limit, seconds) = kind.limit;
    let ends = |change: &dyn Fn(&mut Ends)| {
        let mut all = all.lock().expect("one thread");
        change(all.entry(kind.name).or_insert_with(|| Ends { limit, seconds, ..Ends::default() }));
    };
    ends(&|ends| ends.made += 1);
    let (mut begin, time) = (Instant::now(), Duration::from_secs(seconds));
    let closed = match (&way.tls, kind.line) {
        (None, _) | (_, Line::Bare) => timeout(time + WON, hold(stream, kind)).await,
        (Some([one, two]), line) => {
            let connector = if line == Line::Http2 { two } else { one };
            let Ok(stream) = connector.connect(name(), stream).await else { return };
            begin = Instant::now();
            timeout(time + WON, hold(stream, kind)).await
        }
    };
    let over = begin.elapsed().saturating_sub(time);
    ends(&|ends| match closed {
        Ok(_) => {
            ends.closed += 1;
            ends.over = ends.over.max(over);
        }
        Err(_) => ends.won += 1,
    });
}

/// Says its first words and then drips, until the server has closed.
async fn hold<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, kind: &Kind) -> io::Result<()> {
    let mut bytes = [0; 1024];
    if !kind.first.is_empty() {
        stream.write_all(&kind.first).await?;
        stream.flush().await?;
    }
    loop {
        match timeout(DRIP, stream.read(&mut bytes)).await {
            Ok(Ok(0)) => return Ok(()),
            Ok(read) => drop(read?),
            Err(_) if kind.drip.is_empty() => {}
            Err(_) => {
                stream.write_all(&kind.drip).await?;
                stream.flush().await?;
            }
        }
    }
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.processor += other.processor;
        self.clock += other.clock;
        for (name, ends) in other.kinds {
            let mine = self.kinds.entry(name).or_default();
            (mine.limit, mine.seconds) = (ends.limit, ends.seconds);
            mine.made += ends.made;
            mine.closed += ends.closed;
            mine.won += ends.won;
            mine.over = mine.over.max(ends.over);
        }
    }

    pub fn table(&self) {
        let (at_once, clock) = (self.kinds.len() as u32 * EACH, self.clock.max(1e-9));
        let made: u64 = self.kinds.values().map(|ends| ends.made).sum();
        report(&format!(
            "  hostile connections: {at_once} places, {:.0} made a second, with {:.2} cores of their own",
            made as f64 / clock,
            self.processor / clock,
        ));
        report(&format!(
            "    {:<34} {:<22} {:>6} {:>7} {:>13} {:>13}",
            "kind", "limit", "made", "closed", "over, at most", "never closed"
        ));
        for (name, ends) in &self.kinds {
            let limit = format!("{}, {} s", ends.limit, ends.seconds);
            let (made, closed, won) = (ends.made, ends.closed, ends.won);
            let over = format!("{} ms", ends.over.as_millis());
            report(&format!("    {name:<34} {limit:<22} {made:>6} {closed:>7} {over:>13} {won:>13}"));
        }
    }
}
