//! The running server, asked as GitLab and as an editor ask it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue, StatusCode};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Finding, Verdict, seconds, tls};
use crate::config::Settings;
use crate::duo::identity::Bypass;
use crate::duo::identity::own::OwnKeys;
use crate::outbound::{Base, Limits, Outbound, OutboundError};

const LIMITS: Limits = Limits {
    connect: Duration::from_secs(3),
    idle: Duration::from_secs(30),
    total: Some(Duration::from_secs(60)),
    bytes: 1 << 20,
};

/// GitLab's health check waits this long for a completion.
const HEALTH_CHECK: Duration = Duration::from_secs(3);

pub async fn gateway(settings: &Settings) -> Vec<Finding> {
    let listen = settings.listen[0];
    let server = match reach(settings, listen) {
        Ok(server) => server,
        Err(e) => return vec![Finding::fails("server", e.to_string(), "see the error")],
    };
    let base = server.base().clone();
    if settings.front.tls.as_ref().is_some_and(|files| files.clients.is_some()) {
        let what = "the server asks for certificates of its callers (server.client_ca), and doctor has none: it was not asked";
        return vec![Finding::new("server", Verdict::Note, what)];
    }
    let mut findings = vec![match server.get(base.join("/monitoring/healthz")).await {
        Ok(answer) if answer.status() == StatusCode::OK => Finding::ok("server", format!("{base} answers")),
        Ok(answer) => Finding::fails(
            "server",
            format!("{base}/monitoring/healthz answered {}", answer.status()),
            "something else listens there: check server.listen",
        ),
        Err(e) => {
            let fix =
                "start it (`hearth serve`), or check server.listen; what follows needs a running server";
            return vec![Finding::fails("server", e.to_string(), fix)];
        }
    }];
    if settings.listen.iter().all(|listen| listen.ip().is_loopback()) {
        findings.push(Finding::warns(
            "listen",
            format!("server.listen is {listen}: only this machine reaches it"),
            "listen on an address that GitLab reaches, like 0.0.0.0:5052",
        ));
    }
    findings.push(strangers(&server).await);
    findings.push(ready(&server).await);
    findings.push(completion(&server, settings).await);
    findings
}

