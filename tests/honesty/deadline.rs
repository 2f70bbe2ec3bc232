//! `settle_timeout` is a single deadline for a whole settlement: prepare, COMMIT, rollback and
//! releases together.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use rocket::http::Status;
use rocket::{post, routes};
use rocket_tx::tx::{Phase, SettleContext};
use rocket_tx::{Begin, Error, Outstanding, Resource, Settlement};

use crate::support::launch::logged;
use crate::support::stage::{both, figment, note};
use crate::support::{Audit, Backend, Break, Databases, In, Main, Stage};

const LIMIT: Duration = Duration::from_secs(2);
/// Extra time for a busy machine. It is shorter than `LIMIT`, so a second deadline would be
/// detected.
const SLACK: Duration = Duration::from_millis(1_500);

/// A resource that never returns from the steps that are named in `at`.
struct Hangs {
    at: String,
    phase: Phase,
}

impl Hangs {
    async fn step(&self, step: &str) -> Result<(), Error> {
        if self.at.contains(step) {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

#[rocket::async_trait]
impl Resource for Hangs {
    fn name(&self) -> Cow<'_, str> {
        "hangs".into()
    }

    fn phase(&self) -> Phase {
        self.phase
    }

    async fn prepare(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
        self.step("prepare").await
    }

    async fn commit(&mut self) -> Result<(), Error> {
        self.step("commit").await
    }

    async fn rollback(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
        self.step("rollback").await
    }
}

/// Joins a resource that hangs, begins in two databases, and joins another resource that hangs.
#[post("/hang/<at>/<phase>/<code>")]
async fn hang(
    at: &str,
    phase: &str,
    code: u16,
    outstanding: &Outstanding,
    main: Begin<Main>,
    audit: Begin<Audit>,
) -> Result<(Status, ()), Error> {
    let hangs = || Hangs {
        at: at.to_owned(),
        phase: match phase {
            "database" => Phase::Database,
            _ => Phase::Release,
        },
    };
    outstanding.join(hangs())?;
    note(&mut *main.begin().await?, "written").await?;
    note(&mut *audit.begin().await?, "written").await?;
    outstanding.join(hangs())?;
    Ok((Status::new(code), ()))
}

async fn stage(databases: Databases) -> Stage {
    let settings = [("settle_timeout", "\"2s\""), ("atomic_commit", "\"off\"")];
    Stage::on(databases, &settings, |rocket| {
        rocket
            .mount("/", routes![hang, both])
            .attach(Settlement::new())
    })
    .await
}

async fn a_settlement_has_one_deadline(backend: Backend) {
    let stage = stage(Databases::with_tables(backend).await).await;
    for (path, expected, rows) in [
        ("prepare+rollback/database/201", (503, "rolled-back"), 0),
        ("prepare+rollback/release/201", (503, "rolled-back"), 0),
        ("commit+rollback/database/201", (500, "unknown"), 0),
        ("commit/release/201", (201, "committed"), 2),
        ("rollback/database/409", (409, "rolled-back"), 0),
        ("rollback/release/409", (409, "rolled-back"), 0),
    ] {
        let started = Instant::now();
        let response = stage.send(&format!("POST /hang/{path}")).await;
        let took = started.elapsed();
        assert_eq!(response.summary(), (expected.0, Some(expected.1)), "{path}");
        assert!(took < LIMIT + SLACK, "{path} took {took:?}");
        // The databases still had enough time to settle.
        assert_eq!(stage.notes().await.len(), rows, "{path}");
        stage.nothing_is_stuck().await;
        stage.databases.empty().await;
    }
}

mod of_postgres {
    use super::*;

    /// The server stops replying, to ROLLBACK too.
    #[rocket::async_test]
    async fn a_settlement_waits_only_once_for_a_silent_server() {
        for (at, expected) in [
            ("SET CONSTRAINTS ALL IMMEDIATE", (503, "rolled-back")),
            // Another session terminates the silent one, and sees that it committed nothing.
            ("COMMIT", (500, "partial")),
        ] {
            // New databases for each round, because the server holds the lock of the row as long as
            // the session exists.
            let mut databases = Databases::with_tables(Backend::Postgres).await;
            let proxy = databases.by_proxy(In::Audit).await;
            let stage = stage(databases).await;
            proxy.set(at, Break::Stall);
            let started = Instant::now();
            let response = stage.send("POST /both").await;
            let took = started.elapsed();
            assert_eq!(response.summary(), (expected.0, Some(expected.1)), "{at}");
            assert!(proxy.has_sprung(), "{at}");
            assert!(took < LIMIT + SLACK, "{at} took {took:?}");
            stage.nothing_is_stuck().await;
        }
    }
}

/// Returns the log of a launch with these settings.
async fn launch_log(settings: &[(&str, &str)]) -> String {
    let databases = Databases::new(Backend::Sqlite).await;
    let rocket = rocket::custom(figment(&databases, settings)).attach(Settlement::new());
    let (ignited, log) = logged(rocket.ignite()).await;
    drop(ignited.unwrap());
    log
}

#[rocket::async_test]
async fn a_shutdown_shorter_than_a_settlement_is_warned_about() {
    for (settings, is_warned) in [
        (&[][..], false),
        (&[("settle_timeout", "\"4s\"")], false),
        (&[("settle_timeout", "\"5s\"")], true),
        (
            &[("settle_timeout", "\"5s\""), ("shutdown.grace", "3")],
            false,
        ),
        (&[("shutdown.grace", "1"), ("shutdown.mercy", "1")], false),
        (&[("shutdown.grace", "0"), ("shutdown.mercy", "1")], true),
    ] {
        let log = launch_log(settings).await;
        let warned = log.contains("`settle_timeout` is not shorter than `shutdown.grace`");
        assert_eq!(warned, is_warned, "{settings:?}: {log}");
    }
}

/// The default `settle_timeout` is shorter than Rocket's default time for a shutdown, which is 5 s.
async fn a_settlement_is_shorter_than_a_shutdown(backend: Backend) {
    let stage = Stage::new(backend, |rocket| {
        rocket.mount("/", routes![hang]).attach(Settlement::new())
    })
    .await;
    let started = Instant::now();
    let response = stage.send("POST /hang/rollback/release/409").await;
    assert_eq!(response.summary(), (409, Some("rolled-back")));
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

on_each_backend!(
    a_settlement_has_one_deadline,
    a_settlement_is_shorter_than_a_shutdown,
);
