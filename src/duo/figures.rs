//! What this dialect counts, under the names of the original gateway, so that a site's dashboards keep working.
//!
//! Labels are models and languages that are known here, never a caller's own text: their number is bounded.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures::Stream;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::served::ask::{Answer, Ask, Failure, Piece};
use crate::served::{Model, Models};

type Labels = Vec<(&'static str, String)>;

/// Clones count together.
#[derive(Clone, Debug)]
pub struct Figures {
    in_flight: Family<Labels, Gauge>,
    inferences: Family<Labels, Counter>,
    seconds: Family<Labels, Histogram, fn() -> Histogram>,
    input: Family<Labels, Counter>,
    output: Family<Labels, Counter>,
    total: Family<Labels, Counter>,
    context: Family<Labels, Gauge>,
    languages: Family<Labels, Counter>,
}

fn seconds() -> Histogram {
    Histogram::new([0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
}

fn model_labels(model: &Model) -> Labels {
    vec![("model_name", model.name().to_owned())]
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            in_flight: Family::default(),
            inferences: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            input: Family::default(),
            output: Family::default(),
            total: Family::default(),
            context: Family::default(),
            languages: Family::default(),
        }
    }
}

impl Figures {
    /// Every model's rows are there from the beginning, at nought.
    pub fn register(&self, registry: &mut Registry, models: &Models) {
        for model in models.all() {
            let labels = model_labels(&model);
            self.context.get_or_create(&labels).set(i64::from(model.context()));
            drop(self.in_flight.get_or_create(&labels));
            drop(self.seconds.get_or_create(&labels));
            for counter in [&self.inferences, &self.input, &self.output, &self.total] {
                drop(counter.get_or_create(&labels));
            }
        }
        let rows = "Requests that a model works on";
        registry.register("model_inferences_in_flight", rows, self.in_flight.clone());
        registry.register("model_max_total_tokens", "Prompt and answer at most", self.context.clone());
        registry.register("model_inferences", "Requests given to a model", self.inferences.clone());
        let help = "From a request to the end of its answer";
        registry.register("inference_request_duration_seconds", help, self.seconds.clone());
        registry.register("inference_input_tokens", "Prompt tokens", self.input.clone());
        registry.register("inference_output_tokens", "Answer tokens", self.output.clone());
        registry.register("inference_total_tokens", "Prompt and answer tokens", self.total.clone());
        let help = "Code requests by language";
        registry.register("code_suggestions_prompt_language", help, self.languages.clone());
    }

    /// A code request in a language that is known here; empty names are unknown ones.
    pub fn language(&self, language: &'static str, extension: &'static str, editor: &'static str) {
        let labels = [("lang", language), ("extension", extension), ("editor_lang", editor)];
        self.languages.get_or_create(&labels.map(|(name, value)| (name, value.to_owned())).to_vec()).inc();
    }

    /// Asks a model and counts what comes of it.
    pub async fn ask(&self, model: &Model, ask: Ask) -> Result<Answer, Failure> {
        let labels = model_labels(model);
        self.inferences.get_or_create(&labels).inc();
        self.in_flight.get_or_create(&labels).inc();
        let flight = Flight { figures: self.clone(), labels, begin: Instant::now() };
        let answer = model.ask(ask).await?;
        Ok(Answer::new(Counted { answer, flight }))
    }
}

/// A request from its beginning to its end, whoever ends it.
struct Flight {
    figures: Figures,
    labels: Labels,
    begin: Instant,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.figures.in_flight.get_or_create(&self.labels).dec();
        self.figures.seconds.get_or_create(&self.labels).observe(self.begin.elapsed().as_secs_f64());
    }
}

struct Counted {
    answer: Answer,
    flight: Flight,
}

impl Stream for Counted {
    type Item = Result<Piece, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let piece = ready!(Pin::new(&mut self.answer).poll_next(context));
        if let Some(Ok(Piece::End { usage, .. })) = &piece {
            let Flight { figures, labels, .. } = &self.flight;
            let (input, output) = (u64::from(usage.input), u64::from(usage.output));
            figures.input.get_or_create(labels).inc_by(input);
            figures.output.get_or_create(labels).inc_by(output);
            figures.total.get_or_create(labels).inc_by(input + output);
        }
        Poll::Ready(piece)
    }
}