/// The way from this machine to a listener that may be bound to every address and speak TLS under a name of its own.
fn reach(settings: &Settings, listen: SocketAddr) -> Result<Outbound, OutboundError> {
    let ip = match listen.ip() {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    let address = SocketAddr::new(ip, listen.port());
    let base = |url: String| url.parse::<Base>().expect("bug: an address makes a URL");
    let Some(files) = &settings.front.tls else {
        return Outbound::new(base(format!("http://{address}")), None, LIMITS);
    };
    let host = tls::host(&files.certificate, address);
    // Its own certificate is trusted beside the system's: whether others trust it is for `--through` to say.
    let site = settings.gitlab.rules.authorities.as_deref();
    let trusted: Vec<&Path> = [files.certificate.as_path()].into_iter().chain(site).collect();
    Outbound::at(base(format!("https://{host}:{}", address.port())), address, &trusted, LIMITS)
}

/// The installation guide tells administrators to look for this very text.
async fn strangers(server: &Outbound) -> Finding {
    let expected = json!({"error": "No authorization header presented"});
    let answer = match server.get(server.base().join("/")).await {
        Ok(answer) => answer,
        Err(e) => return Finding::fails("closed", e.to_string(), "see the server's log"),
    };
    let status = answer.status();
    let body = answer.bytes().await.ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
    match status == StatusCode::UNAUTHORIZED && body == Some(expected) {
        true => Finding::ok("closed", "strangers get 401 No authorization header presented"),
        false => Finding::warns(
            "closed",
            format!("strangers get {status}"),
            "unless gitlab.bypass is on, something else answers on this port",
        ),
    }
}

async fn ready(server: &Outbound) -> Finding {
    match server.get(server.base().join("/monitoring/ready")).await.map(|answer| answer.status()) {
        Ok(StatusCode::OK) => Finding::ok("ready", "the models and GitLab's keys are there"),
        Ok(status) => Finding::fails(
            "ready",
            format!(
                "/monitoring/ready answers {status}: a model is not loaded, or GitLab's keys were never fetched"
            ),
            "see `gitlab` above and the server's log",
        ),
        Err(e) => Finding::fails("ready", e.to_string(), "see the server's log"),
    }
}

/// The completion of GitLab's health check, with a token as editors have it.
async fn completion(server: &Outbound, settings: &Settings) -> Finding {
    let check = "complete";
    let keys = &settings.gitlab;
    if keys.rules.gitlab.is_none() && keys.rules.bypass == Bypass::Off {
        return Finding::new(
            check,
            Verdict::Note,
            "not asked: without gitlab.url nobody has a token for completion",
        );
    }
    let own = match OwnKeys::open(&settings.state_dir, keys.signing_key.clone(), keys.validation_key.clone())
    {
        Ok(own) => own,
        Err(e) => return Finding::fails(check, e.what, e.fix),
    };
    let Some(headers) = editor(&own, &keys.rules.audience) else {
        return Finding::fails(
            check,
            "no token can be signed",
            "replace the signing key: `hearth keys rotate --signing`",
        );
    };
    let body = json!({
        "prompt_version": 1,
        "current_file": {
            "file_name": "test.rb",
            "content_above_cursor": "def hello_world",
            "content_below_cursor": "",
        },
    });
    let begin = Instant::now();
    let url = server.base().join("/v2/code/completions");
    let answer = match server.post(url, headers, Bytes::from(body.to_string())).await {
        Ok(answer) => answer,
        Err(OutboundError::Time { .. }) => {
            let what = format!("no completion of `def hello_world` within {}", seconds(begin));
            return Finding::fails(check, what, "see the log; a smaller model or a GPU answers sooner");
        }
        Err(e) => return Finding::fails(check, e.to_string(), "see the server's log"),
    };
    let status = answer.status();
    let text = answer.bytes().await.unwrap_or_default();
    let json: Value = serde_json::from_slice(&text).unwrap_or_default();
    if status == StatusCode::UNAUTHORIZED {
        let fix = "run this as the server's user and with its --state-dir, so that both have the same signing key; \
                   after `hearth keys rotate --signing` restart the server";
        return Finding::fails(check, "the server does not know the key in this state directory", fix);
    }
    if status != StatusCode::OK {
        let shown: String = String::from_utf8_lossy(&text).chars().take(200).collect();
        return Finding::fails(
            check,
            format!("a completion answered {status}: {shown}"),
            "see the server's log",
        );
    }
    let blank = json["choices"][0]["text"].as_str().is_none_or(|text| text.trim().is_empty());
    let took = seconds(begin);
    match () {
        () if blank => Finding::warns(
            check,
            format!("`def hello_world` was completed with nothing, in {took}"),
            "GitLab's health check wants a text: try another model for code completion",
        ),
        () if begin.elapsed() > HEALTH_CHECK => Finding::warns(
            check,
            format!("`def hello_world` took {took}; GitLab's health check waits 3 s and editors 5 s"),
            "try again on a warm server; then a smaller or quantised model, or a GPU",
        ),
        () => Finding::ok(
            check,
            format!("`def hello_world` was completed in {took} (GitLab waits 3 s, editors 5 s)"),
        ),
    }
}

/// The headers of an editor.
fn editor(own: &OwnKeys, audience: &str) -> Option<HeaderMap> {
    let now = std::time::UNIX_EPOCH.elapsed().ok()?.as_secs();
    let minted = own.mint(audience, "doctor", &["complete_code"], &Default::default(), now)?;
    let mut headers = HeaderMap::new();
    headers.insert("authorization", HeaderValue::from_str(&format!("Bearer {}", minted.token)).ok()?);
    headers.insert("x-gitlab-authentication-type", HeaderValue::from_static("oidc"));
    headers.insert("x-gitlab-global-user-id", HeaderValue::from_static("doctor"));
    Some(headers)
}
