//! Events become lines: one JSON object each, with the id of the request that they belong to.

use std::fmt;
use std::io::Write;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::{RECENT, prompts};

/// Keeps every event, and writes it as JSON where that is the log's format.
pub struct Lines {
    pub write: bool,
}

/// The id of the request that a span stands for.
struct Correlation(String);

/// The fields of an event or a span.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        // One name for the id of a request, wherever it comes from.
        let name = if field.name() == "id" { "correlation_id" } else { field.name() };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let (Some(span), Some(Value::String(id))) = (context.span(id), fields.0.remove("correlation_id")) {
            span.extensions_mut().insert(Correlation(id));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields(fields) = fields;
        let mut line = Map::new();
        let metadata = event.metadata();
        line.insert("time".to_owned(), jiff::Timestamp::now().to_string().into());
        line.insert("level".to_owned(), metadata.level().as_str().to_ascii_lowercase().into());
        line.insert("message".to_owned(), fields.get("message").cloned().unwrap_or_default());
        if !fields.contains_key("correlation_id") {
            let spans = context.event_scope(event).into_iter().flatten();
            let id = spans.into_iter().find_map(|s| s.extensions().get::<Correlation>().map(|c| c.0.clone()));
            line.extend(id.map(|id| ("correlation_id".to_owned(), id.into())));
        }
        line.extend(fields.into_iter().filter(|(name, _)| name != "message"));
        if self.write {
            let mut text = Value::Object(line.clone()).to_string();
            text.push('\n');
            // A log that cannot be written must not stop the server.
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
        }
        if metadata.target() != prompts::TARGET {
            RECENT.keep(*metadata.level(), line);
        }
    }
}
