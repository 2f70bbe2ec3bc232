//! `/metrics`: counters and durations in Prometheus's text format.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Counter, Encoder, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    Opts, Registry, TextEncoder,
};
use rocket::fairing::{Fairing, Info, Kind};
use rocket::http::{ContentType, Status};
use rocket::{Data, Request, Response, State, get};
use rocket_tx::RequestId;
use rocket_tx::db::sqlite_open_retries;
use rocket_tx::tx::{Action, Live, Observer, Reason, SettlementReport, Step};
use rocket_tx_aggregates::aggregate::Leases;

use crate::databases::Main;
use crate::http::{Endpoints, endpoints};

pub(crate) fn endpoints() -> Endpoints {
    endpoints!("metrics": metrics)
}

/// All metrics of the service. Clones share the same metrics.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Locked in `collect`, so that two concurrent requests do not add the same difference twice.
    collecting: Arc<Mutex<()>>,
    http: IntCounterVec,
    http_seconds: HistogramVec,
    settled: IntCounterVec,
    settle_seconds: HistogramVec,
    databases: IntCounterVec,
    steps: IntCounterVec,
    begin_seconds: HistogramVec,
    read_seconds: HistogramVec,
    outstanding: IntGauge,
    in_doubt: IntGauge,
    in_doubt_seconds: Gauge,
    listeners: IntGauge,
    hook_failures: IntCounter,
    open_retries: IntCounter,
    leases: IntCounterVec,
    lease_wait_seconds: Counter,
}

/// The upper bounds of the histogram buckets, in seconds.
const BUCKETS: [f64; 11] = [
    0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 2.0, 10.0,
];

impl Default for Metrics {
    fn default() -> Self {
        Self::new().expect("the metrics have valid and unique names")
    }
}

impl Metrics {
    fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let options = Opts::new(name, help);
            registered(&registry, IntCounterVec::new(options, labels))
        };
        let histograms = |name: &str, help: &str, labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
            registered(&registry, HistogramVec::new(options, labels))
        };
        let gauge = |name: &str, help: &str| registered(&registry, IntGauge::new(name, help));
        let counter = |name: &str, help: &str| registered(&registry, IntCounter::new(name, help));
        Ok(Self {
            collecting: Arc::default(),
            http: counters(
                "http_requests_total",
                "Responses, by route and status.",
                &["route", "status"],
            )?,
            http_seconds: histograms(
                "http_request_duration_seconds",
                "Time from the arrival of a request until its response is settled and ready.",
                &["route"],
            )?,
            settled: counters(
                "rocket_tx_settled_total",
                "Requests that had something outstanding, by outcome and reason of the verdict.",
                &["outcome", "reason"],
            )?,
            settle_seconds: histograms(
                "rocket_tx_settle_duration_seconds",
                "Duration of settlements, by outcome.",
                &["outcome"],
            )?,
            databases: counters(
                "rocket_tx_databases_settled_total",
                "Transactions of requests, by database, outcome and reason of the verdict.",
                &["database", "outcome", "reason"],
            )?,
            steps: counters(
                "rocket_tx_steps_total",
                "Steps of settlements, by database or resource, action and result.",
                &["resource", "action", "result"],
            )?,
            begin_seconds: histograms(
                "rocket_tx_begin_wait_seconds",
                "Time to begin a transaction: the wait for a connection or for SQLite's writer, \
                 and BEGIN itself.",
                &["database"],
            )?,
            read_seconds: histograms(
                "rocket_tx_read_wait_seconds",
                "Time that a request with a `Read` guard waited for a connection.",
                &["database"],
            )?,
            outstanding: gauge(
                "rocket_tx_outstanding",
                "Transactions and resources that are outstanding now, or condemned: still held after \
                 the end of their request.",
            )?,
            in_doubt: gauge(
                "rocket_tx_in_doubt",
                "Prepared transactions whose request has ended and that nobody has finished yet.",
            )?,
            in_doubt_seconds: registered(
                &registry,
                Gauge::new(
                    "rocket_tx_in_doubt_age_seconds",
                    "Age of the oldest prepared transaction that is in doubt; 0 if there is none.",
                ),
            )?,
            listeners: gauge(
                "rocket_tx_listeners",
                "Clients that are connected to /registry/events now.",
            )?,
            hook_failures: counter(
                "rocket_tx_hook_failures_total",
                "Hooks after commit or rollback that failed or panicked.",
            )?,
            open_retries: counter(
                "rocket_tx_sqlite_open_retries_total",
                "Retries because a SQLite file was busy when it was opened.",
            )?,
            leases: counters(
                "rocket_tx_leases_total",
                "Attempts to acquire leases, by result. acquired: a lease was acquired; taken-over: \
                 it was acquired after another holder's lease had expired (also counted as \
                 acquired); contended: it was held or its row was busy; given-up: the wait ended \
                 without a lease.",
                &["result"],
            )?,
            lease_wait_seconds: registered(
                &registry,
                Counter::new(
                    "rocket_tx_lease_wait_seconds_total",
                    "Total time of the waits that ended with a lease.",
                ),
            )?,
            registry,
        })
    }

    /// Copies the counts that the library keeps to the metrics.
    fn collect(&self, live: &Live, leases: &Leases<Main>) {
        let _alone = self.collecting.lock();
        let count = i64::try_from(live.transactions().len()).unwrap_or(i64::MAX);
        self.outstanding.set(count);
        let in_doubt = live.in_doubt();
        self.in_doubt
            .set(i64::try_from(in_doubt.len()).unwrap_or(i64::MAX));
        let oldest = in_doubt.iter().map(|prepared| prepared.age_ms).max();
        self.in_doubt_seconds
            .set(oldest.unwrap_or(0) as f64 / 1000.0);
        let listeners = i64::try_from(live.listeners()).unwrap_or(i64::MAX);
        self.listeners.set(listeners);
        raise(&self.hook_failures, live.hook_failures());
        raise(&self.open_retries, sqlite_open_retries());
        let stats = leases.stats();
        for (result, count) in [
            ("acquired", stats.acquired),
            ("taken-over", stats.taken_over),
            ("contended", stats.contended),
            ("given-up", stats.given_up),
        ] {
            raise(&self.leases.with_label_values(&[result]), count);
        }
        let more = stats.waited.as_secs_f64() - self.lease_wait_seconds.get();
        self.lease_wait_seconds.inc_by(more.max(0.0));
    }
}

