//! The spans that an OpenTelemetry collector receives from the service. No request waits for the
//! collector.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use parking_lot::Mutex;
use prost::Message;
use rocket::tokio::net::{TcpListener, TcpSocket};
use rocket::tokio::time::timeout;
use rocket::{State, post, routes};

use crate::support::launch::Launched;
use crate::support::{Backend, Databases, HttpResponse, Service};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// The exports that the collector has received.
type Sent = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// A collector in the test's process.
struct Collector {
    launched: Launched,
    sent: Sent,
}

#[post("/v1/traces", format = "application/x-protobuf", data = "<body>")]
fn take(body: Vec<u8>, sent: &State<Sent>) {
    let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
    sent.lock().push(request);
}

impl Collector {
    async fn new() -> Self {
        let sent = Sent::default();
        let figment = rocket::Config::figment()
            .merge(("address", "127.0.0.1"))
            .merge(("port", 0))
            .merge(("log_level", "off"))
            .merge(("limits.bytes", "8MiB"))
            .merge(("shutdown.ctrlc", false))
            .merge(("shutdown.signals", Vec::<String>::new()));
        let rocket = rocket::custom(figment)
            .manage(Arc::clone(&sent))
            .mount("/", routes![take]);
        let launched = Launched::new(rocket).await;
        Self { launched, sent }
    }

    fn url(&self) -> &str {
        &self.launched.http.base
    }

    /// Shuts the collector down, and returns everything that it has received.
    async fn finished(self) -> Trace {
        self.launched.close().await;
        Trace(std::mem::take(&mut self.sent.lock()))
    }
}

struct Trace(Vec<ExportTraceServiceRequest>);

impl Trace {
    fn spans(&self) -> impl Iterator<Item = &Span> {
        self.0
            .iter()
            .flat_map(|request| &request.resource_spans)
            .flat_map(|resource| &resource.scope_spans)
            .flat_map(|scope| &scope.spans)
    }

    /// Returns the span of the request that got this response.
    fn of(&self, response: &HttpResponse) -> &Span {
        let id = response.header("x-request-id").unwrap();
        self.spans()
            .find(|span| span.name == "request" && text(&span.attributes, "id") == id)
            .unwrap_or_else(|| panic!("{id} is not in {self}"))
    }

    /// Returns the children of a span, in the order in which they began.
    fn within(&self, parent: &Span) -> Vec<&Span> {
        let mut children: Vec<&Span> = self
            .spans()
            .filter(|span| span.parent_span_id == parent.span_id)
            .collect();
        children.sort_by_key(|span| span.start_time_unix_nano);
        for child in &children {
            assert_eq!(child.trace_id, parent.trace_id);
            // Ends are not compared: the thread of SQLite leaves a span after it has replied.
            let lasting = parent.start_time_unix_nano..=parent.end_time_unix_nano;
            assert!(
                lasting.contains(&child.start_time_unix_nano),
                "{} is not within {}: {self}",
                child.name,
                parent.name,
            );
        }
        children
    }
}

impl std::fmt::Display for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.spans().try_for_each(|span| writeln!(f, "{span:?}"))
    }
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> &'a any_value::Value {
    attributes
        .iter()
        .find(|attribute| attribute.key == key)
        .and_then(|attribute| attribute.value.as_ref()?.value.as_ref())
        .unwrap_or_else(|| panic!("no {key} in {attributes:?}"))
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> &'a str {
    match value(attributes, key) {
        any_value::Value::StringValue(text) => text,
        other => panic!("{key} is {other:?}"),
    }
}

fn status_code(span: &Span) -> StatusCode {
    let status = span.status.as_ref();
    status.map_or(StatusCode::Unset, |status| status.code())
}

/// Returns each step of a settlement as `resource action`, without the wait for SQLite's disk.
fn steps(spans: &[&Span]) -> Vec<String> {
    let step = |span: &&Span| {
        assert_eq!(span.name, "step");
        let resource = text(&span.attributes, "resource");
        let action = text(&span.attributes, "action");
        format!("{resource} {action}")
    };
    let steps = spans.iter().filter(|span| span.name != "durable");
    steps.map(step).collect()
}

