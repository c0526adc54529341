//! The state of the server as one document: what `hearth status`, the console and its stream show.

use serde::{Deserialize, Serialize};

use super::history::{Look, Rates, share};
use super::{Admin, Reloaded};
use crate::config::Settings;
use crate::gpu::sensors::Reading;
use crate::log::RECENT;
use crate::log::prompts::PROMPTS;
use crate::log::recent::Trouble;
use crate::store::Papers;

/// Troubles that are shown.
const TROUBLES: usize = 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    /// `ready`, `draining`, or `failing` when an engine has stopped.
    pub state: String,
    /// RFC 3339.
    pub time: String,
    pub uptime_s: u64,
    pub api: String,
    pub metrics: Option<String>,
    pub console: Option<String>,
    /// Requests whose answer is not sent yet.
    pub in_flight: usize,
    /// All models of this process together.
    pub now: Figures,
    pub models: Vec<ModelStatus>,
    pub upstreams: Vec<UpstreamStatus>,
    pub device: String,
    /// Empty where there is none, or it is not asked.
    pub gpus: Vec<Reading>,
    /// Memory of this process, in bytes.
    pub resident: u64,
    pub gitlab: Option<String>,
    /// Seconds since GitLab's keys were fetched.
    pub gitlab_keys_age_s: Option<u64>,
    /// Seconds for which prompts still go into the log.
    pub prompts_logged_s: Option<u64>,
    pub last_reload: Option<Reloaded>,
    pub banners: Vec<Banner>,
    pub troubles: Vec<Trouble>,
}

/// Something that whoever looks should know first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Banner {
    /// `note`, `warn` or `fail`.
    pub level: String,
    pub text: String,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    pub tokens_per_s: f64,
    pub prompt_tokens_per_s: f64,
    pub requests_per_s: f64,
    pub running: u32,
    pub waiting: u32,
    pub queued_tokens: u64,
    pub blocks_used: u32,
    pub blocks: u32,
    pub kv_ratio: f64,
    pub first_token_ms: Latency,
    pub between_tokens_ms: Latency,
    pub queue_wait_ms: Latency,
    /// Share of prompt tokens found in the prefix cache in the last minute.
    pub cached_ratio: Option<f64>,
    pub prompt_tokens: u64,
    pub answer_tokens: u64,
    pub requests: u64,
}

/// Of the last minute, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    pub p50: Option<f64>,
    pub p95: Option<f64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelStatus {
    pub name: String,
    pub aliases: Vec<String>,
    pub family: String,
    pub context: u32,
    /// `ok`, or `stopped` when its engine has ended.
    pub state: String,
    pub fills: bool,
    pub chats: bool,
    pub notice: Option<String>,
    pub papers: Papers,
    #[serde(flatten)]
    pub figures: Figures,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpstreamStatus {
    pub name: String,
    pub models: Vec<String>,
    pub requests: u64,
    pub failures: u64,
    pub running: u64,
}

impl Figures {
    fn of(look: &Look, rates: &Rates) -> Self {
        let status = &look.status;
        Self {
            running: status.running,
            waiting: status.waiting,
            queued_tokens: status.queued_tokens,
            blocks_used: status.blocks_used,
            blocks: status.blocks_total,
            kv_ratio: share(status.blocks_used.into(), status.blocks_total.into()),
            prompt_tokens: status.tokens_in,
            answer_tokens: status.tokens_out,
            requests: look.ended,
            ..Self::default()
        }
        .at(rates)
    }

    fn at(self, rates: &Rates) -> Self {
        let latency = |[p50, p95]: [Option<f64>; 2]| Latency { p50, p95 };
        Self {
            tokens_per_s: rates.tokens,
            prompt_tokens_per_s: rates.prompt,
            requests_per_s: rates.requests,
            first_token_ms: latency(rates.first),
            between_tokens_ms: latency(rates.between),
            queue_wait_ms: latency(rates.wait),
            cached_ratio: rates.cached,
            ..self
        }
    }

    fn add(&mut self, other: &Figures) {
        self.running += other.running;
        self.waiting += other.waiting;
        self.queued_tokens += other.queued_tokens;
        self.blocks_used += other.blocks_used;
        self.blocks += other.blocks;
        self.prompt_tokens += other.prompt_tokens;
        self.answer_tokens += other.answer_tokens;
        self.requests += other.requests;
        self.kv_ratio = share(self.blocks_used.into(), self.blocks.into());
    }
}

impl Status {
    pub fn of(admin: &Admin) -> Self {
        let shared = &admin.shared;
        let (looks, all) = admin.history.now();
        let mut now = Figures::default();
        let mut models = Vec::new();
        for (model, (look, rates)) in shared.models.iter().zip(&looks) {
            let figures = Figures::of(look, rates);
            now.add(&figures);
            models.push(ModelStatus {
                name: model.name.clone(),
                aliases: model.aliases.clone(),
                family: model.family.name().to_owned(),
                context: model.context(),
                state: if look.status.alive { "ok" } else { "stopped" }.to_owned(),
                fills: model.text.fim.is_some(),
                chats: model.text.chat.is_some(),
                notice: model.notice.clone(),
                papers: model.papers.clone(),
                figures,
            });
        }
        let state = match (shared.health.draining(), shared.models.ready()) {
            (true, _) => "draining",
            (false, true) => "ready",
            (false, false) => "failing",
        };
        let prompts_logged_s = PROMPTS.left().map(|left| left.as_secs_f64().ceil() as u64);
        let last_reload = admin.last_reload();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: state.to_owned(),
            time: jiff::Timestamp::now().to_string(),
            uptime_s: admin.uptime().as_secs(),
            api: admin.addresses.api.clone(),
            metrics: admin.addresses.metrics.clone(),
            console: admin.addresses.console.clone(),
            in_flight: shared.health.in_flight(),
            now: now.at(&all),
            upstreams: upstreams(admin),
            device: admin.device.clone(),
            gpus: shared.metrics.gpus(),
            resident: resident(),
            gitlab: admin.settings.gitlab.rules.gitlab.as_ref().map(ToString::to_string),
            gitlab_keys_age_s: shared.duo.identity.keys_age().map(|age| age.as_secs()),
            prompts_logged_s,
            banners: banners(admin, state, &models, prompts_logged_s, last_reload.as_ref()),
            models,
            last_reload,
            troubles: RECENT.troubles(TROUBLES),
        }
    }
}

