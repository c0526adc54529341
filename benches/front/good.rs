//! The traffic that is meant: completions at a fixed rate, whatever became of the ones before.

use std::io;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::served::KEY;
use super::{Way, name, runtime};

/// Completions a second.
pub const RATE: u32 = 10;
/// Who waits longer has no answer.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Good {
    way: Way,
    request: Vec<u8>,
}

/// What came back.
#[derive(Default)]
pub struct Seen {
    pub first: Vec<Duration>,
    pub whole: Vec<Duration>,
    pub failed: u64,
}

impl Good {
    pub fn new(way: Way) -> Self {
        let body = json!({"model": "ember-demo", "prompt": "def main(", "max_tokens": 16, "ignore_eos": true,
                          "temperature": 0, "stream": true})
        .to_string();
        let request = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: hearth.test\r\nconnection: close\r\nx-api-key: {KEY}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        Self { way, request: request.into_bytes() }
    }

    /// Sends completions for that long, and waits for their answers.
    pub fn for_a_while(&self, time: Duration) -> Seen {
        runtime().block_on(async {
            let (mut asked, mut seen) = (JoinSet::new(), Seen::default());
            let (begin, gap) = (Instant::now(), Duration::from_secs(1) / RATE);
            for number in 0..(time.as_secs_f64() * f64::from(RATE)) as u32 {
                // A little early or late, in the same way every round: in step with the server's own timers all would
                // meet the same moment of them.
                let shift = gap.mul_f64(f64::from(number * 7 % 10) / 20.0);
                let due = begin + gap * number + shift;
                sleep_until(due).await;
                let (way, request) = (self.way.clone(), self.request.clone());
                asked.spawn(async move { timeout(PATIENCE, ask(way, request, due)).await });
            }
            while let Some(answer) = asked.join_next().await {
                match answer {
                    Ok(Ok(Ok((first, whole)))) => {
                        seen.first.push(first);
                        seen.whole.push(whole);
                    }
                    _ => seen.failed += 1,
                }
            }
            seen
        })
    }
}

/// One completion: the time to its first token and to its end, from when it was due.
async fn ask(way: Way, request: Vec<u8>, due: Instant) -> io::Result<(Duration, Duration)> {
    let stream = TcpStream::connect(way.address).await?;
    stream.set_nodelay(true)?;
    match &way.tls {
        None => read(stream, &request, due).await,
        Some([one, _]) => read(one.connect(name(), stream).await?, &request, due).await,
    }
}

async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    request: &[u8],
    due: Instant,
) -> io::Result<(Duration, Duration)> {
    stream.write_all(request).await?;
    stream.flush().await?;
    let (mut reply, mut first) = (Vec::new(), None);
    let has = |reply: &[u8], word: &[u8]| reply.windows(word.len()).any(|here| here == word);
    loop {
        if stream.read_buf(&mut reply).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first.is_none() && has(&reply, b"data: ") {
            first = Some(due.elapsed());
        }
        if has(&reply, b"data: [DONE]") && reply.starts_with(b"HTTP/1.1 200") {
            return Ok((first.unwrap_or_default(), due.elapsed()));
        }
    }
}
