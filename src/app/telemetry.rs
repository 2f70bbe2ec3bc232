//! The spans of requests, sent to an OpenTelemetry collector.
//!
//! The standard variables say where to and what of it, and without an endpoint nothing is done.
//! Spans only: an event is a line of the log, and what a database says in one may quote a value.

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

use super::decorate::decorate;
use super::tls;

/// How long the end of the process may be held up by a collector that does not answer.
const LAST_EXPORT: Duration = Duration::from_secs(3);

/// `OTEL_SERVICE_NAME`, where nobody sets it.
const SERVICE_NAME: &str = "rocket_tx";

/// Spans that have ended wait here, a few thousand at most, for a thread that sends them; no request
/// ever waits for it. Dropping it sends the last of them.
pub(super) struct Export(SdkTracerProvider);

/// The layer that collects spans, and what exports them; `None` where no collector is named.
///
/// # Errors
///
/// A variable that is not understood.
pub(super) fn start<S>() -> Result<Option<(impl Layer<S> + use<S>, Export)>, String>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    if !is_wanted() {
        return Ok(None);
    }
    refuse_other_protocols()?;
    tls::provide();
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
        // A span's parent is the one that `tracing` knows. The other way, by thread, also starts a
        // span when it is first entered, and then it is too late to give it a parent from elsewhere.
        .with_context_activation(false)
        .with_tracked_inactivity(false)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_filter(filter_fn(is_exported).with_max_level_hint(LevelFilter::DEBUG));
    Ok(Some((layer, Export(provider))))
}

/// What the log's level leaves out too: a trace without its steps explains little.
fn is_exported(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    metadata.is_span() && (target == "rocket_tx" || target.starts_with("rocket_tx::"))
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

/// The exporter would go on with the protocol that it has, to a port that speaks another.
fn refuse_other_protocols() -> Result<(), String> {
    let spoken = opentelemetry_otlp::OTEL_EXPORTER_OTLP_PROTOCOL_HTTP_PROTOBUF;
    let variables = [
        opentelemetry_otlp::OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
        opentelemetry_otlp::OTEL_EXPORTER_OTLP_PROTOCOL,
    ];
    // The first that is set counts.
    match variables.into_iter().find(|variable| is_set(variable)) {
        Some(variable) if env::var(variable).as_deref() != Ok(spoken) => {
            Err(format!("`{variable}` can only be {spoken}"))
        }
        _ => Ok(()),
    }
}

fn resource() -> Resource {
    let resource = Resource::builder();
    let of_variables = EnvResourceDetector::new().detect();
    let is_named = is_set("OTEL_SERVICE_NAME")
        || of_variables
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
        // The limit of `shutdown_with_timeout` is on the sending. What it joins afterwards may
        // still be asking for the collector's address, which nobody can interrupt.
        let closing = thread::Builder::new().spawn(move || {
            // What went wrong is in the log.
            let _ = provider.shutdown_with_timeout(LAST_EXPORT);
            let _ = done.send(());
        });
        if closing.is_ok() {
            let _ = is_done.recv_timeout(LAST_EXPORT);
        }
    }
}

/// Says of `request` what collectors ask of a server's span, and what it can only know at its end.
/// That is done here, in the exporter's thread, and not by fields that every log would show.
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

/// By the conventions for HTTP servers a 4xx is the client's error, not the span's: what is rolled
/// back for a 404 or a conflict went as it should. Every partial or unknown outcome is a 500.
fn finish(span: &mut SpanData) {
    span.span_kind = SpanKind::Server;
    let status = span
        .attributes
        .iter_mut()
        .find(|attribute| attribute.key.as_str() == "status");
    // Unsigned numbers come as text.
    if let Some(status) = status
        && let Ok(code) = status.value.as_str().parse::<i64>()
    {
        status.value = code.into();
        if code >= 500 {
            span.status = Status::error("");
        }
    }
}

/// The same routes; where a client tells by `traceparent` which of its spans a request belongs to,
/// the span of the request becomes a child of that. Inside the span of the request.
pub(super) fn continued(routes: Vec<Route>) -> Vec<Route> {
    decorate(routes, Continued)
}

#[derive(Clone)]
struct Continued(Box<dyn Handler>);

#[rocket::async_trait]
impl Handler for Continued {
    async fn handle<'r>(&self, request: &'r Request<'_>, data: Data<'r>) -> Outcome<'r> {
        let headers = request.headers();
        if headers.contains("traceparent") {
            let told: HashMap<String, String> = ["traceparent", "tracestate"]
                .into_iter()
                .filter_map(|name| Some((name.into(), headers.get_one(name)?.into())))
                .collect();
            let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &told);
            // It fails where nothing is exported.
            let _ = Span::current().set_parent(parent);
        }
        self.0.handle(request, data).await
    }
}
