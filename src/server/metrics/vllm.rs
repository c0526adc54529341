//! The same figures under vLLM's names (`metrics.compat = "vllm"`): what inference gateways of Kubernetes and many sites'
//! dashboards read. Histograms have vLLM's edges, which are among ours.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Models, Reading, Status, Times, histogram};

pub struct Names {
    pub models: Models,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}

type Gauge = (&'static str, &'static str, fn(&Status) -> f64);

const GAUGES: [Gauge; 3] = [
    ("vllm:num_requests_running", "Requests that have begun and not ended", |s| s.running.into()),
    ("vllm:num_requests_waiting", "Requests that have not begun", |s| s.waiting.into()),
    ("vllm:kv_cache_usage_perc", "Share of the blocks of keys and values in use, 1 for all of them", |s| {
        f64::from(s.blocks_used) / f64::from(s.blocks_total.max(1))
    }),
];

type Counter = (&'static str, &'static str, fn(&Status) -> u64);

const COUNTERS: [Counter; 5] = [
    ("vllm:prompt_tokens", "Prompt tokens of requests that began", |s| s.tokens_in),
    ("vllm:generation_tokens", "Tokens sent", |s| s.tokens_out),
    ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache", |s| s.prefix_queries),
    ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache", |s| s.prefix_hits),
    ("vllm:num_preemptions", "Sequences that gave their blocks back", |s| s.preemptions),
];

const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const TOKEN: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];

type Row = (&'static str, &'static str, &'static [f64], fn(&Times) -> &Reading);

const TIMINGS: [Row; 4] = [
    ("vllm:time_to_first_token_seconds", "Until the first token", FIRST_TOKEN, |t| &t.first_token),
    ("vllm:inter_token_latency_seconds", "Between two tokens", TOKEN, |t| &t.between_tokens),
    ("vllm:request_queue_time_seconds", "In the queue", REQUEST, |t| &t.queue_wait),
    ("vllm:e2e_request_latency_seconds", "Until the end of the answer", REQUEST, |t| &t.whole),
];

impl Collector for Names {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let models: Vec<_> =
            self.models.iter().map(|m| ([("model_name", m.name.clone())], m.engine.status())).collect();
        for (name, help, of) in GAUGES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (label, status) in &models {
                ConstGauge::new(of(status)).encode(metric.encode_family(label)?)?;
            }
        }
        for (name, help, of) in COUNTERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (label, status) in &models {
                ConstCounter::new(of(status)).encode(metric.encode_family(label)?)?;
            }
        }
        let times: Vec<_> = self.models.iter().map(|model| model.engine.times()).collect();
        for (name, help, edges, of) in TIMINGS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for ((label, _), times) in models.iter().zip(&times) {
                histogram(metric.encode_family(label)?, of(times), edges)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vllms_edges_are_among_our_own() {
        let times = crate::engine::timings::Timings::default().read();
        for (name, _, edges, of) in TIMINGS {
            let own = of(&times).edges;
            assert!(edges.iter().all(|edge| own.contains(edge)), "{name}: {edges:?} in {own:?}");
        }
    }
}
