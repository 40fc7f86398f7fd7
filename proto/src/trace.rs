//! The trace context of a call: 25 bytes on the wire, the text of W3C's `traceparent` for the tracing library
//! (<https://www.w3.org/TR/trace-context/>, version 00).

use crate::frame::TraceContext;
use hayloft_common::telemetry::span;
use tracing::Span;

/// The trace that the current span belongs to, if traces are collected.
pub fn current() -> Option<TraceContext> {
    parse(&span::current_traceparent()?)
}

/// Makes `span` a part of the caller's trace.
pub fn follow(span: &Span, context: &TraceContext) {
    span::set_parent(span, &text(context));
}

fn parse(text: &str) -> Option<TraceContext> {
    let mut parts = text.split('-');
    if parts.next()? != "00" {
        return None;
    }
    let mut context = TraceContext { trace_id: [0; 16], span_id: [0; 8], flags: 0 };
    hex::decode_to_slice(parts.next()?, &mut context.trace_id).ok()?;
    hex::decode_to_slice(parts.next()?, &mut context.span_id).ok()?;
    context.flags = u8::from_str_radix(parts.next()?, 16).ok()?;
    Some(context)
}

fn text(context: &TraceContext) -> String {
    format!("00-{}-{}-{:02x}", hex::encode(context.trace_id), hex::encode(context.span_id), context.flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_the_standard_reads_and_prints_back() {
        let example = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = parse(example).unwrap();
        assert_eq!(context.flags, 1);
        assert_eq!(text(&context), example);
        for bad in [
            "",
            "00",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-xyz-00-01",
            "00-4b-00f0-01",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
