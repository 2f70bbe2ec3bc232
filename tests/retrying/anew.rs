//! Each attempt begins everything anew, and an attempt that fails leaves nothing.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rocket::futures::future::pending;
use rocket::http::Status;
use rocket::tokio::time::timeout;
use rocket::{Build, Rocket, State, post, routes};
use rocket_tx::db::UrlConnection;
use rocket_tx::tx::SettleContext;
use rocket_tx::{Begin, Error, Outstanding, Resource, Serializable, Settlement, Tx};
use rocket_tx_aggregates::aggregate::{self, Aggregate, Aggregates, Leases};
use rocket_tx_idempotency::{self as idempotency, idempotent};
use sqlx::Executor;

use crate::aggregates::{Added, Counter};
use crate::support::stage::{note, run};
use crate::support::{Audit, Backend, Databases, HttpResponse, In, Main, Stage, eventually};

/// What happened, in order.
type Log = Arc<Mutex<Vec<String>>>;

/// The URL of the SQLite file, to make it busy.
#[derive(Clone)]
pub(super) struct File(Option<String>);

impl File {
    pub(super) fn of(databases: &Databases) -> Self {
        let is_file = databases.backend(In::Main) == Backend::Sqlite;
        Self(is_file.then(|| databases.main.clone()))
    }