/// Registers `metric` and returns it.
fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<C>,
) -> prometheus::Result<C> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// Raises a counter to a count that the library keeps.
fn raise(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

/// Returns the label for a reason, without its details. A label must have few values; the log has
/// the details.
fn label(reason: &Reason) -> &'static str {
    match reason {
        Reason::Leaked(_) => "leaked",
        Reason::Panicked => "panicked",
        Reason::Replayed => "replayed",
        Reason::GuardFailed => "guard-failed",
        Reason::Doomed(_) => "doomed",
        Reason::Handler => "handler",
        Reason::Vetoed => "vetoed",
        Reason::Status(_) => "status",
        _ => "other",
    }
}

impl Observer for Metrics {
    fn began(&self, _: RequestId, database: &str, waited: Duration) {
        let seconds = self.begin_seconds.with_label_values(&[database]);
        seconds.observe(waited.as_secs_f64());
    }

    fn read_acquired(&self, _: RequestId, database: &str, waited: Duration) {
        let seconds = self.read_seconds.with_label_values(&[database]);
        seconds.observe(waited.as_secs_f64());
    }

    fn after(&self, step: &Step<'_, '_>, result: Result<(), &rocket_tx::Error>, _: Duration) {
        let action = match step.action {
            Action::Prepare => "prepare",
            Action::Commit => "commit",
            Action::Rollback => "rollback",
            Action::PrepareTransaction => "prepare-transaction",
            Action::Decide => "decide",
            Action::CommitPrepared => "commit-prepared",
            _ => "other",
        };
        let result = if result.is_ok() { "ok" } else { "failed" };
        let labels = [step.resource, action, result];
        self.steps.with_label_values(&labels).inc();
    }

    fn settled(&self, _: &Request<'_>, settled: &SettlementReport) {
        let outcome = settled.outcome.as_str();
        let reason = label(settled.verdict.reason());
        self.settled.with_label_values(&[outcome, reason]).inc();
        for (database, outcome) in &settled.databases {
            let labels = [database, outcome.as_str(), reason];
            self.databases.with_label_values(&labels).inc();
        }
        let seconds = self.settle_seconds.with_label_values(&[outcome]);
        seconds.observe(settled.took.as_secs_f64());
    }

    fn responded(&self, request: &Request<'_>, response: &Response<'_>) {
        let route = request.route().and_then(|route| route.name.as_deref());
        let route = route.unwrap_or("none");
        let status = response.status().code.to_string();
        let arrived = request.local_cache(|| ArrivalTime(Instant::now())).0;
        self.http.with_label_values(&[route, &status]).inc();
        let seconds = self.http_seconds.with_label_values(&[route]);
        seconds.observe(arrived.elapsed().as_secs_f64());
    }
}

/// A fairing that stores the time when a request arrives.
pub(crate) struct Arrivals;

/// The time when a request arrived.
struct ArrivalTime(Instant);

#[rocket::async_trait]
impl Fairing for Arrivals {
    fn info(&self) -> Info {
        Info {
            name: "Metrics: arrivals",
            kind: Kind::Request,
        }
    }

    async fn on_request(&self, request: &mut Request<'_>, _: &mut Data<'_>) {
        request.local_cache(|| ArrivalTime(Instant::now()));
    }
}

/// Returns counters and durations in Prometheus's text format.
#[utoipa::path(responses((status = 200, description = "The current values.", body = String)))]
#[get("/metrics")]
fn metrics(
    metrics: &State<Metrics>,
    live: &State<Live>,
    leases: &State<Leases<Main>>,
) -> Result<(ContentType, String), Status> {
    metrics.collect(live, leases);
    let mut text = Vec::new();
    let encoder = TextEncoder::new();
    let encoded = encoder.encode(&metrics.registry.gather(), &mut text);
    let text = encoded.ok().and_then(|()| String::from_utf8(text).ok());
    let text = text.ok_or(Status::InternalServerError)?;
    let kind =
        ContentType::new("text", "plain").with_params([("version", "0.0.4"), ("charset", "utf-8")]);
    Ok((kind, text))
}
