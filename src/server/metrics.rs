//! Figures for Prometheus, on a port of their own: `/metrics`, in the OpenMetrics text format. On loopback nobody is asked for
//! a key; elsewhere it must be one of class `metrics`, unless the settings say otherwise. No figure names a user, a prompt or
//! a path.
//!
//! Names are dear to change: dashboards and alerts of sites stand on them, ours in `packaging/` among them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

mod measures;

use super::connections::Connections;
use super::{Door, Health, Limits, Listener, Shared, accept, guard};
use crate::duo::Gateway;
use crate::duo::figures::Figures;
use crate::gpu::sensors::{Gpus, REASONS, Reading};
use crate::served::Models;
use crate::upstream;
use measures::{Measures, Vocabulary};

type Labels = Vec<(&'static str, String)>;

/// What is counted of requests.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<Labels, Counter>,
    seconds: Family<Labels, Histogram, fn() -> Histogram>,
    /// The same under the original gateway's name.
    handlers: Family<Labels, Histogram, fn() -> Histogram>,
    reloads: Family<Labels, Counter>,
    /// What became of the API's connections.
    pub connections: Connections,
    /// Seconds that reading the models took at the start, once they are read.
    load: Arc<OnceLock<Duration>>,
    gpus: Arc<OnceLock<Gpus>>,
    /// Whether vLLM's names are told too.
    vllm: Arc<AtomicBool>,
    /// What the GitLab dialect counts.
    pub duo: Figures,
}

/// From a refusal to a long answer.
fn seconds() -> Histogram {
    Histogram::new([0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0])
}

impl Default for Metrics {
    fn default() -> Self {
        let coarse = || Histogram::new([0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]);
        Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            handlers: Family::new_with_constructor(coarse),
            reloads: Family::default(),
            connections: Connections::default(),
            load: Arc::default(),
            gpus: Arc::default(),
            vllm: Arc::default(),
            duo: Figures::default(),
        }
    }
}

impl Metrics {
    /// An answer was sent to its end, or its client left. `route` is a row of the table.
    pub fn request(&self, method: &str, route: &str, status: StatusCode, time: Duration) {
        let status_text = status.as_u16().to_string();
        let handler = [("handler", route), ("method", method), ("status", status_text.as_str())];
        let handler = handler.map(|(name, value)| (name, value.to_owned())).to_vec();
        self.handlers.get_or_create(&handler).observe(time.as_secs_f64());
        let route = ("route", route.to_owned());
        self.requests.get_or_create(&vec![route.clone(), ("status", status_text)]).inc();
        self.seconds.get_or_create(&vec![route]).observe(time.as_secs_f64());
    }

    /// The settings were read again, and put in force or not.
    pub fn reloaded(&self, well: bool) {
        let outcome = if well { "done" } else { "refused" };
        self.reloads.get_or_create(&vec![("outcome", outcome.to_owned())]).inc();
    }

    /// Reading the models took that long.
    pub fn loaded(&self, time: Duration) {
        let _ = self.load.set(time);
    }

    /// From now on GPUs are told of.
    pub fn watch(&self, gpus: Gpus) {
        let _ = self.gpus.set(gpus);
    }

    /// What the GPUs of this host say.
    pub fn gpus(&self) -> Vec<Reading> {
        self.gpus.get().map(Gpus::now).unwrap_or_default()
    }

    /// From now on figures are told under vLLM's names too.
    pub fn as_vllm(&self) {
        self.vllm.store(true, Ordering::Relaxed);
    }

    fn registry(&self, shared: &Shared) -> Registry {
        let Shared { models, health, duo, access, .. } = shared.clone();
        let mut all = Registry::default();
        let help = "From a request's headers to the end of its answer";
        all.register("http_request_duration_seconds", help, self.handlers.clone());
        self.duo.register(&mut all, &models);
        let registry = all.sub_registry_with_prefix("hearth");
        registry.register("requests", "Answers sent, by route and status", self.requests.clone());
        let help = "From a request's headers to the end of its answer";
        registry.register("request_duration_seconds", help, self.seconds.clone());
        access.register(registry);
        self.connections.register(registry);
        registry.register("reloads", "Settings read again, by what came of it", self.reloads.clone());
        // Present from the beginning, so that an alert on a change sees the first one.
        for outcome in ["done", "refused"] {
            drop(self.reloads.get_or_create(&vec![("outcome", outcome.to_owned())]));
        }
        let load = self.load.clone();
        registry
            .register_collector(Box::new(Measures { models: models.clone(), vocabulary: Vocabulary::Own }));
        registry.register_collector(Box::new(Engines { models: models.clone(), health, duo, load }));
        registry.register_collector(Box::new(Heat { metrics: self.clone() }));
        if self.vllm.load(Ordering::Relaxed) {
            all.register_collector(Box::new(Measures { models, vocabulary: Vocabulary::Vllm }));
        }
        all
    }
}

/// Reads the engines when it is asked, without disturbing them.
struct Engines {
    models: Models,
    health: Arc<Health>,
    duo: Arc<Gateway>,
    load: Arc<OnceLock<Duration>>,
}

impl fmt::Debug for Engines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engines")
    }
}

/// The GPUs of this host. Without one nothing is told.
struct Heat {
    metrics: Metrics,
}

impl fmt::Debug for Heat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Heat")
    }
}

type GpuRow = (&'static str, &'static str, fn(&Reading) -> Option<f64>);

