//! The statements of requests, in the feed: the duration of each, never its text.
//!
//! sqlx logs every statement at the debug level, in the span of its request. This is one more reader
//! of that log. While the feed has no client, the filter tells sqlx that nobody reads.

use std::sync::{Arc, OnceLock};

use rocket::serde::json::json;
use rocket_tx::RequestId;
use rocket_tx::tx::Live;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Span, Subscriber};
use tracing_subscriber::filter::DynFilterFn;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Where sqlx logs statements.
const STATEMENTS: &str = "sqlx::query";
/// The library's span of a request.
const REQUEST: &str = "request";
/// Spans whose statements are left out: those that open connections and begin and settle
/// transactions, which the feed reports as such; and the console's own.
const UNREPORTED: [&str; 4] = ["begin", "read", "step", "unreported"];

/// A span for the console's own statements.
pub(super) fn unreported() -> Span {
    tracing::info_span!(parent: None, "unreported")
}

/// A layer of the log. It reports nothing until it has a feed.
#[derive(Clone, Default)]
pub(super) struct Statements(Arc<OnceLock<Live>>);

impl Statements {
    /// Reports to the feed of `live` from now on. There is one log for a process, so the first
    /// service that launches in a process has the statements.
    pub(super) fn report_to(&self, live: Live) {
        let _ = self.0.set(live);
    }

    fn is_heard(&self) -> bool {
        self.0.get().is_some_and(|live| live.listeners() > 0)
    }

    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let heard = self.clone();
        let filter = DynFilterFn::new(move |metadata, _| {
            if metadata.is_span() {
                is_request(metadata) || is_ours(metadata) && heard.is_heard()
            } else {
                metadata.target() == STATEMENTS && heard.is_heard()
            }
        });
        let filter = filter
            .with_max_level_hint(LevelFilter::DEBUG)
            .with_callsite_filter(|metadata| match metadata.is_span() {
                true if is_request(metadata) => Interest::always(),
                true if is_ours(metadata) => Interest::sometimes(),
                false if metadata.target() == STATEMENTS => Interest::sometimes(),
                _ => Interest::never(),
            });
        self.clone().with_filter(filter)
    }
}

/// A span of the library, or of this service.
fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("rocket_tx")
}

fn is_request(metadata: &Metadata<'_>) -> bool {
    metadata.name() == REQUEST && is_ours(metadata)
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Statements {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut read = Read::default();
        attributes.record(&mut read);
        // The feed reports nothing about requests that only read.
        if read.only_reads {
            return;
        }
        if let (Some(request), Some(span)) = (read.request, context.span(id)) {
            span.extensions_mut().insert(request);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(mut scope) = context.event_scope(event).map(Iterator::peekable) else {
            return;
        };
        // The innermost span decides.
        if scope
            .peek()
            .is_none_or(|span| UNREPORTED.contains(&span.name()))
        {
            return;
        }
        let request = scope.find_map(|span| span.extensions().get::<RequestId>().copied());
        if let (Some(request), Some(live)) = (request, self.0.get()) {
            let mut read = Read::default();
            event.record(&mut read);
            live.publish(request, "statement", || json!({ "took_us": read.took_us }));
        }
    }
}

/// The fields of a span or an event that matter here.
#[derive(Default)]
struct Read {
    request: Option<RequestId>,
    only_reads: bool,
    took_us: u64,
}

impl Visit for Read {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "id" => self.request = format!("{value:?}").parse().ok(),
            "method" => self.only_reads = ["GET", "HEAD"].contains(&&*format!("{value:?}")),
            _ => {}
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if field.name() == "elapsed_secs" {
            // Truncation is what is wanted: whole microseconds.
            self.took_us = (value * 1e6) as u64;
        }
    }
}
