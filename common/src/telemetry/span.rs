//! Carries a trace from one process to another, as the text of W3C's `traceparent` header.
//!
//! Without a collector both functions cost next to nothing and do nothing.

use opentelemetry::propagation::{Extractor, Injector};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

const HEADER: &str = "traceparent";

struct Parent(Option<String>);

impl Injector for Parent {
    fn set(&mut self, key: &str, value: String) {
        if key == HEADER {
            self.0 = Some(value);
        }
    }
}

impl Extractor for Parent {
    fn get(&self, key: &str) -> Option<&str> {
        if key == HEADER { self.0.as_deref() } else { None }
    }

    fn keys(&self) -> Vec<&str> {
        vec![HEADER]
    }
}

/// The trace that the current span belongs to, to send along with a request; `None` if traces are off.
pub fn current_traceparent() -> Option<String> {
    let context = Span::current().context();
    let mut parent = Parent(None);
    opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut parent);
    });
    parent.0
}

/// Makes `span` a child of the peer's span that a request named. Must come before the span is entered.
/// A text that is no `traceparent` is ignored: a peer must not be able to break a request with it.
pub fn set_parent(span: &Span, traceparent: &str) {
    let parent = Parent(Some(traceparent.to_owned()));
    let context = opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&parent));
    if let Err(error) = span.set_parent(context) {
        tracing::trace!(?error, "the peer's trace is not followed");
    }
}