const GPUS: [GpuRow; 5] = [
    ("gpu_temperature_celsius", "Of the GPU's die", |r| r.temperature_celsius.map(f64::from)),
    ("gpu_power_watts", "What the GPU takes", |r| r.power_watts),
    ("gpu_clock_hertz", "Of the GPU's multiprocessors", |r| r.clock_mhz.map(|mhz| f64::from(mhz) * 1e6)),
    ("gpu_memory_used_bytes", "By all processes on the GPU", |r| r.memory_used.map(|bytes| bytes as f64)),
    ("gpu_memory_bytes", "Of the GPU", |r| r.memory.map(|bytes| bytes as f64)),
];

impl Collector for Heat {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let gpus = self.metrics.gpus();
        if gpus.is_empty() {
            return Ok(());
        }
        for (name, help, of) in GPUS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for gpu in &gpus {
                if let Some(value) = of(gpu) {
                    let label = [("gpu", gpu.gpu.to_string())];
                    ConstGauge::new(value).encode(metric.encode_family(&label)?)?;
                }
            }
        }
        let help = "1 while something holds the GPU's clocks back";
        let mut throttled = encoder.encode_descriptor("gpu_throttled", help, None, MetricType::Gauge)?;
        for gpu in &gpus {
            for (reason, _) in REASONS {
                let labels = [("gpu", gpu.gpu.to_string()), ("reason", reason.to_owned())];
                let held = gpu.throttled.iter().any(|held| held == reason);
                ConstGauge::new(u64::from(held)).encode(throttled.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

type UpstreamRow = (&'static str, &'static str, MetricType, fn(&upstream::Status) -> u64);

const UPSTREAMS: [UpstreamRow; 3] = [
    ("upstream_requests", "Requests for an upstream", MetricType::Counter, |s| s.requests),
    ("upstream_failures", "Requests that an upstream did not answer to the end", MetricType::Counter, |s| {
        s.failures
    }),
    ("upstream_running", "Requests that an upstream works on", MetricType::Gauge, |s| s.running),
];

impl Collector for Engines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Blocks of keys and values, by what they are";
        let mut blocks = encoder.encode_descriptor("kv_blocks", help, None, MetricType::Gauge)?;
        for model in self.models.iter() {
            let status = model.engine.status();
            let free = status.blocks_total.saturating_sub(status.blocks_used);
            for (state, count) in [("used", status.blocks_used), ("free", free)] {
                let labels = [("model", model.name.clone()), ("state", state.to_owned())];
                ConstGauge::new(u64::from(count)).encode(blocks.encode_family(&labels)?)?;
            }
        }
        if let Some(time) = self.load.get() {
            let help = "Reading the models at the start";
            let load = encoder.encode_descriptor("model_load_seconds", help, None, MetricType::Gauge)?;
            ConstGauge::new(time.as_secs_f64()).encode(load)?;
        }
        let help = "1, with what this process is";
        let mut build = encoder.encode_descriptor("build_info", help, None, MetricType::Gauge)?;
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        ConstGauge::new(1u64).encode(build.encode_family(&labels)?)?;
        let help = "1 while no new work is taken";
        let draining = encoder.encode_descriptor("draining", help, None, MetricType::Gauge)?;
        ConstGauge::new(u64::from(self.health.draining())).encode(draining)?;
        let mut upstreams: Vec<_> = self.models.upstream().map(|m| &m.upstream).collect();
        upstreams.dedup_by(|a, b| Arc::ptr_eq(a, b));
        for (name, help, kind, of) in UPSTREAMS {
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for upstream in &upstreams {
                let (label, value) = ([("upstream", upstream.name.clone())], of(&upstream.status()));
                let value_of = metric.encode_family(&label)?;
                match kind {
                    MetricType::Gauge => ConstGauge::new(value).encode(value_of)?,
                    _ => ConstCounter::new(value).encode(value_of)?,
                }
            }
        }
        if let Some(age) = self.duo.identity.keys_age() {
            let (name, help) = ("gitlab_keys_age_seconds", "Since GitLab's keys were fetched last");
            let of_keys = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(age.as_secs_f64()).encode(of_keys)?;
        }
        let help = "Requests whose answer is not sent yet";
        let in_flight = encoder.encode_descriptor("requests_in_flight", help, None, MetricType::Gauge)?;
        ConstGauge::new(self.health.in_flight()).encode(in_flight)
    }
}

/// Binds the port. The task ends with the runtime. `open`: to everybody who reaches it.
pub async fn serve(address: SocketAddr, shared: &Shared, open: bool) -> std::io::Result<SocketAddr> {
    serve_on(Listener::bind(address).await?, Door::default(), shared, open)
}

/// The same on a socket that is there, for those whom the door lets in.
pub fn serve_on(listener: Listener, door: Door, shared: &Shared, open: bool) -> std::io::Result<SocketAddr> {
    let bound = listener.address()?;
    let registry = Arc::new(shared.metrics.registry(shared));
    let router = Router::new().route("/metrics", get(text)).with_state(registry);
    let router = match open {
        true => router,
        false => router.layer(from_fn_with_state(shared.access.clone(), guard::metrics)),
    };
    let limits = Limits { connections: 64, ..Limits::default() };
    tokio::spawn(accept::run(vec![listener], door, router, limits, std::future::pending()));
    Ok(bound)
}

/// All figures as text, for who is not Prometheus.
pub fn text_of(shared: &Shared) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = encode(&mut text, &shared.metrics.registry(shared));
    text
}

async fn text(State(registry): State<Arc<Registry>>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
