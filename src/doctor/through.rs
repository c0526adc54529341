//! The server at the URL at which GitLab and the editors reach it: through the proxy, the firewall and the certificate that
//! stand in front of it.

use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue, StatusCode};
use bytes::Bytes;
use serde_json::json;

use super::{Finding, Verdict, seconds};
use crate::config::{Settings, state};
use crate::fit::BUILT_IN;
use crate::outbound::{Answer, Base, Limits, Outbound};

const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    idle: Duration::from_secs(30),
    total: Some(Duration::from_secs(60)),
    bytes: 1 << 20,
};

/// How often an answer that came late and all at once is asked for.
const TRIES: usize = 3;
/// A stream shorter than this says nothing about what holds it up on the way.
const TELLING: Duration = Duration::from_millis(300);

pub async fn through(base: &Base, settings: &Settings) -> Vec<Finding> {
    const CHECK: &str = "through";
    let failed = |what: String, fix: &str| {
        vec![
            Finding::fails(CHECK, what, fix)
                .effect("GitLab and the editors do not reach it either, if this is their way"),
        ]
    };
    let authorities = settings.gitlab.rules.authorities.as_deref();
    let server = match Outbound::new(base.clone(), authorities, LIMITS) {
        Ok(server) => server,
        Err(e) => return failed(e.to_string(), "correct gitlab.ca_file"),
    };
    let begin = Instant::now();
    let first = match server.get(base.join("/monitoring/healthz")).await {
        Ok(answer) if answer.status() == StatusCode::OK => {
            Finding::ok(CHECK, format!("{base} answers, in {}", seconds(begin)))
        }
        Ok(answer) => {
            let what = format!("{base}/monitoring/healthz answered {}", answer.status());
            return failed(what, "what stands in front of the server must pass every path on as it is");
        }
        Err(e) => {
            return failed(
                e.to_string(),
                "check the name in DNS, the certificate, the proxy and the firewall",
            );
        }
    };
    vec![first, stream(&server, settings).await]
}

/// Whether an answer arrives while it is made.
async fn stream(server: &Outbound, settings: &Settings) -> Finding {
    const CHECK: &str = "stream";
    let key = match &settings.key {
        Some(key) => key.clone(),
        None => match state::key(&settings.state_dir) {
            Ok((key, _)) => key,
            Err(e) => return Finding::fails(CHECK, e.what, e.fix),
        },
    };
    let mut finding = streamed(server, key.expose(), settings).await;
    // A proxy that holds answers back does it every time; a busy host may read one late.
    for _ in 1..TRIES {
        if finding.verdict != Verdict::Warning {
            break;
        }
        finding = streamed(server, key.expose(), settings).await;
    }
    finding
}

async fn streamed(server: &Outbound, key: &str, settings: &Settings) -> Finding {
    const CHECK: &str = "stream";
    match ask(server, key, settings).await {
        Ok(answer) if answer.status() != StatusCode::OK => Finding::fails(
            CHECK,
            format!("a streamed completion answered {}", answer.status()),
            "see the server's log; a proxy must pass the header Authorization on",
        ),
        Ok(answer) => arrival(answer).await,
        Err(what) => Finding::fails(CHECK, what, "see the server's log"),
    }
}

async fn ask(server: &Outbound, key: &str, settings: &Settings) -> Result<Answer, String> {
    let list = |mut headers: HeaderMap, key: &str| {
        let value = HeaderValue::from_str(&format!("Bearer {key}"))
            .map_err(|_| "the key cannot be sent".to_owned())?;
        headers.insert("authorization", value);
        Ok::<_, String>(headers)
    };
    let model = settings.models.first().map(|model| model.name.as_str()).or(BUILT_IN);
    let model = model.ok_or("no model is configured")?;
    let body = json!({"model": model, "prompt": "def hello_world", "max_tokens": 256, "ignore_eos": true, "stream": true});
    let headers = list(HeaderMap::new(), key)?;
    let url = server.base().join("/v1/completions");
    server.post(url, headers, Bytes::from(body.to_string())).await.map_err(|e| e.to_string())
}

async fn arrival(mut answer: Answer) -> Finding {
    const CHECK: &str = "stream";
    let begin = Instant::now();
    let mut times = Vec::new();
    loop {
        match answer.piece().await {
            Ok(Some(_)) => times.push(begin.elapsed()),
            Ok(None) => break,
            Err(e) => {
                return Finding::fails(
                    CHECK,
                    e.to_string(),
                    "a proxy must not end an answer that is still being made: at least 60 s",
                );
            }
        }
    }
    judged(&times)
}

/// From when the pieces came, since the headers.
fn judged(times: &[Duration]) -> Finding {
    const CHECK: &str = "stream";
    let (Some(first), Some(last)) = (times.first(), times.last()) else {
        return Finding::fails(CHECK, "a streamed completion was empty", "see the server's log");
    };
    let spread = *last - *first;
    match () {
        () if spread >= TELLING && times.len() > 2 => Finding::ok(
            CHECK,
            format!("an answer came in {} pieces over {:.2} s", times.len(), spread.as_secs_f64()),
        ),
        () if *last < TELLING => Finding::new(
            CHECK,
            Verdict::Note,
            "the answer was made too fast to say whether something on the way holds answers back",
        ),
        () => Finding::warns(
            CHECK,
            format!("an answer that took {:.2} s came all at once", last.as_secs_f64()),
            "switch off buffering for this server in the proxy (nginx: proxy_buffering off)",
        )
        .effect(
            "chat shows nothing until the whole answer is there, and long ones end in GitLab's time limit",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(milliseconds: &[u64]) -> Verdict {
        judged(&milliseconds.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>()).verdict
    }

    #[test]
    fn an_answer_that_comes_all_at_once_after_a_while_was_held_back() {
        assert_eq!(verdict(&[2000, 2001, 2002]), Verdict::Warning);
        assert_eq!(verdict(&[2000]), Verdict::Warning);
        assert_eq!(verdict(&[10, 300, 700, 1200]), Verdict::Ok);
        assert_eq!(verdict(&[5, 9, 30]), Verdict::Note);
        assert_eq!(verdict(&[]), Verdict::Failure);
    }
}
