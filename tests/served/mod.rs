//! A running Hearth: the binary, on a free port of the loopback, with a key and a state directory of its own.
//!
//! Used by the black-box tests and by the serving benchmarks.

#![allow(dead_code)] // each test binary uses its part

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

pub const KEY: &str = "served-by-a-test-0123456789";

pub struct Served {
    child: Child,
    /// `http://127.0.0.1:PORT`
    pub url: String,
    /// `http://127.0.0.1:PORT/metrics`
    metrics: String,
    /// Everything it wrote to standard error so far.
    pub log: Arc<Mutex<String>>,
    state: tempfile::TempDir,
    agent: ureq::Agent,
}

/// One streamed completion as a client sees it.
#[derive(Debug, Default)]
pub struct Streamed {
    pub text: String,
    pub first: Option<Duration>,
    pub gaps: Vec<Duration>,
    pub total: Duration,
    pub tokens: u64,
    pub finish: Option<String>,
    pub done: bool,
    pub error: Option<String>,
}

impl Served {
    /// Starts `hearth serve` and waits until it says where it listens.
    pub fn start(args: &[&str]) -> Self {
        Self::start_with(args, &[])
    }

    /// The same with variables in its environment.
    pub fn start_with(args: &[&str], environment: &[(&str, &str)]) -> Self {
        let state = tempfile::tempdir().expect("a temporary directory");
        let mut child = Command::new(env!("CARGO_BIN_EXE_hearth"))
            .args(["serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--state-dir"])
            .arg(state.path())
            .args(args)
            .env("HEARTH_KEY", KEY)
            .env("HEARTH__CONSOLE__LISTEN", "")
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stderr = child.stderr.take().expect("standard error is piped");
        let log = Arc::new(Mutex::new(String::new()));
        let (found, address) = std::sync::mpsc::channel();
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // Other lines may name other addresses: an upstream's, GitLab's.
                let metrics = line.strip_prefix("metrics: ");
                let api = line.strip_prefix("hearth ").and_then(|line| Some(line.rsplit_once(" at ")?.1));
                if let Some(url) = metrics.or(api) {
                    let _ = found.send((metrics.is_some(), url.trim_end_matches('/').to_owned()));
                }
                let mut log = kept.lock().expect("the log is not poisoned");
                log.push_str(&line);
                log.push('\n');
            }
        });
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_idle_connections(0)
            .timeout_global(Some(Duration::from_secs(300)))
            .build()
            .new_agent();
        let (mut url, mut metrics) = (None, None);
        while url.is_none() || metrics.is_none() {
            match address.recv_timeout(Duration::from_secs(120)) {
                Ok((true, at)) => metrics = Some(at),
                Ok((false, at)) => url = Some(at),
                Err(_) => {
                    let _ = child.kill();
                    panic!(
                        "no address after two minutes; it said:\n{}",
                        log.lock().expect("the log is not poisoned")
                    );
                }
            }
        }
        let (url, metrics) = (url.unwrap_or_default(), metrics.unwrap_or_default());
        let served = Self { child, url, metrics, log, state, agent };
        served.wait_ready();
        served
    }

    /// Its state directory.
    pub fn state(&self) -> &std::path::Path {
        self.state.path()
    }

    fn wait_ready(&self) {
        // The line with the address comes when the models are read; whose authority it has over TLS is not known here.
        if self.url.starts_with("https") {
            return;
        }
        let end = Instant::now() + Duration::from_secs(120);
        while Instant::now() < end {
            if let Ok(answer) = self.agent.get(format!("{}/health/ready", self.url)).call()
                && answer.status() == 200
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!(
            "not ready after two minutes; it said:\n{}",
            self.log.lock().expect("the log is not poisoned")
        );
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        let pages = std::fs::read_to_string(format!("/proc/{}/statm", self.pid()))
            .expect("statm of a running process");
        let resident: u64 =
            pages.split(' ').nth(1).expect("statm has seven fields").parse().expect("a count of pages");
        resident * 4096
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        let answer = self
            .agent
            .get(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {KEY}"))
            .call()
            .expect("an answer");
        let status = answer.status().as_u16();
        (status, answer.into_body().read_to_string().unwrap_or_default())
    }

    pub fn metrics(&self) -> (u16, String) {
        let answer = self.agent.get(&self.metrics).call().expect("an answer");
        let status = answer.status().as_u16();
        (status, answer.into_body().read_to_string().unwrap_or_default())
    }

    /// The sum of a metric over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let (status, text) = self.metrics();
        assert_eq!(status, 200, "{text}");
        text.lines()
            .filter(|line| line.starts_with(name) && !line.starts_with('#'))
            .map(|line| {
                line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok()).expect("a metric has a value")
            })
            .sum()
    }

    /// Waits until it holds no request, then no block may be held either.
    pub fn idle(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let running = self.metric("hearth_requests_running") + self.metric("hearth_queue_depth");
            let held = self.metric("hearth_kv_usage_ratio");
            if running == 0.0 && held == 0.0 {
                return;
            }
            assert!(Instant::now() < end, "{running} requests and {held} of the blocks are still held");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer = self
            .agent
            .post(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {KEY}"))
            .send_json(body)
            .expect("an answer");
        let status = answer.status().as_u16();
        (status, answer.into_body().read_json().unwrap_or(Value::Null))
    }

    /// Streams `/v1/completions`; `keep_on` is asked after every event and `false` drops the connection.
    pub fn stream(&self, body: &Value, mut keep_on: impl FnMut(&Streamed) -> bool) -> Streamed {
        let start = Instant::now();
        let mut seen = Streamed::default();
        let answer = match self
            .agent
            .post(format!("{}/v1/completions", self.url))
            .header("authorization", format!("Bearer {KEY}"))
            .send_json(body)
        {
            Ok(answer) => answer,
            Err(error) => {
                seen.error = Some(error.to_string());
                return seen;
            }
        };
        if answer.status() != 200 {
            let status = answer.status();
            seen.error =
                Some(format!("{status}: {}", answer.into_body().read_to_string().unwrap_or_default()));
            return seen;
        }
        let mut last = start;
        for line in BufReader::new(Box::new(answer.into_body().into_reader()) as Box<dyn Read>).lines() {
            let line = match line {
                Ok(line) => line,
                Err(error) => {
                    seen.error = Some(error.to_string());
                    break;
                }
            };
            let Some(data) = line.strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                seen.done = true;
                break;
            }
            let event: Value = serde_json::from_str(data).expect("an event is JSON");
            if let Some(error) = event.get("error") {
                seen.error = Some(error.to_string());
                break;
            }
            if let Some(count) = event["usage"]["completion_tokens"].as_u64() {
                seen.tokens = count;
            }
            let Some(choice) = event["choices"].get(0) else { continue };
            let now = Instant::now();
            match seen.first {
                None => seen.first = Some(now - start),
                Some(_) => seen.gaps.push(now - last),
            }
            last = now;
            seen.text.push_str(choice["text"].as_str().unwrap_or_default());
            if let Some(reason) = choice["finish_reason"].as_str() {
                seen.finish = Some(reason.to_owned());
            }
            if !keep_on(&seen) {
                break;
            }
        }
        seen.total = start.elapsed();
        seen
    }

    /// Asks it to stop as systemd would, and waits.
    pub fn stop(mut self) -> std::process::ExitStatus {
        // SIGTERM through kill(1): the tests hold no unsafe code.
        let _ = Command::new("kill").arg(self.pid().to_string()).status();
        self.child.wait().expect("the binary ends")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
