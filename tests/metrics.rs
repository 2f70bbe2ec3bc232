//! `/metrics`: the counts are complete and consistent.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::aggregates::{create, rename};
use crate::support::python::{all_output, python};
use crate::support::{Backend, Break, Databases, In, Service};

/// Returns every sample by its name with its labels. Checks the format: each sample has a TYPE line
/// before it, no line occurs twice, and each value is a number.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name, kind).is_none(), "{name} twice");
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let bare = name.split('{').next().unwrap();
            let family = types.keys().any(|family| {
                let suffix = bare.strip_prefix(family);
                matches!(suffix, Some("" | "_bucket" | "_sum" | "_count"))
            });
            assert!(family, "{line} has no type");
            let before = samples.insert(name.to_owned(), value.parse().unwrap());
            assert!(before.is_none(), "{line} twice");
        }
    }
    for (name, kind) in types {
        assert_eq!(
            name.ends_with("_total"),
            kind == "counter",
            "{name} is a {kind}"
        );
    }
    samples
}

fn sum(samples: &BTreeMap<String, f64>, name: &str, label: &str) -> f64 {
    let of =
        |(key, _): &(&String, &f64)| key.starts_with(&format!("{name}{{")) && key.contains(label);
    samples.iter().filter(of).map(|(_, value)| value).sum()
}

/// Returns how many samples the official Prometheus client reads in `text`.
fn read_by_prometheus(service: &Service, text: &str) -> usize {
    let program = "import sys; from prometheus_client.parser import text_string_to_metric_families; \
         families = text_string_to_metric_families(sys.stdin.read()); \
         print(sum(len(family.samples) for family in families))";
    let output = python(service.databases.folder(), &["-c", program], text);
    assert!(output.status.success(), "{}", all_output(&output));
    all_output(&output).trim().parse().unwrap()
}

async fn scraped(service: &Service) -> BTreeMap<String, f64> {
    let response = service.get("/metrics").await;
    assert_eq!(response.status, 200);
    let kind = response.header("content-type").unwrap();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let samples = samples(&response.body);
    assert_eq!(read_by_prometheus(service, &response.body), samples.len());
    samples
}

async fn outcomes_add_up(backend: Backend) {
    let service = Service::start(backend).await;
    let mut sent = 0;
    for (fault, outcome) in [
        ("", "committed"),
        ("respond=502", "rolled-back"),
        ("panic", "rolled-back"),
        ("doom", "rolled-back"),
        ("commit", "rolled-back"),
        ("", "committed"),
    ] {
        let response = service.new_todo("a", fault).await;
        assert_eq!(response.outcome(), Some(outcome));
        sent += 1;
    }
    let samples = scraped(&service).await;
    assert_eq!(
        sum(&samples, "rocket_tx_settled_total", ""),
        f64::from(sent)
    );
    assert_eq!(
        sum(
            &samples,
            "rocket_tx_settled_total",
            r#"outcome="committed""#
        ),
        2.0
    );
    assert_eq!(
        sum(&samples, "rocket_tx_settled_total", r#"reason="panicked""#),
        1.0
    );
    assert_eq!(
        sum(&samples, "rocket_tx_settled_total", r#"reason="doomed""#),
        1.0
    );
    assert_eq!(
        sum(&samples, "http_requests_total", r#"route="todos::create""#),
        f64::from(sent)
    );
    // The status that the client received counts, not the one that the handler returned.
    assert_eq!(
        samples[r#"http_requests_total{route="todos::create",status="409"}"#],
        2.0
    );
    assert_eq!(
        samples[r#"http_requests_total{route="todos::create",status="201"}"#],
        2.0
    );
    let commit = match backend {
        Backend::Sqlite => "commit",
        Backend::Postgres => "commit-prepared",
    };
    let commits =
        format!(r#"rocket_tx_steps_total{{action="{commit}",resource="audit",result="ok"}}"#);
    assert_eq!(samples[&commits], 2.0);
    let refused = r#"rocket_tx_steps_total{action="prepare",resource="main",result="failed"}"#;
    assert_eq!(samples[refused], 1.0);
    for (labels, count) in [
        (
            r#"database="audit",outcome="committed",reason="status""#,
            2.0,
        ),
        (
            r#"database="audit",outcome="rolled-back",reason="status""#,
            2.0,
        ),
        (
            r#"database="main",outcome="rolled-back",reason="panicked""#,
            1.0,
        ),
    ] {
        let name = format!("rocket_tx_databases_settled_total{{{labels}}}");
        assert_eq!(samples[&name], count, "{name}");
    }
    let reads = r#"rocket_tx_read_wait_seconds_count{database="main"}"#;
    assert_eq!(samples.get(reads), None);
    service.get("/todos").await;
    assert_eq!(scraped(&service).await[reads], 1.0);
    let begun = r#"rocket_tx_begin_wait_seconds_count{database="main"}"#;
    assert_eq!(samples[begun], f64::from(sent));
    let took = sum(&samples, "rocket_tx_settle_duration_seconds_count", "");
    assert_eq!(took, f64::from(sent));
    assert_eq!(samples["rocket_tx_outstanding"], 0.0);
}

async fn leases_are_counted(backend: Backend) {
    let service = Service::start(backend).await;
    create(&service.http, "milk").await;
    for fault in ["", "respond=502", "delay=300@loaded"] {
        rename(&service.http, "milk", "a", fault).await;
    }
    let slow = rename(&service.http, "milk", "slow", "delay=1000@loaded");
    let waiting = async {
        crate::support::eventually("the key is leased", async || {
            !crate::aggregates::leases(&service.http).await.is_empty()
        })
        .await;
        rename(&service.http, "milk", "waiting", "").await
    };
    rocket::futures::future::join(slow, waiting).await;
    let samples = scraped(&service).await;
    assert_eq!(samples[r#"rocket_tx_leases_total{result="acquired"}"#], 5.0);
    assert_eq!(samples[r#"rocket_tx_leases_total{result="given-up"}"#], 0.0);
    assert_eq!(
        samples[r#"rocket_tx_leases_total{result="taken-over"}"#],
        0.0
    );
    let waited = samples["rocket_tx_lease_wait_seconds_total"];
    assert!((0.05..30.0).contains(&waited), "{waited}");
}

/// One database has committed. The COMMIT of the other did not reach the server.
async fn each_database_is_counted_separately() {
    let mut databases = Databases::new(Backend::Postgres).await;
    let proxy = databases.by_proxy(In::Audit).await;
    let variables = [("ROCKET_ATOMIC_COMMIT", "off")];
    let service = Service::on(Arc::new(databases), &variables).await;
    proxy.set("COMMIT", Break::Before);
    let response = service.new_todo("a", "").await;
    assert!(proxy.has_sprung());
    assert_eq!(response.outcome(), Some("partial"));
    let samples = scraped(&service).await;
    for (database, outcome) in [("main", "committed"), ("audit", "rolled-back")] {
        let name = format!(
            "rocket_tx_databases_settled_total{{database=\"{database}\",outcome=\"{outcome}\",reason=\"status\"}}"
        );
        assert_eq!(samples.get(&name), Some(&1.0), "{name} in {samples:?}");
    }
}

mod postgres_only {
    mod postgres {
        #[rocket::async_test]
        async fn each_database_is_counted_separately() {
            super::super::each_database_is_counted_separately().await;
        }
    }
}

on_each_backend!(outcomes_add_up, leases_are_counted);
