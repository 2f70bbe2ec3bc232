//! Sends the spans of requests to an OpenTelemetry collector.
//!
//! OpenTelemetry's standard environment variables configure the export. Without an endpoint nothing
//! is sent. Only spans are sent, and no log events: an event may contain a database's message,
//! which may quote a value.

use std::collections::HashMap;
use std::env;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanKind, Status, TracerProvider};
use opentelemetry::{Context, Key};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::{EnvResourceDetector, ResourceDetector};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use rocket::route::{Handler, Outcome};
use rocket::{Data, Request, Route};
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::http::{decorate, install_tls_provider};

/// The longest time by which an unresponsive collector can delay the end of the process.
const LAST_EXPORT: Duration = Duration::from_secs(3);

/// The default of `OTEL_SERVICE_NAME`.
const SERVICE_NAME: &str = "rocket_tx";

/// The queue of ended spans, a few thousand at most, and the thread that sends them.
///
/// Requests never wait for that thread. Dropping this value sends the remaining spans.
pub(crate) struct Export(SdkTracerProvider);

/// Returns the layer that collects spans, and their export; `None` if no collector is configured.
///
/// # Errors
///
/// An environment variable has an unknown value.
pub(crate) fn start<S>() -> Result<Option<(impl Layer<S> + use<S>, Export)>, String>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    if !is_wanted() {
        return Ok(None);
    }
    refuse_other_protocols()?;
    install_tls_provider();
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .build()
        .map_err(|error| error.to_string())?;
    let provider = SdkTracerProvider::builder()
        .with_resource(resource())
        .with_batch_exporter(Finishing(exporter))
        .build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(SERVICE_NAME))
        // Take a span's parent from `tracing`, not from the current thread. With context activation
        // a span starts when it is first entered, and after that its parent cannot be set any more.
        .with_context_activation(false)
        .with_tracked_inactivity(false)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_filter(filter_fn(is_exported).with_max_level_hint(LevelFilter::DEBUG));
    Ok(Some((layer, Export(provider))))
}

/// Selects spans of all levels, independent of the log's level. The steps of a trace have the debug
/// level, and a trace without them explains little.
fn is_exported(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with("rocket_tx")
}

fn is_wanted() -> bool {
    let is_off = env::var("OTEL_SDK_DISABLED").is_ok_and(|off| off.eq_ignore_ascii_case("true"));
    !is_off
        && (is_set(opentelemetry_otlp::OTEL_EXPORTER_OTLP_ENDPOINT)
            || is_set(opentelemetry_otlp::OTEL_EXPORTER_OTLP_TRACES_ENDPOINT))
}

fn is_set(variable: &str) -> bool {
    env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// Rejects a configured protocol that the exporter does not speak. Without this check the exporter
/// would use its own protocol on a port that expects another one.
fn refuse_other_protocols() -> Result<(), String> {
    let spoken = opentelemetry_otlp::OTEL_EXPORTER_OTLP_PROTOCOL_HTTP_PROTOBUF;
    let variables = [
        opentelemetry_otlp::OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
        opentelemetry_otlp::OTEL_EXPORTER_OTLP_PROTOCOL,
    ];
    // The first variable that is set wins.
    match variables.into_iter().find(|variable| is_set(variable)) {
        Some(variable) if env::var(variable).as_deref() != Ok(spoken) => {
            Err(format!("`{variable}` must be {spoken}"))
        }
        _ => Ok(()),
    }
}

fn resource() -> Resource {
    let resource = Resource::builder();
    let detected = EnvResourceDetector::new().detect();
    let is_named = is_set("OTEL_SERVICE_NAME")
        || detected
            .get(&Key::from_static_str("service.name"))
            .is_some();
    match is_named {
        true => resource.build(),
        false => resource.with_service_name(SERVICE_NAME).build(),
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let provider = self.0.clone();
        let (done, is_done) = mpsc::channel();
        // The timeout of `shutdown_with_timeout` limits only the sending. After that it joins a
        // thread that may still be resolving the collector's address, which cannot be interrupted.
        // So it runs on a separate thread, and this one waits with a limit.
        let closing = thread::Builder::new().spawn(move || {
            // The SDK has logged a failure.
            let _ = provider.shutdown_with_timeout(LAST_EXPORT);
            let _ = done.send(());
        });
        if closing.is_ok() {
            let _ = is_done.recv_timeout(LAST_EXPORT);
        }
    }
}

/// An exporter that first completes the spans named `request`: it adds the attributes that
/// collectors expect of a server's span. It does this on the exporter's thread, so that these
/// attributes do not appear in the log.
#[derive(Debug)]
struct Finishing(opentelemetry_otlp::SpanExporter);

impl SpanExporter for Finishing {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        batch
            .iter_mut()
            .filter(|span| span.name == "request")
            .for_each(finish);
        self.0.export(batch).await
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

/// Sets kind and status of a server's span.
///
/// By OpenTelemetry's conventions for HTTP servers, a 4xx is not an error of the span: a rollback
/// because of a 404 or a conflict is normal. Every partial or unknown outcome is a 500.
fn finish(span: &mut SpanData) {
    span.span_kind = SpanKind::Server;
    let status = span
        .attributes
        .iter_mut()
        .find(|attribute| attribute.key.as_str() == "status");
    // Unsigned numbers arrive as strings.
    if let Some(status) = status
        && let Ok(code) = status.value.as_str().parse::<i64>()
    {
        status.value = code.into();
        if code >= 500 {
            span.status = Status::error("");
        }
    }
}

/// Wraps routes so that they continue the client's trace. If the client sends `traceparent`, the
/// request's span becomes a child of the client's span.
///
/// These wrappers must run inside the span of the request.
pub(crate) fn continue_traces(routes: Vec<Route>) -> Vec<Route> {
    decorate(routes, ContinueTrace)
}

#[derive(Clone)]
struct ContinueTrace(Box<dyn Handler>);

#[rocket::async_trait]
impl Handler for ContinueTrace {
    async fn handle<'r>(&self, request: &'r Request<'_>, data: Data<'r>) -> Outcome<'r> {
        let headers = request.headers();
        if headers.contains("traceparent") {
            let headers: HashMap<String, String> = ["traceparent", "tracestate"]
                .into_iter()
                .filter_map(|name| Some((name.into(), headers.get_one(name)?.into())))
                .collect();
            let parent =
                TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
            // This fails if no collector is configured.
            let _ = Span::current().set_parent(parent);
        }
        self.0.handle(request, data).await
    }
}
