//! The readiness of the service (`/readyz`), and its log when a database becomes unreachable.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{
    Backend, Cluster, Databases, HttpResponse, In, Newcomers, Proxy, Service, eventually,
    eventually_or,
};

/// `/readyz` responds within two seconds; one second is added for a busy machine.
const BOUND: Duration = Duration::from_secs(3);

async fn readyz(service: &Service) -> HttpResponse {
    let sent = Instant::now();
    let response = service.get("/readyz").await;
    let took = sent.elapsed();
    assert!(took < BOUND, "/readyz took {took:?}: {response:?}");
    response
}

/// Waits until `/readyz` responds with 503 and this reason. The databases are checked one by one, and
/// a result is kept for a moment, so the first 503 may name the other database.
async fn is_not_ready(service: &Service, reason: &str) {
    let mut last = None;
    eventually_or("the service is not ready", &mut last, async |last| {
        let response = readyz(service).await;
        let is_named = response.status == 503 && response.body.contains(reason);
        *last = Some(response);
        is_named
    })
    .await;
    let response = last.unwrap();
    assert_eq!(response.kind(), "not-ready", "{response:?}");
    assert!(response.header("retry-after").is_some(), "{response:?}");
}

async fn is_ready(service: &Service) {
    eventually("the service is ready", async || {
        readyz(service).await.status == 204
    })
    .await;
}

async fn a_service_whose_databases_take_writes_is_ready(backend: Backend) {
    let service = Service::start(backend).await;
    let responses = (0..20).map(|_| readyz(&service));
    for response in rocket::futures::future::join_all(responses).await {
        assert_eq!(response.status, 204, "{response:?}");
    }
}

/// While one request holds the only connection, `/readyz` still responds.
async fn readiness_does_not_wait_for_connections_that_requests_hold(backend: Backend) {
    let databases = Arc::new(Databases::new(backend).await);
    let few = databases.variable_with("max_connections=1");
    let service = Service::on(databases, &[("ROCKET_DATABASES", &few)]).await;
    let busy = service.new_todo("a", "delay=4000");
    let probes = async {
        eventually("the request holds its connections", async || {
            let registry: rocket::serde::json::Value = service.get("/registry").await.json();
            registry["outstanding"].as_array().unwrap().len() == 2
        })
        .await;
        for _ in 0..3 {
            assert_eq!(readyz(&service).await.status, 204);
        }
    };
    let (response, ()) = rocket::tokio::join!(busy, probes);
    assert_eq!(response.summary(), (201, Some("committed")));
}

on_each_backend!(
    a_service_whose_databases_take_writes_is_ready,
    readiness_does_not_wait_for_connections_that_requests_hold,
);

/// Returns a service that reaches its database `main` through a proxy.
async fn behind_a_proxy() -> (Service, Proxy) {
    let mut databases = Databases::new(Backend::Postgres).await;
    let proxy = databases.by_proxy(In::Main).await;
    let settings = databases.variable_with("max_connections=4,connect_timeout=1");
    let service = Service::on(Arc::new(databases), &[("ROCKET_DATABASES", &settings)]).await;
    (service, proxy)
}

mod postgres_alone {
    use super::*;

    mod postgres {
        use super::*;

        #[rocket::async_test]
        async fn a_dead_network_is_reported_in_time() {
            let (service, proxy) = behind_a_proxy().await;
            is_ready(&service).await;
            proxy.freeze();
            proxy.newcomers(Newcomers::Ignored).await;
            is_not_ready(&service, "`main` cannot be reached").await;
            let probes = (0..20).map(|_| readyz(&service));
            for response in rocket::futures::future::join_all(probes).await {
                assert_eq!(response.status, 503);
            }
            proxy.newcomers(Newcomers::Served).await;
            // The old connections stay silent.
            is_ready(&service).await;
        }

