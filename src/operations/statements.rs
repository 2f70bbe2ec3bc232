//! Adds the statements of requests to the event feed: the duration of each, never its text. Adds
//! the waits for leases too: the begin and the end of each.
//!
//! sqlx emits a `tracing` event for every statement at the debug level, in the span of its request.
//! The layer in this file receives these events, and the library's span of each wait. While the feed has no client, the layer's filter
//! disables them, so that sqlx does not create them.

use std::sync::{Arc, OnceLock};

use rocket::serde::json::json;
use rocket_tx::RequestId;
use rocket_tx::tx::Live;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Span, Subscriber};
use tracing_subscriber::filter::DynFilterFn;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::{LookupSpan, SpanRef};

/// The target of sqlx's statement events.
const STATEMENTS: &str = "sqlx::query";
/// The name of the library's span for a request.
const REQUEST: &str = "request";
/// The name of the library's span for a wait for a lease. Its field `acquired` is recorded when the
/// wait has ended.
const LEASE: &str = "lease";
/// The spans whose statements are not reported. In `begin`, `read` and `step` the library opens
/// connections, and begins and settles transactions; the feed reports these as other events, and so
/// it does with the waits in `lease`. In `unreported` the console counts rows.
const UNREPORTED: [&str; 5] = ["begin", LEASE, "read", "step", "unreported"];

/// Returns the span for statements that the console itself runs.
pub(super) fn unreported() -> Span {
    tracing::info_span!(parent: None, "unreported")
}

/// A layer of the `tracing` subscriber. It reports nothing until it has a feed.
#[derive(Clone, Default)]
pub(super) struct Statements(Arc<OnceLock<Live>>);

impl Statements {
    /// Reports to the feed of `live` from now on. A process has one log, so only the first service
    /// that is launched in a process gets the statements.
    pub(super) fn report_to(&self, live: Live) {
        let _ = self.0.set(live);
    }

    fn has_listeners(&self) -> bool {
        self.0.get().is_some_and(|live| live.listeners() > 0)
    }

    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let this = self.clone();
        let filter = DynFilterFn::new(move |metadata, _| {
            if metadata.is_span() {
                is_request(metadata) || is_ours(metadata) && this.has_listeners()
            } else {
                metadata.target() == STATEMENTS && this.has_listeners()
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

/// Returns `true` for a span of the library or of this service.
fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("rocket_tx")
}

fn is_request(metadata: &Metadata<'_>) -> bool {
    metadata.name() == REQUEST && is_ours(metadata)
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Statements {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        // Statements of GET and HEAD requests are not reported.
        if fields.is_read_only {
            return;
        }
        if let (Some(request), Some(span)) = (fields.request, context.span(id)) {
            span.extensions_mut().insert(request);
        }
        if let (LEASE, Some(database)) = (attributes.metadata().name(), fields.database)
            && let Some(span) = context.span(id)
            && let Some(request) = request_of(span.scope())
        {
            let wait = LeaseWait { request, database };
            self.publish_wait(Some(wait.clone()), "waiting");
            span.extensions_mut().insert(wait);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        if let (Some(acquired), Some(span)) = (fields.acquired, context.span(id)) {
            let wait = span.extensions_mut().remove::<LeaseWait>();
            let state = if acquired { "acquired" } else { "refused" };
            self.publish_wait(wait, state);
        }
    }

    /// A wait that ends without a result was cancelled. After a result the span may stay open: tasks
    /// that renew or release the lease run in it.
    fn on_close(&self, id: Id, context: Context<'_, S>) {
        if let Some(span) = context.span(&id) {
            let wait = span.extensions_mut().remove::<LeaseWait>();
            self.publish_wait(wait, "abandoned");
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(mut scope) = context.event_scope(event).map(Iterator::peekable) else {
            return;
        };
        // Only the innermost span counts.
        if scope
            .peek()
            .is_none_or(|span| UNREPORTED.contains(&span.name()))
        {
            return;
        }
        let request = request_of(scope);
        if let (Some(request), Some(live)) = (request, self.0.get()) {
            let mut fields = Fields::default();
            event.record(&mut fields);
            live.publish(
                request,
                "statement",
                || json!({ "took_us": fields.took_us }),
            );
        }
    }
}

/// Returns the request whose span is in `scope`.
fn request_of<'a, R: LookupSpan<'a> + 'a>(
    mut scope: impl Iterator<Item = SpanRef<'a, R>>,
) -> Option<RequestId> {
    scope.find_map(|span| span.extensions().get::<RequestId>().copied())
}

/// A wait for a lease. It is in the extensions of its span until it ends.
#[derive(Clone)]
struct LeaseWait {
    request: RequestId,
    database: String,
}

impl Statements {
    fn publish_wait(&self, wait: Option<LeaseWait>, state: &str) {
        if let (Some(wait), Some(live)) = (wait, self.0.get()) {
            live.publish(
                wait.request,
                "lease",
                || json!({ "state": state, "database": wait.database }),
            );
        }
    }
}

/// The fields of a span or an event that this layer needs.
#[derive(Default)]
struct Fields {
    request: Option<RequestId>,
    is_read_only: bool,
    database: Option<String>,
    acquired: Option<bool>,
    took_us: u64,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "id" => self.request = format!("{value:?}").parse().ok(),
            "method" => self.is_read_only = ["GET", "HEAD"].contains(&&*format!("{value:?}")),
            _ => {}
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "database" => self.database = Some(value.to_owned()),
            _ => self.record_debug(field, &format_args!("{value}")),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        if field.name() == "acquired" {
            self.acquired = Some(value);
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if field.name() == "elapsed_secs" {
            // The cast truncates to whole microseconds.
            self.took_us = (value * 1e6) as u64;
        }
    }
}
