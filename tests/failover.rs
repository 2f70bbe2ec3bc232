//! A Postgres server stops, starts, hangs, and fails over to a standby.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rocket::http::Status;
use rocket::{get, post, routes};
use rocket_tx::tx::{RepeatableRead, Serializable, bounded};
use rocket_tx::{Error, Read, Settlement, Tx};

use crate::support::stage::{note, run};
use crate::support::{Break, Cluster, Databases, In, Main, Proxy, Stage, eventually};

#[post("/notes/<text>")]
async fn write(text: &str, mut main: Tx<Main>) -> Result<Status, Error> {
    note(&mut main, text).await?;
    Ok(Status::Created)
}

#[post("/repeatable/<text>")]
async fn repeatable(text: &str, mut main: Tx<Main, RepeatableRead>) -> Result<Status, Error> {
    note(&mut main, text).await?;
    Ok(Status::Created)
}

#[post("/serializable/<text>")]
async fn serializable(text: &str, mut main: Tx<Main, Serializable>) -> Result<Status, Error> {
    note(&mut main, text).await?;
    Ok(Status::Created)
}

#[get("/notes")]
async fn read(mut main: Read<Main>) -> Result<(), Error> {
    Ok(run(&mut main, "SELECT count(*) FROM notes").await?)
}

const HANDLER: Duration = Duration::from_secs(3);

/// The longest time of a request: `connect_timeout` (1 s), the handler's limit, `settle_timeout`
/// (1 s), and 3 s for a busy machine.
const BOUND: Duration = Duration::from_secs(1 + HANDLER.as_secs() + 1 + 3);

/// A stage whose database `main` is on `cluster`, behind a proxy that can forward to another
/// server.
async fn stage(cluster: &Cluster) -> (Stage, Proxy) {
    let mut databases = Databases::on_cluster(cluster).await;
    let proxy = databases.by_proxy(In::Main).await;
    let settings = [
        ("settle_timeout", "\"1s\""),
        ("databases.main.connect_timeout", "\"1s\""),
    ];
    let stage = Stage::on(databases, &settings, |rocket| {
        let routes = routes![write, repeatable, serializable, read];
        rocket
            .mount("/", bounded(routes, HANDLER))
            .attach(Settlement::new())
    })
    .await;
    (stage, proxy)
}

/// Writes and reads with several clients while `meanwhile` runs. Returns the kinds of the failures.
/// Asserts that each response arrives in time, and that each failure may be retried or has the
/// outcome `unknown`.
async fn under_load(stage: &Stage, meanwhile: impl Future<Output = ()>) -> BTreeSet<String> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);

    let is_over = AtomicBool::new(false);
    let client = async || {
        let mut kinds = BTreeSet::new();
        while !is_over.load(Ordering::SeqCst) {
            let number = NEXT.fetch_add(1, Ordering::SeqCst);
            for line in [format!("POST /notes/{number}"), "GET /notes".to_owned()] {
                let sent = Instant::now();
                let response = stage.send(&line).await;
                let took = sent.elapsed();
                assert!(took < BOUND, "{line} took {took:?}: {response:?}");
                match response.status {
                    200 | 201 => {}
                    503 => {
                        assert!(response.header("retry-after").is_some(), "{response:?}");
                        kinds.insert(response.kind());
                    }
                    _ => {
                        assert_eq!(response.outcome(), Some("unknown"), "{line}: {response:?}");
                        kinds.insert(response.kind());
                    }
                }
            }
        }
        kinds
    };
    let over = async {
        meanwhile.await;
        is_over.store(true, Ordering::SeqCst);
    };
    let clients = rocket::futures::future::join_all((0..6).map(|_| client()));
    let (kinds, ()) = rocket::tokio::join!(clients, over);
    kinds.into_iter().flatten().collect()
}

/// Waits until writes and reads work.
async fn works(stage: &Stage) {
    for line in ["POST /notes/works", "GET /notes"] {
        eventually("requests succeed again", async || {
            stage.send(line).await.status < 300
        })
        .await;
    }
    stage.nothing_is_stuck().await;
}

mod postgres {
    use super::*;

    #[rocket::async_test]
    async fn a_restarting_server_causes_only_failures_that_may_be_retried() {
        let mut cluster = Cluster::start().await;
        let (stage, _proxy) = stage(&cluster).await;
        works(&stage).await;
        stage.databases.empty().await;
        let kinds = under_load(&stage, async {
            for _ in 0..2 {
                cluster.crash().await;
                cluster.restart().await;
                cluster.restart().await;
            }
        })
        .await;
        println!("kinds of failures: {kinds:?}");
        assert!(!kinds.contains("database"), "{kinds:?}");
        works(&stage).await;
    }

