//! The way from a verb to the running server, and the verbs that only tell it something: `hearth reload`, `hearth
//! drain`.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{Method, Request, StatusCode, header};
use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::{CliError, Common, Exit};
use crate::admin::socket;
use crate::config::Settings;

/// Which server.
#[derive(Args, Clone, Default)]
pub struct Which {
    /// The running server's state directory
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The running server's admin socket, if it is not where the settings say
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

impl Which {
    pub fn settings(&self, common: &Common) -> Result<Settings, CliError> {
        let mut layers = common.layers()?;
        for (flag, name, value) in
            [("--state-dir", "server.state_dir", &self.state_dir), ("--socket", "admin.socket", &self.socket)]
        {
            if let Some(value) = value {
                layers.flag(flag, name, value.display().to_string())?;
            }
        }
        Ok(Settings::of(&layers)?)
    }
}

/// A running server's socket.
pub struct Line {
    place: PathBuf,
}

impl Line {
    /// The first place at which a server answers.
    pub async fn open(settings: &Settings) -> Result<Self, CliError> {
        let places = socket::places(settings);
        let mut denied = None;
        for place in &places {
            match UnixStream::connect(place).await {
                Ok(_) => return Ok(Self { place: place.clone() }),
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => denied = Some(place),
                Err(_) => {}
            }
        }
        if let Some(place) = denied {
            let what = "the running server's admin socket may not be opened by this user";
            let fix = "use sudo, or join the socket's group (hearth, where the package made it)";
            return Err(CliError::new(Exit::NotRunning, what).at(place.display().to_string()).fix(fix));
        }
        let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        Err(CliError::new(Exit::NotRunning, "no server is running here")
            .at(format!("nothing answers at {}", places.join(", ")))
            .fix("start it (hearth serve, systemctl start hearth), or name its --state-dir"))
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Result<Reply, CliError> {
        let failed = |e: &dyn std::fmt::Display| {
            CliError::new(Exit::NotRunning, format!("the running server does not answer: {e}"))
                .at(self.place.display().to_string())
                .fix("see its log: journalctl -u hearth")
        };
        let stream = UnixStream::connect(&self.place).await.map_err(|e| failed(&e))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        let request = match body {
            Some(body) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(body.to_string()))),
            None => request.body(Full::default()),
        };
        let request = request.expect("bug: a request of our own is well formed");
        let answer = sender.send_request(request).await.map_err(|e| failed(&e))?;
        Ok(Reply { status: answer.status(), body: answer.into_body() })
    }

    /// The answer's JSON, or the server's reason as this verb's error.
    pub async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, CliError> {
        let answer = self.send(method, path, body).await?;
        let status = answer.status;
        let value: Value = serde_json::from_str(&answer.text().await?).unwrap_or_default();
        if status.is_success() {
            return Ok(value);
        }
        let exit = match status {
            StatusCode::UNPROCESSABLE_ENTITY => Exit::Config,
            _ => Exit::Failed,
        };
        let said = &value["error"];
        let mut error = CliError::new(exit, said["what"].as_str().unwrap_or("the server refuses that"));
        if let Some(at) = said["at"].as_str() {
            error = error.at(at);
        }
        if let Some(fix) = said["fix"].as_str() {
            error = error.fix(fix);
        }
        Err(error)
    }

    pub async fn text(&self, path: &str) -> Result<String, CliError> {
        self.send(Method::GET, path, None).await?.text().await
    }

    /// Gives each event of a stream to `each` until it says no or the server ends it.
    pub async fn events(
        &self,
        path: &str,
        mut each: impl FnMut(&str) -> Result<bool, CliError>,
    ) -> Result<(), CliError> {
        let mut body = self.send(Method::GET, path, None).await?.body;
        let mut held = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { break };
            held.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = held.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = held.drain(..end + 2).collect();
                let event = String::from_utf8_lossy(&event);
                if let Some(data) = event.strip_prefix("data: ")
                    && !each(data.trim_end())?
                {
                    return Ok(());
                }
            }
        }
        Err(CliError::new(Exit::NotRunning, "the server has ended"))
    }
}

struct Reply {
    status: StatusCode,
    body: Incoming,
}

impl Reply {
    async fn text(self) -> Result<String, CliError> {
        let cut = |_| CliError::new(Exit::NotRunning, "the server ended in the middle of its answer");
        let bytes = self.body.collect().await.map_err(cut)?.to_bytes();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[derive(Args)]
pub struct Reload {
    /// Wait for the result and say it; without, the log has it
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    which: Which,
}

pub fn reload(verb: Reload, common: &Common) -> Result<(), CliError> {
    let settings = verb.which.settings(common)?;
    super::runtime()?.block_on(async {
        let line = Line::open(&settings).await?;
        let answer = line.ask(Method::POST, &format!("/admin/reload?wait={}", verb.wait), None).await?;
        match answer["reloaded"].as_array() {
            Some(parts) => {
                let parts: Vec<&str> = parts.iter().filter_map(Value::as_str).collect();
                eprintln!("reloaded: {}", parts.join(", "));
            }
            None => eprintln!("the server reloads; its log has the result"),
        }
        Ok(())
    })
}

#[derive(Args)]
pub struct Drain {
    /// Wait until nothing is in flight
    #[arg(long)]
    wait: bool,
    /// Seconds to wait at most, beyond server.drain_delay [default: server.drain]
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    timeout: Option<u64>,
    #[command(flatten)]
    which: Which,
}

pub fn drain(verb: Drain, common: &Common) -> Result<(), CliError> {
    let settings = verb.which.settings(common)?;
    super::runtime()?.block_on(async {
        let line = Line::open(&settings).await?;
        let answer = line.ask(Method::POST, "/admin/drain", Some(json!({}))).await?;
        let mut left = answer["in_flight"].as_u64().unwrap_or(0);
        eprintln!("draining: readiness says no; {left} requests in flight");
        if !verb.wait {
            return Ok(());
        }
        let limits = settings.front.limits;
        // Whoever sends requests here needs that long to notice.
        let noticed = Instant::now() + limits.drain_delay;
        let end = noticed + verb.timeout.map_or(limits.drain, Duration::from_secs);
        while left > 0 || Instant::now() < noticed {
            if Instant::now() >= end {
                let what = format!("{left} requests are still in flight");
                return Err(CliError::new(Exit::Busy, what).fix("wait longer: --timeout SECONDS"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            let status = line.ask(Method::GET, "/admin/status", None).await?;
            left = status["in_flight"].as_u64().unwrap_or(0);
        }
        eprintln!("drained: nothing is in flight");
        Ok(())
    })
}