fn upstreams(admin: &Admin) -> Vec<UpstreamStatus> {
    let mut rows: Vec<UpstreamStatus> = Vec::new();
    for model in admin.shared.models.upstream() {
        let status = model.upstream.status();
        match rows.iter_mut().find(|row| row.name == model.upstream.name) {
            Some(row) => row.models.push(model.name.clone()),
            None => rows.push(UpstreamStatus {
                name: model.upstream.name.clone(),
                models: vec![model.name.clone()],
                requests: status.requests,
                failures: status.failures,
                running: status.running,
            }),
        }
    }
    rows
}

fn banners(
    admin: &Admin,
    state: &str,
    models: &[ModelStatus],
    prompts: Option<u64>,
    reload: Option<&Reloaded>,
) -> Vec<Banner> {
    let banner = |level: &str, text: String| Banner { level: level.to_owned(), text };
    let mut banners = Vec::new();
    match state {
        "draining" => banners.push(banner(
            "warn",
            "Draining: readiness says no, so that nothing more is sent here. What comes all the same is served; a restart ends it.".to_owned(),
        )),
        "failing" => banners.push(banner(
            "fail",
            "An engine has stopped. Its requests fail until the server is restarted; the log has the reason."
                .to_owned(),
        )),
        _ => {}
    }
    if let Some(seconds) = prompts {
        let text = format!("Prompts and answers go into the log for {} more.", minutes(seconds));
        banners.push(banner("warn", text));
    }
    if let Some(error) = reload.and_then(|r| r.error.as_ref()) {
        banners.push(banner("warn", format!("The last reload changed nothing: {error}")));
    }
    if let Some((warning, fix)) = admin.settings.gitlab.warning() {
        banners.push(banner("warn", format!("{warning}; {fix}")));
    }
    for gpu in admin.shared.metrics.gpus() {
        let held: Vec<&str> = gpu.troubles().collect();
        if !held.is_empty() {
            let text = format!(
                "GPU {} is held back: {}. It computes slower until that is mended.",
                gpu.gpu,
                held.join(", ")
            );
            banners.push(banner("warn", text));
        }
    }
    for model in models {
        if let Some(notice) = &model.notice {
            banners.push(banner("note", notice.clone()));
        }
    }
    banners
}

/// A time as people say it.
pub fn minutes(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Memory of this process in bytes; 0 where the system does not say.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

/// What computes, in words.
pub fn device(settings: &Settings) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim()));
    let processor = format!("{}, {cores} cores", model.unwrap_or("CPU"));
    match settings.device.as_str() {
        "cpu" => processor,
        _ => crate::gpu::look().map_or(processor, |gpus| gpus.join("; ")),
    }
}