    /// Makes the database report a conflict.
    pub(super) async fn conflict(&self, tx: &mut UrlConnection) -> Result<(), Error> {
        match (tx, &self.0) {
            (UrlConnection::Postgres(connection), _) => {
                let raise = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$";
                connection.execute(raise).await?;
            }
            (UrlConnection::Sqlite(_), Some(url)) => {
                // The request has the file locked.
                let options: sqlx::sqlite::SqliteConnectOptions = url.parse()?;
                let options = options.busy_timeout(Duration::ZERO);
                let mut other = sqlx::ConnectOptions::connect(&options).await?;
                other.execute("BEGIN IMMEDIATE").await?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Writes its name to the log when it is settled.
struct Logged(Log, usize);

#[rocket::async_trait]
impl Resource for Logged {
    fn name(&self) -> Cow<'_, str> {
        "logged".into()
    }

    async fn commit(&mut self) -> Result<(), Error> {
        self.0.lock().push(format!("commit {}", self.1));
        Ok(())
    }

    async fn rollback(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
        self.0.lock().push(format!("rollback {}", self.1));
        Ok(())
    }
}

/// Uses everything that a request can have outstanding. The first two attempts fail.
#[post("/everything")]
async fn everything(
    main: Begin<Main>,
    audit: Begin<Audit>,
    outstanding: &Outstanding,
    log: &State<Log>,
    file: &State<File>,
) -> Result<Status, Error> {
    outstanding.join(Logged(Arc::clone(log), 0))?;
    let attempts = AtomicUsize::new(0);
    let last = main
        .retrying(async |mut tx| {
            let attempt = attempts.fetch_add(1, Ordering::SeqCst) + 1;
            note(&mut tx, "in main").await?;
            note(&mut *audit.begin().await?, "in audit").await?;
            outstanding.join(Logged(Arc::clone(log), attempt))?;
            let log = Arc::clone(log);
            let entry = format!("hook {attempt}");
            outstanding.after_commit(async move { log.lock().push(entry) })?;
            if attempt < 3 {
                outstanding.doom(Status::ImATeapot, "a doom of an attempt")?;
                file.conflict(&mut tx).await?;
            }
            Ok(attempt)
        })
        .await?;
    assert_eq!(last, 3);
    // The last attempt is open.
    note(&mut *main.begin().await?, "afterwards").await?;
    Ok(Status::Created)
}

#[post("/always")]
async fn always(main: Begin<Main>, file: &State<File>) -> Result<Status, Error> {
    let limit = Duration::from_millis(300);
    let done = main.retrying_within(limit, async |mut tx| {
        note(&mut tx, "undone").await?;
        file.conflict(&mut tx).await
    });
    done.await?;
    Ok(Status::Created)
}

/// The first work returns an error, which the handler ignores. It is undone.
#[post("/fallback")]
async fn fallback(main: Begin<Main>) -> Result<Status, Error> {
    let refused = main.retrying(async |mut tx| {
        note(&mut tx, "undone").await?;
        Err::<(), _>(Error::Conflict("on purpose".into()))
    });
    assert!(matches!(refused.await, Err(Error::Conflict(_))));
    let done = main.retrying(async |mut tx| Ok(note(&mut tx, "fallback").await?));
    done.await?;
    Ok(Status::Created)
}

#[post("/begun-before")]
async fn begun_before(mut tx: Tx<Main>, audit: Begin<Audit>) -> Result<(), Error> {
    note(&mut tx, "before").await?;
    let done = audit.retrying(async |mut tx| Ok(note(&mut tx, "inside").await?));
    done.await
}

#[post("/half-way")]
async fn half_way(main: Begin<Main>) -> Status {
    let work = main.retrying(async |mut tx| {
        note(&mut tx, "half").await?;
        pending::<Result<(), Error>>().await
    });
    assert!(timeout(Duration::from_millis(200), work).await.is_err());
    Status::Created
}

#[post("/panics")]
async fn panics(main: Begin<Main>) -> Result<(), Error> {
    let work = main.retrying(async |mut tx| {
        note(&mut tx, "before the panic").await?;
        if true {
            panic!("in the work");
        }
        Ok(())
    });
    work.await
}

/// The work keeps its guard, so that it cannot be undone.
#[post("/kept")]
async fn kept(main: Begin<Main>, file: &State<File>) -> Result<Status, Error> {
    let guards = Mutex::new(Vec::new());
    let work = main.retrying(async |mut tx| {
        note(&mut tx, "kept").await?;
        let conflict = file.conflict(&mut tx).await;
        guards.lock().push(tx);
        conflict
    });
    let refused = work.await;
    assert!(
        matches!(refused, Err(Error::CheckedOut("main"))),
        "{refused:?}"
    );
    drop(guards);
    Ok(Status::Created)
}

/// The work commits by itself, which Postgres cannot prevent above READ COMMITTED.
#[post("/commits-itself")]
async fn commits_itself(main: Begin<Main, Serializable>) -> Result<Status, Error> {
    let work = main.retrying(async |mut tx| {
        note(&mut tx, "smuggled").await?;
        run(&mut tx, "COMMIT").await?;
        Err::<(), _>(Error::Conflict("on purpose".into()))
    });
    let _ignored = work.await;
    Ok(Status::Created)
}

/// Swallows the error of a statement.
#[post("/swallows")]
async fn swallows(main: Begin<Main>) -> Result<Status, Error> {
    let work = main.retrying(async |mut tx| {
        let _swallowed = run(&mut tx, "no SQL").await;
        Ok(())
    });
    work.await?;
    Ok(Status::Created)
}

/// Takes the lease before the attempts. It is the same one in all of them.
#[post("/leased/<id>")]
async fn leased(
    id: &str,
    counters: Aggregates<Main, Counter>,
    leases: &State<Leases<Main>>,
    main: Begin<Main>,
    file: &State<File>,
    log: &State<Log>,
) -> Result<Status, Error> {
    let _leased = counters.get(id).await?.ok_or(Error::NotFound)?;
    let attempts = AtomicUsize::new(0);
    let work = main.retrying(async |tx| {
        let attempt = attempts.fetch_add(1, Ordering::SeqCst) + 1;
        drop(tx);
        let mut counter = counters.get(id).await?.ok_or(Error::NotFound)?;
        counter.record(Added { number: 1 })?;
        counters.commit(&mut counter).await?;
        if attempt == 2 {
            counters.flush().await?;
        }
        let held = leases.leases().await?;
        let held: Vec<_> = held
            .iter()
            .map(|lease| (&lease.key, lease.fencing_token))
            .collect();
        log.lock().push(format!("{held:?}"));
        if attempt < 3 {
            file.conflict(&mut *main.begin().await?).await?;
        }
        Ok(())
    });
    work.await?;
    Ok(Status::Created)
}

/// A request with an idempotency key, whose first attempts fail.
#[post("/keyed")]
async fn keyed(main: Begin<Main>, file: &State<File>) -> Result<Status, Error> {
    let attempts = AtomicUsize::new(0);
    let work = main.retrying(async |mut tx| {
        let attempt = attempts.fetch_add(1, Ordering::SeqCst) + 1;
        note(&mut tx, "keyed").await?;
        match attempt {
            1 | 2 => file.conflict(&mut tx).await,
            _ => Ok(()),
        }
    });
    work.await?;
    Ok(Status::Created)
}

fn service(rocket: Rocket<Build>) -> Rocket<Build> {
    let all = routes![
        everything,
        always,
        fallback,
        begun_before,
        half_way,
        panics,
        kept,
        commits_itself,
        swallows,
        leased,
    ];
    rocket
        .attach(aggregate::init::<Main>())
        .attach(idempotency::init::<Main>().shared_keys())
        .attach(Settlement::new())
        .mount("/", all)
        .mount("/", idempotent::<Main>(routes![keyed]))
        .mount("/", routes![new])
}

#[post("/new/<id>")]
async fn new(id: &str, counters: Aggregates<Main, Counter>) -> Result<(), Error> {
    let mut counter = Counter::fresh(id)?;
    counter.record(Added { number: 0 })?;
    Ok(counters.commit(&mut counter).await?)
}

async fn stage(backend: Backend) -> (Stage, Log) {
    let databases = Databases::with_tables(backend).await;
    let file = File::of(&databases);
    let log = Log::default();
    let managed = Arc::clone(&log);
    let stage = Stage::on(databases, &[], |rocket| {
        service(rocket.manage(managed).manage(file))
    });
    (stage.await, log)
}

async fn each_attempt_begins_everything_anew(backend: Backend) {
    let (stage, log) = stage(backend).await;
    let response = stage.send("POST /everything").await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
    assert_eq!(stage.notes().await, ["afterwards", "in main", "in audit"]);
    eventually("the hook runs", async || log.lock().len() >= 5).await;
    stage.nothing_is_stuck().await;
    let expected = ["rollback 1", "rollback 2", "commit 0", "commit 3", "hook 3"];
    assert_eq!(*log.lock(), expected);
}

async fn after_the_limit_the_client_may_retry(backend: Backend) {
    let (stage, _) = stage(backend).await;
    let started = Instant::now();
    let response = stage.send("POST /always").await;
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(response.summary(), (503, Some("rolled-back")));
    assert_eq!(response.kind(), "busy");
    assert!(response.header("retry-after").is_some());
    assert!(stage.notes().await.is_empty());
    stage.nothing_is_stuck().await;
}

async fn work_that_returns_an_error_is_undone(backend: Backend) {
    let (stage, _) = stage(backend).await;
    let response = stage.send("POST /fallback").await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
    assert_eq!(stage.notes().await, ["fallback"]);
    let response = stage.send("POST /swallows").await;
    match backend {
        Backend::Sqlite => assert_eq!(response.status, 201),
        Backend::Postgres => assert_eq!(response.kind(), "aborted"),
    }
    stage.nothing_is_stuck().await;
}

async fn a_failure_that_cannot_be_undone_rolls_the_request_back(backend: Backend) {
    let (stage, _) = stage(backend).await;
    for (path, status, kind) in [
        ("begun-before", 500, "begun-before"),
        ("half-way", 500, "doomed"),
        ("panics", 500, "internal"),
        ("kept", 500, "doomed"),
    ] {
        let response = stage.send(&format!("POST /{path}")).await;
        assert_eq!(
            response.summary(),
            (status, Some("rolled-back")),
            "{path}: {response:?}"
        );
        assert_eq!(response.kind(), kind, "{path}");
        assert!(stage.notes().await.is_empty(), "{path}");
        stage.nothing_is_stuck().await;
    }
}

#[rocket::async_test]
async fn work_that_commits_by_itself_leaves_an_unknown_outcome() {
    let (stage, _) = stage(Backend::Postgres).await;
    let response = stage.send("POST /commits-itself").await;
    assert_eq!(response.summary(), (500, Some("unknown")), "{response:?}");
    assert_eq!(stage.notes().await, ["smuggled"]);
    stage.nothing_is_stuck().await;
}

async fn a_lease_stays_over_the_attempts(backend: Backend) {
    let (stage, log) = stage(backend).await;
    assert_eq!(stage.send("POST /new/a").await.status, 200);
    for round in 1..=2 {
        let response = stage.send("POST /leased/a").await;
        assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
        let seen = std::mem::take(&mut *log.lock());
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert!(
            seen[0].contains("/a\"") || seen[0].contains("a\""),
            "{seen:?}"
        );
        assert!(seen.iter().all(|lease| *lease == seen[0]), "{seen:?}");
        let events = "SELECT 'event' FROM aggregate_events";
        let events = stage.databases.texts(In::Main, events).await;
        assert_eq!(events.len(), 1 + round, "{events:?}");
    }
    stage.nothing_is_stuck().await;
}

async fn a_key_is_claimed_anew(backend: Backend) {
    let (stage, _) = stage(backend).await;
    for round in 1..=2 {
        let request = stage
            .http
            .request("POST /keyed")
            .header("Idempotency-Key", "\"k\"");
        let response = HttpResponse::of(request).await;
        assert_eq!(
            response.summary(),
            (201, Some("committed")),
            "{round}: {response:?}"
        );
        assert_eq!(
            response.header("idempotency-replayed").is_some(),
            round == 2
        );
    }
    assert_eq!(stage.databases.notes(In::Main).await, ["keyed"]);
    stage.nothing_is_stuck().await;
}

on_each_backend!(
    each_attempt_begins_everything_anew,
    after_the_limit_the_client_may_retry,
    work_that_returns_an_error_is_undone,
    a_failure_that_cannot_be_undone_rolls_the_request_back,
    a_lease_stays_over_the_attempts,
    a_key_is_claimed_anew,
);
