//! What is measured of every model that is served here, in two vocabularies: ours and, with `metrics.compat = "vllm"`,
//! vLLM's, which inference gateways of Kubernetes and many sites' dashboards read. Both are read from the engines when
//! somebody asks, without disturbing them. vLLM's histograms have vLLM's edges, which are among ours.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::engine::handle::Status;
use crate::engine::timings::{Reading, Times};
use crate::served::Models;

/// One figure of a model.
struct Measure {
    /// In our vocabulary, after `hearth_`.
    own: Option<&'static str>,
    vllm: Option<&'static str>,
    help: &'static str,
    of: Of,
}

/// How it is read.
enum Of {
    Gauge(fn(&Status) -> u64),
    Share(fn(&Status) -> f64),
    Counter(fn(&Status) -> u64),
    /// With the edges that vLLM has for it.
    Times(fn(&Times) -> &Reading, &'static [f64]),
}

use Of::{Counter, Gauge, Share};

/// What both vocabularies have a name for.
const fn both(own: &'static str, vllm: &'static str, help: &'static str, of: Of) -> Measure {
    Measure { own: Some(own), vllm: Some(vllm), help, of }
}

const fn ours(own: &'static str, help: &'static str, of: Of) -> Measure {
    Measure { own: Some(own), vllm: None, help, of }
}

const MEASURES: [Measure; 19] = [
    both(
        "requests_running",
        "vllm:num_requests_running",
        "Requests that have begun and not ended",
        Gauge(|s| s.running.into()),
    ),
    both(
        "queue_depth",
        "vllm:num_requests_waiting",
        "Requests that have not begun",
        Gauge(|s| s.waiting.into()),
    ),
    ours("queue_tokens", "Prompt tokens of the requests that have not begun", Gauge(|s| s.queued_tokens)),
    ours("engine_up", "1 while the model's engine runs", Gauge(|s| s.alive.into())),
    both(
        "kv_usage_ratio",
        "vllm:kv_cache_usage_perc",
        "Share of the blocks of keys and values that belong to a sequence, 1 for all of them",
        Share(|s| f64::from(s.blocks_used) / f64::from(s.blocks_total.max(1))),
    ),
    both(
        "prompt_tokens",
        "vllm:prompt_tokens",
        "Prompt tokens of requests that began",
        Counter(|s| s.tokens_in),
    ),
    both("generated_tokens", "vllm:generation_tokens", "Tokens sent", Counter(|s| s.tokens_out)),
    both(
        "prefix_cache_query_tokens",
        "vllm:prefix_cache_queries",
        "Prompt tokens looked up in the prefix cache",
        Counter(|s| s.prefix_queries),
    ),
    both(
        "prefix_cache_hit_tokens",
        "vllm:prefix_cache_hits",
        "Prompt tokens found in the prefix cache",
        Counter(|s| s.prefix_hits),
    ),
    ours("steps", "Steps of the engine", Counter(|s| s.steps)),
    ours("rows", "Tokens computed, of prompts and answers", Counter(|s| s.rows)),
    ours("wasted_rows", "Tokens in the making when their reader left", Counter(|s| s.wasted_rows)),
    ours("failed_steps", "Steps that failed", Counter(|s| s.failed_steps)),
    both(
        "preemptions",
        "vllm:num_preemptions",
        "Sequences that gave their blocks back and began again",
        Counter(|s| s.preemptions),
    ),
    both(
        "queue_wait_seconds",
        "vllm:request_queue_time_seconds",
        "From a request's submission to its first step",
        Of::Times(|t| &t.queue_wait, REQUEST),
    ),
    both(
        "time_to_first_token_seconds",
        "vllm:time_to_first_token_seconds",
        "From a request's submission to its first token",
        Of::Times(|t| &t.first_token, FIRST_TOKEN),
    ),
    both(
        "inter_token_seconds",
        "vllm:inter_token_latency_seconds",
        "Between two tokens of an answer",
        Of::Times(|t| &t.between_tokens, TOKEN),
    ),
    ours("batch_size", "Sequences in a step", Of::Times(|t| &t.batch, &[])),
    // Our own figure of whole requests is that of the routes, which counts what no model sees too.
    Measure {
        own: None,
        vllm: Some("vllm:e2e_request_latency_seconds"),
        help: "From a request's submission to the end of its answer",
        of: Of::Times(|t| &t.whole, REQUEST),
    },
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    Own,
    Vllm,
}

/// Reads all of them in one vocabulary.
pub struct Measures {
    pub models: Models,
    pub vocabulary: Vocabulary,
}

impl fmt::Debug for Measures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Measures({:?})", self.vocabulary)
    }
}

impl Collector for Measures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let own = self.vocabulary == Vocabulary::Own;
        let label = if own { "model" } else { "model_name" };
        let models: Vec<_> = self
            .models
            .iter()
            .map(|m| ([(label, m.name.clone())], m.engine.status(), m.engine.times()))
            .collect();
        for measure in &MEASURES {
            let Some(name) = (if own { measure.own } else { measure.vllm }) else { continue };
            let kind = match measure.of {
                Gauge(_) | Share(_) => MetricType::Gauge,
                Counter(_) => MetricType::Counter,
                Of::Times(..) => MetricType::Histogram,
            };
            let mut metric = encoder.encode_descriptor(name, measure.help, None, kind)?;
            for (label, status, times) in &models {
                let mut to = metric.encode_family(label)?;
                match measure.of {
                    Gauge(of) => ConstGauge::new(of(status)).encode(to)?,
                    Share(of) => ConstGauge::new(of(status)).encode(to)?,
                    Counter(of) => ConstCounter::new(of(status)).encode(to)?,
                    Of::Times(of, vllms) => {
                        let reading = of(times);
                        let rows = reading.with_edges(if own { reading.edges } else { vllms });
                        let (sum, count) = (reading.sum, reading.count());
                        to.encode_histogram::<[(&str, String); 0]>(sum, count, &rows, None)?;
                    }
                }
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
        for measure in &MEASURES {
            if let (Some(name), Of::Times(of, edges)) = (measure.vllm, &measure.of) {
                let own = of(&times).edges;
                assert!(!edges.is_empty(), "{name}");
                assert!(edges.iter().all(|edge| own.contains(edge)), "{name}: {edges:?} in {own:?}");
            }
        }
    }

    #[test]
    fn no_name_stands_for_two_figures() {
        for names in [MEASURES.map(|m| m.own), MEASURES.map(|m| m.vllm)] {
            let mut names: Vec<_> = names.into_iter().flatten().collect();
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all, "{names:?}");
        }
    }
}
