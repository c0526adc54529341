//! What the gateway tells the log about a request, found by the request's id: reasons never go into an answer.

use std::collections::HashMap;
use std::fmt;
use std::sync::{LazyLock, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// Reasons of refusals by the id of the request.
static REASONS: LazyLock<Mutex<HashMap<String, String>>> = LazyLock::new(|| {
    let info = Targets::new().with_target("hearth", tracing::Level::INFO);
    let subscriber = tracing_subscriber::registry().with(Reasons.with_filter(info));
    tracing::subscriber::set_global_default(subscriber).expect("bug: another test listens to the log");
    Mutex::default()
});

/// Listens from now on.
pub fn listen() {
    LazyLock::force(&REASONS);
}

/// Why the request with this id was refused, as the log has it.
pub fn reason(id: &str) -> String {
    REASONS.lock().unwrap().remove(id).unwrap_or_else(|| panic!("nothing in the log about {id}"))
}

struct Reasons;

/// The id of the request that a span belongs to.
struct Of(String);

/// The fields that count here.
#[derive(Default)]
struct Fields {
    id: Option<String>,
    message: String,
    reason: Option<String>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "reason" {
            self.reason = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "id" => self.id = Some(format!("{value:?}")),
            "message" => self.message = format!("{value:?}"),
            _ => {}
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Reasons {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let (Some(span), Some(id)) = (context.span(id), fields.id) {
            span.extensions_mut().insert(Of(id));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let (true, Some(reason)) = (fields.message == "refused", fields.reason) else { return };
        let spans = context.event_scope(event).into_iter().flatten();
        let of = spans.into_iter().find_map(|span| span.extensions().get::<Of>().map(|of| of.0.clone()));
        if let Some(id) = of {
            REASONS.lock().unwrap().insert(id, reason);
        }
    }
}