        #[rocket::async_test]
        async fn a_server_that_was_made_read_only_is_not_ready() {
            let cluster = Cluster::start().await;
            let databases = Arc::new(Databases::on_cluster(&cluster).await);
            let service = Service::on(databases, &[]).await;
            is_ready(&service).await;
            let mut admin = cluster.admin().await;
            for (value, writes) in [("on", false), ("off", true)] {
                let set = format!("ALTER SYSTEM SET default_transaction_read_only = {value}");
                for sql in [&*set, "SELECT pg_reload_conf()"] {
                    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
                        .execute(&mut admin)
                        .await
                        .unwrap();
                }
                match writes {
                    false => {
                        is_not_ready(&service, "`main` takes no writes").await;
                        let response = service.new_todo("a", "").await;
                        assert_eq!(response.kind(), "not-writable", "{response:?}");
                    }
                    true => is_ready(&service).await,
                }
            }
        }

        /// The number of lines does not depend on the number of requests that fail meanwhile.
        #[rocket::async_test]
        async fn an_outage_of_a_database_writes_two_lines_to_the_log() {
            let (service, proxy) = behind_a_proxy().await;
            assert_eq!(service.new_todo("before", "").await.status, 201);
            proxy.newcomers(Newcomers::Refused).await;
            proxy.cut();
            for _ in 0..3 {
                let requests = (0..6).map(|_| service.new_todo("meanwhile", ""));
                for response in rocket::futures::future::join_all(requests).await {
                    assert_eq!(response.kind(), "unreachable", "{response:?}");
                }
            }
            proxy.newcomers(Newcomers::Served).await;
            eventually("a request succeeds again", async || {
                service.new_todo("after", "").await.status == 201
            })
            .await;
            let log = service.log();
            let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
            assert_eq!(lines("the database cannot be reached"), 1, "{log}");
            assert_eq!(lines("can be reached again"), 1, "{log}");
            for line_per_request in [
                "a request guard failed",
                "a request failed",
                "not be served",
            ] {
                assert_eq!(lines(line_per_request), 0, "{log}");
            }
        }
    }
}

/// Returns a library to preload. It simulates a full disk while the file `$FULL_DISK` exists:
/// writes to files with `.db` in their name fail.
fn full_disk(folder: &Path) -> String {
    let source = folder.join("full_disk.c");
    let library = folder.join("full_disk.so");
    std::fs::write(&source, include_str!("support/full_disk.c")).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status()
        .unwrap();
    assert!(built.success());
    library.to_str().unwrap().to_owned()
}

mod sqlite_alone {
    use super::*;

    mod sqlite {
        use super::*;

        #[rocket::async_test]
        async fn a_full_disk_is_not_ready_and_a_write_to_it_fails() {
            let databases = Arc::new(Databases::new(Backend::Sqlite).await);
            let library = full_disk(databases.folder());
            let full = databases.folder().join("full");
            let variables = [
                ("LD_PRELOAD", &*library),
                ("FULL_DISK", full.to_str().unwrap()),
            ];
            let service = Service::on(Arc::clone(&databases), &variables).await;
            is_ready(&service).await;
            assert_eq!(service.new_todo("before", "").await.status, 201);
            std::fs::write(&full, "").unwrap();
            is_not_ready(&service, "`main` has no space left on its disk").await;
            let response = service.new_todo("meanwhile", "").await;
            assert!(response.status >= 500, "{response:?}");
            std::fs::remove_file(&full).unwrap();
            is_ready(&service).await;
            let left_behind = std::fs::read_dir(databases.folder()).unwrap();
            let left_behind =
                left_behind.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
            assert!(!left_behind.into_iter().any(|name| name.contains("canary")));
        }

        #[rocket::async_test]
        async fn a_database_whose_file_was_removed_is_not_ready() {
            let service = Service::start(Backend::Sqlite).await;
            is_ready(&service).await;
            std::fs::remove_file(service.databases.folder().join("audit.db")).unwrap();
            is_not_ready(&service, "`audit` is gone").await;
        }
    }
}