async fn service(backend: Backend, variables: &[(&str, &str)]) -> Service {
    let databases = Arc::new(Databases::new(backend).await);
    Service::on(databases, variables).await
}

/// Spans are sent in batches, every few seconds. SIGTERM comes before the first batch, and the
/// spans are sent at shutdown.
async fn a_collector_gets_the_spans_of_requests(backend: Backend) {
    // The log level does not change the spans.
    for level in ["off,rocket=warn", "trace"] {
        let collector = Collector::new().await;
        let variables = [(ENDPOINT, collector.url()), ("RUST_LOG", level)];
        let service = service(backend, &variables).await;
        let committed = service.new_todo("a secret title", "").await;
        assert_eq!(committed.summary(), (201, Some("committed")));
        let rolled_back = service.new_todo("a secret title", "respond=502").await;
        assert_eq!(rolled_back.summary(), (502, Some("rolled-back")));
        let refused = service.new_todo("a secret title", "commit").await;
        assert_eq!(refused.summary(), (409, Some("rolled-back")));
        service.new_todo("a secret title", "swallow").await;
        service.stop().await;
        let trace = collector.finished().await;

        let commit: &[&str] = match backend {
            Backend::Sqlite => &[
                "main Prepare",
                "audit Prepare",
                "main Commit",
                "audit Commit",
            ],
            Backend::Postgres => &[
                "main Prepare",
                "audit Prepare",
                "audit PrepareTransaction",
                "main Decide",
                "audit CommitPrepared",
            ],
        };
        let rollback = ["main Rollback", "audit Rollback"];
        for (response, verdict, code, expected) in [
            (&committed, "status 201", StatusCode::Unset, commit),
            (&rolled_back, "status 502", StatusCode::Error, &rollback),
        ] {
            let request = trace.of(response);
            assert!(request.parent_span_id.is_empty(), "{trace}");
            assert_eq!(request.kind(), SpanKind::Server);
            assert_eq!(status_code(request), code);
            let attributes = &request.attributes;
            assert_eq!(text(attributes, "method"), "POST");
            assert_eq!(text(attributes, "route"), "todos::create");
            assert_eq!(text(attributes, "verdict"), verdict);
            assert_eq!(text(attributes, "outcome"), response.outcome().unwrap());
            let status = any_value::Value::IntValue(response.status.into());
            assert_eq!(*value(attributes, "status"), status);
            let children = trace.within(request);
            let names: Vec<&str> = children.iter().map(|span| &*span.name).collect();
            assert_eq!(names, ["begin", "begin", "settle"], "{trace}");
            assert_eq!(text(&children[0].attributes, "database"), "main");
            assert_eq!(text(&children[1].attributes, "database"), "audit");
            assert_eq!(steps(&trace.within(children[2])), expected, "{trace}");
        }
        // A conflict is an error of the client, not of the service.
        assert_eq!(status_code(trace.of(&refused)), StatusCode::Unset);
        for resource in trace.0.iter().flat_map(|sent| &sent.resource_spans) {
            let attributes = &resource.resource.as_ref().unwrap().attributes;
            assert_eq!(text(attributes, "service.name"), "rocket_tx");
        }
        let exported = trace.to_string();
        for word in ["secret", "INSERT", "UPDATE", "SELECT", "BEGIN"] {
            assert!(!exported.contains(word), "{word}: {exported}");
        }
        assert!(
            trace.spans().all(|span| span.events.is_empty()),
            "{exported}"
        );
    }
}

