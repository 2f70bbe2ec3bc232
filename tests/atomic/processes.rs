//! Processes that die during an atomic commit, and the launch.

use super::servers::{REQUIRED, SHORT, titles};
use super::*;
use crate::support::{Service, eventually};

/// Two processes recover at the same time.
#[rocket::async_test]
async fn after_a_crash_any_process_commits_both_or_neither() {
    for pair in Pair::ALL {
        let (_, participant) = pair.roles();
        let databases = Arc::new(pair.new_databases().await);
        let variables = [REQUIRED, SHORT];
        for point in [
            "before-commit",
            "before-decision",
            "between-commits",
            "after-commit",
        ] {
            let mut service = Service::on(Arc::clone(&databases), &variables).await;
            service.crash(point, &format!("crash={point}")).await;
        }
        let one = Service::on(Arc::clone(&databases), &variables).await;
        let other = Service::on(Arc::clone(&databases), &variables).await;
        eventually("everything is finished", async || {
            prepared(&databases, participant).await.is_empty()
        })
        .await;
        let both = ["after-commit", "between-commits"];
        assert_eq!(titles(&databases).await, [both, both], "{pair:?}");
        one.stop().await;
        other.stop().await;
    }
}

#[rocket::async_test]
async fn a_key_whose_request_crashes_between_two_commits_is_used_once() {
    let databases = Arc::new(Pair::Servers.new_databases().await);
    let variables = [REQUIRED, SHORT];
    let mut service = Service::on(Arc::clone(&databases), &variables).await;
    let send = async |service: &Service, fault: &str| {
        let request = service
            .http
            .request("POST /todos")
            .header("Content-Type", "application/json")
            .header("Host", "once")
            .header("Idempotency-Key", "k")
            .header("X-Fault", fault)
            .body(r#"{"title":"once"}"#);
        request.send().await
    };
    assert!(send(&service, "crash=between-commits").await.is_err());
    service.ended().await;
    let service = Service::on(Arc::clone(&databases), &variables).await;
    let response = send(&service, "").await.unwrap();
    assert_eq!(response.status().as_u16(), 201);
    assert!(response.headers().contains_key("idempotency-replayed"));
    eventually("the other database is committed too", async || {
        titles(&databases).await == [["once"], ["once"]]
    })
    .await;
    service.stop().await;
}

#[rocket::async_test]
async fn required_is_refused_with_the_reason_where_it_is_not_possible() {
    let (status, log) = Service::refused(&Databases::at(None, None), &[REQUIRED]).await;
    assert!(!status.success());
    assert!(
        log.contains("`atomic_commit` is \"required\"") && log.contains("neither of them can"),
        "{log}"
    );
    let cluster = Cluster::start_with("max_prepared_transactions = 0").await;
    let databases = Databases::at(
        Some(cluster.create_database("main").await),
        Some(cluster.create_database("audit").await),
    );
    let (status, log) = Service::refused(&databases, &[REQUIRED]).await;
    assert!(!status.success());
    assert!(log.contains("`max_prepared_transactions`"), "{log}");

    let never = [("ROCKET_ATOMIC_COMMIT", "never")];
    let (status, log) = Service::refused(&databases, &never).await;
    assert!(!status.success());
    assert!(log.contains("ATOMIC_COMMIT"), "{log}");
}

#[rocket::async_test]
async fn a_launch_says_between_which_databases_a_commit_is_atomic() {
    for (databases, expected) in [
        (
            Pair::Servers.new_databases().await,
            "`main` and `audit` commits both or neither",
        ),
        (
            Pair::MainOnFile.new_databases().await,
            "`main` and `audit` commits both or neither",
        ),
        (
            Databases::at(None, None),
            "`main` and `audit` commits them one after the other",
        ),
    ] {
        let service = Service::on(Arc::new(databases), &[]).await;
        assert!(service.log().contains(expected), "{}", service.log());
        service.stop().await;
    }
}