    /// The reply to COMMIT is lost, and the server crashes.
    #[rocket::async_test]
    async fn a_crash_at_commit_is_reported_truthfully_or_as_unknown() {
        let mut cluster = Cluster::start().await;
        let mut databases = Databases::on_cluster(&cluster).await;
        let proxy = databases.by_proxy(In::Main).await;
        let settings = [("settle_timeout", "\"8s\""), ("shutdown.grace", "10")];
        let stage = Stage::on(databases, &settings, |rocket| {
            let routes = routes![write, repeatable, serializable, read];
            rocket.mount("/", routes).attach(Settlement::new())
        })
        .await;
        let mut statuses = BTreeMap::<_, usize>::new();
        for (round, kind) in [Break::Before, Break::After, Break::Stall]
            .into_iter()
            .cycle()
            .enumerate()
            .take(9)
        {
            let level = ["notes", "repeatable", "serializable"][round / 3];
            proxy.set("COMMIT", kind);
            let crashing = async {
                eventually("COMMIT was sent", async || proxy.has_sprung()).await;
                match round % 2 {
                    0 => cluster.kill().await,
                    _ => cluster.crash().await,
                }
                cluster.restart().await;
            };
            let write = format!("POST /{level}/{round}");
            let (response, ()) = rocket::tokio::join!(stage.send(&write), crashing);
            let is_stored = !stage.databases.notes(In::Main).await.is_empty();
            let case = format!("{write}, {kind:?}, stored: {is_stored}: {response:?}");
            match response.summary() {
                (201, Some("committed")) => assert!(is_stored, "{case}"),
                (503, Some("rolled-back")) => assert!(!is_stored, "{case}"),
                (500, Some("unknown")) => {}
                _ => panic!("{case}"),
            }
            *statuses
                .entry((format!("{kind:?}"), response.status))
                .or_default() += 1;
            works(&stage).await;
            stage.databases.empty().await;
        }
        println!("statuses: {statuses:?}");
    }

    /// The server's processes do nothing, but its connections stay open, as on a host that hangs.
    #[rocket::async_test]
    async fn requests_to_a_server_that_hangs_fail_in_time() {
        let cluster = Cluster::start().await;
        let (stage, _proxy) = stage(&cluster).await;
        works(&stage).await;
        stage.databases.empty().await;
        for only_backends in [true, false] {
            let kinds = under_load(&stage, async {
                match only_backends {
                    true => cluster.signal_backends("STOP"),
                    false => cluster.freeze(),
                }
                rocket::tokio::time::sleep(2 * HANDLER).await;
                cluster.thaw();
            })
            .await;
            println!("kinds of failures: {kinds:?}");
            assert!(!kinds.contains("database"), "{kinds:?}");
            works(&stage).await;
            stage.databases.empty().await;
        }
    }

    /// The server's address points to a standby before that is promoted.
    #[rocket::async_test]
    async fn a_standby_takes_no_writes_until_it_is_promoted() {
        let mut primary = Cluster::start().await;
        let (stage, proxy) = stage(&primary).await;
        works(&stage).await;
        let mut standby = primary.standby().await;
        primary.kill().await;
        proxy.lead_to(&standby.url("main"));
        for level in ["notes", "repeatable", "serializable"] {
            for _ in 0..2 {
                let response = stage.send(&format!("POST /{level}/standby")).await;
                assert_eq!(
                    response.summary(),
                    (503, Some("rolled-back")),
                    "{}",
                    response.body
                );
                assert_eq!(response.kind(), "not-writable", "{level}");
                assert!(response.header("retry-after").is_some());
            }
        }
        assert_eq!(stage.send("GET /notes").await.status, 200);
        standby.promote().await;
        for level in ["notes", "repeatable", "serializable"] {
            let response = stage.send(&format!("POST /{level}/{level}")).await;
            assert_eq!(
                response.summary(),
                (201, Some("committed")),
                "{}",
                response.body
            );
        }
    }

    /// The open sessions are on a server that no longer accepts writes. New sessions reach another
    /// server.
    #[rocket::async_test]
    async fn a_session_on_a_server_that_became_read_only_is_replaced() {
        let mut primary = Cluster::start().await;
        let (stage, proxy) = stage(&primary).await;
        works(&stage).await;
        let mut standby = primary.standby().await;
        primary.wait_for(&standby).await;
        standby.promote().await;
        let mut admin = primary.admin().await;
        for sql in [
            "ALTER SYSTEM SET default_transaction_read_only = on",
            "SELECT pg_reload_conf()",
        ] {
            sqlx::raw_sql(sql).execute(&mut admin).await.unwrap();
        }
        eventually("the old primary refuses writes", async || {
            let mut session = stage.databases.postgres(In::Main).await;
            let read_only: String = sqlx::query_scalar("SHOW transaction_read_only")
                .fetch_one(&mut session)
                .await
                .unwrap();
            read_only == "on"
        })
        .await;
        let response = stage.send("POST /notes/before").await;
        assert_eq!(response.kind(), "not-writable");
        proxy.lead_to(&standby.url("main"));
        for level in ["notes", "repeatable", "serializable"] {
            let response = stage.send(&format!("POST /{level}/{level}")).await;
            assert_eq!(
                response.summary(),
                (201, Some("committed")),
                "{}",
                response.body
            );
        }
        primary.stop().await;
    }
}