async fn a_client_can_set_the_parent_span(backend: Backend) {
    let collector = Collector::new().await;
    let variables = [
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            &*format!("{}/v1/traces", collector.url()),
        ),
        ("OTEL_SERVICE_NAME", "todos"),
    ];
    let service = service(backend, &variables).await;
    let send = |parent: &str| {
        let request = service
            .http
            .request("POST /todos")
            .header("Content-Type", "application/json")
            .header("traceparent", parent.to_owned())
            .body(r#"{"title":"a"}"#);
        HttpResponse::of(request)
    };
    let sampled = send("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").await;
    let unsampled = send("00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00").await;
    let nonsense = send("nonsense").await;
    assert_eq!(
        (sampled.status, unsampled.status, nonsense.status),
        (201, 201, 201)
    );
    service.stop().await;
    let trace = collector.finished().await;

    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        })
    };
    let request = trace.of(&sampled);
    assert_eq!(hex(&request.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&request.parent_span_id), "b7ad6b7169203331");
    assert_eq!(trace.within(request).len(), 3, "{trace}");
    assert!(trace.of(&nonsense).parent_span_id.is_empty());
    // The client does not sample this trace, so the service records no span of it.
    let skipped = "1af7651916cd43dd8448eb211c80319c";
    assert!(trace.spans().all(|span| hex(&span.trace_id) != skipped));
    let resource = trace.0[0].resource_spans[0].resource.as_ref().unwrap();
    assert_eq!(text(&resource.attributes, "service.name"), "todos");
}

/// Sends many requests, with a small queue of spans that are exported at once. Each export fails.
async fn is_not_disturbed_by(backend: Backend, endpoint: &str) {
    let variables = [
        (ENDPOINT, endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "1"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
    ];
    let mut service = service(backend, &variables).await;
    let requests = async {
        for number in 0..50 {
            let response = service.new_todo(&number.to_string(), "").await;
            assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
        }
    };
    // An export takes 10 s. If one request waited for an export, this would time out.
    timeout(Duration::from_secs(9), requests).await.unwrap();
    let signalled = Instant::now();
    service.signal("TERM");
    assert_eq!(service.ended().await.code(), Some(0), "{}", service.log());
    let took = signalled.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}: {}", service.log());
}

async fn an_unreachable_collector_delays_no_request(backend: Backend) {
    // The port is bound but not listened on: connections are refused, and no other test gets it.
    let taken = TcpSocket::new_v4().unwrap();
    taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let endpoint = format!("http://{}", taken.local_addr().unwrap());
    is_not_disturbed_by(backend, &endpoint).await;
}

async fn a_silent_collector_delays_no_request(backend: Backend) {
    // The system accepts the connections, but the test never reads from them.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    is_not_disturbed_by(backend, &endpoint).await;
    drop(listener);
}

async fn an_unsupported_protocol_stops_the_launch(backend: Backend) {
    let databases = Databases::new(backend).await;
    let variables = [
        (ENDPOINT, "http://127.0.0.1:4317"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ];
    let (status, log) = Service::refused(&databases, &variables).await;
    assert!(!status.success());
    assert!(log.contains("`OTEL_EXPORTER_OTLP_PROTOCOL`"), "{log}");
}

async fn without_an_endpoint_nothing_is_sent(backend: Backend) {
    let collector = Collector::new().await;
    let mut threads = Vec::new();
    for endpoint in [collector.url(), ""] {
        let service = service(backend, &[(ENDPOINT, endpoint)]).await;
        let names = std::fs::read_dir(format!("/proc/{}/task", service.id())).unwrap();
        let names = names.map(|task| task.unwrap().path().join("comm"));
        // Counts the threads that export. Linux truncates the names of threads.
        let sending = names
            .filter(|name| {
                std::fs::read_to_string(name).is_ok_and(|name| name.starts_with("OpenTel"))
            })
            .count();
        threads.push(sending);
        service.stop().await;
    }
    assert_eq!(threads, [1, 0]);
    collector.launched.close().await;
}

on_each_backend!(
    a_collector_gets_the_spans_of_requests,
    a_client_can_set_the_parent_span,
    an_unreachable_collector_delays_no_request,
    a_silent_collector_delays_no_request,
    an_unsupported_protocol_stops_the_launch,
    without_an_endpoint_nothing_is_sent,
);
