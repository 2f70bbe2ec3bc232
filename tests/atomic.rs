//! Atomic commit: a request that writes several databases commits in all of them, or in none.

mod attached;
mod away;
mod disk;
mod killed;
mod late;
mod lost;
mod marked;
mod network;
mod processes;
mod recovery;
mod refusals;
mod servers;
mod standby;

use std::sync::Arc;

use parking_lot::Mutex;
use rocket::http::Status;
use rocket::{post, routes};
use rocket_tx::tx::{Action, Observer, Serializable, Step};
use rocket_tx::{Error, Settlement, Tx};
use sqlx::{Connection, PgConnection};

use crate::support::stage::{both, note, run};
use crate::support::{Audit, Backend, Cluster, Databases, In, Main, Stage};

#[post("/serializable")]
async fn serializable(
    mut main: Tx<Main, Serializable>,
    mut audit: Tx<Audit, Serializable>,
) -> Result<Status, Error> {
    note(&mut main, "written").await?;
    note(&mut audit, "written").await?;
    Ok(Status::Created)
}

/// Has a transaction that may write in both databases, and writes in one.
#[post("/one")]
async fn one(mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<Status, Error> {
    run(&mut main, "SELECT count(*) FROM notes").await?;
    note(&mut audit, "written").await?;
    Ok(Status::Created)
}

/// Writes in one database only, and in a savepoint that is released.
#[post("/savepoints")]
async fn savepoints(mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<Status, Error> {
    run(&mut main, "SAVEPOINT here; SELECT count(*) FROM notes").await?;
    run(&mut audit, "SAVEPOINT here").await?;
    note(&mut audit, "written").await?;
    run(&mut audit, "RELEASE here").await?;
    Ok(Status::Created)
}

/// Does something in each database that cannot be prepared.
#[post("/awkward/<what>?<decider>")]
async fn awkward(
    what: &str,
    decider: bool,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<Status, Error> {
    let sql = match what {
        "temporary-table" => "CREATE TEMPORARY TABLE aside (n INT) ON COMMIT DROP",
        "notify" => "NOTIFY somebody",
        "listen" => "LISTEN somebody",
        "cursor" => "DECLARE rows CURSOR WITH HOLD FOR SELECT 1",
        _ => return Err(Error::NotFound),
    };
    note(&mut main, "written").await?;
    note(&mut audit, "written").await?;
    match decider {
        true => run(&mut main, sql).await?,
        false => run(&mut audit, sql).await?,
    }
    Ok(Status::Created)
}

type Steps = Arc<Mutex<Vec<String>>>;

/// Records every step, with the database.
struct Recorder(Steps);

impl Observer for Recorder {
    fn after(&self, step: &Step<'_, '_>, result: Result<(), &Error>, _: std::time::Duration) {
        let action = match step.action {
            Action::Prepare => "prepare",
            Action::Commit => "commit",
            Action::Rollback => "rollback",
            Action::PrepareTransaction => "prepare transaction",
            Action::Decide => "decide",
            Action::CommitPrepared => "commit prepared",
            _ => "?",
        };
        let result = if result.is_ok() { "" } else { ", failed" };
        let line = format!("{action} {}{result}", step.resource);
        self.0.lock().push(line);
    }
}

/// Another process that decides to roll back just before this one decides to commit.
struct Faster {
    main: String,
    audit: String,
}

impl Faster {
    async fn decide(&self) {
        const GID: &str = "SELECT split_part(gid, ':', 3) FROM pg_prepared_xacts \
                           WHERE database = current_database()";
        const DECIDE: &str = "INSERT INTO rocket_tx_decisions VALUES ($1, 'abort', '')";

        let mut audit = PgConnection::connect(&self.audit).await.unwrap();
        let decision: String = sqlx::query_scalar(GID).fetch_one(&mut audit).await.unwrap();
        let mut main = PgConnection::connect(&self.main).await.unwrap();
        let decided = sqlx::query(DECIDE).bind(decision).execute(&mut main).await;
        assert_eq!(decided.unwrap().rows_affected(), 1);
    }
}

impl Observer for Faster {
    fn before(&self, step: &Step<'_, '_>) {
        if step.action == Action::Decide {
            rocket::tokio::task::block_in_place(|| {
                rocket::tokio::runtime::Handle::current().block_on(self.decide());
            });
        }
    }
}

/// Where the two databases are. The first one that can only decide is the decider; `main` if both
/// can prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pair {
    Servers,
    MainOnFile,
    AuditOnFile,
}

impl Pair {
    const ALL: [Self; 3] = [Self::Servers, Self::MainOnFile, Self::AuditOnFile];

    fn backends(self) -> (Backend, Backend) {
        match self {
            Self::Servers => (Backend::Postgres, Backend::Postgres),
            Self::MainOnFile => (Backend::Sqlite, Backend::Postgres),
            Self::AuditOnFile => (Backend::Postgres, Backend::Sqlite),
        }
    }

    async fn new_databases(self) -> Databases {
        let (main, audit) = self.backends();
        Databases::on(main, audit).await
    }

    async fn databases(self) -> Databases {
        let (main, audit) = self.backends();
        Databases::with_tables_on(main, audit).await
    }

    /// The decider and the participant.
    fn roles(self) -> (In, In) {
        match self {
            Self::Servers | Self::MainOnFile => (In::Main, In::Audit),
            Self::AuditOnFile => (In::Audit, In::Main),
        }
    }
}

fn name(database: In) -> &'static str {
    match database {
        In::Main => "main",
        In::Audit => "audit",
    }
}

async fn stage(databases: Databases) -> (Stage, Steps) {
    let steps = Steps::default();
    let recorder = Recorder(Arc::clone(&steps));
    let settings = [
        ("atomic_commit", "\"required\""),
        ("settle_timeout", "\"4s\""),
    ];
    let stage = Stage::on(databases, &settings, |rocket| {
        rocket
            .mount("/", routes![both, serializable, one, savepoints, awkward])
            .attach(Settlement::new().observer(recorder))
    })
    .await;
    (stage, steps)
}

/// Returns the transactions that are prepared in `database`.
async fn prepared(databases: &Databases, database: In) -> Vec<String> {
    const SQL: &str =
        "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY gid";

    match databases.backend(database) {
        Backend::Sqlite => Vec::new(),
        Backend::Postgres => databases.texts(database, SQL).await,
    }
}

#[rocket::async_test]
async fn two_writers_prepare_decide_and_commit() {
    for pair in Pair::ALL {
        let (decider, participant) = pair.roles();
        let (stage, steps) = stage(pair.databases().await).await;
        let paths = match pair {
            Pair::Servers => &["both", "serializable"][..],
            _ => &["both"],
        };
        for path in paths {
            let response = stage.send(&format!("POST /{path}")).await;
            assert_eq!(
                response.summary(),
                (201, Some("committed")),
                "{pair:?}: {}",
                response.body
            );
            assert_eq!(response.header("transaction-pending"), None);
            assert_eq!(stage.notes().await, ["written", "written"]);
            assert_eq!(
                std::mem::take(&mut *steps.lock()),
                [
                    "prepare main".to_owned(),
                    "prepare audit".to_owned(),
                    format!("prepare transaction {}", name(participant)),
                    format!("decide {}", name(decider)),
                    format!("commit prepared {}", name(participant)),
                ],
                "{pair:?}"
            );
            assert_eq!(prepared(&stage.databases, participant).await, [""; 0]);
            stage.nothing_is_stuck().await;
            stage.databases.empty().await;
            steps.lock().clear();
        }
    }
}

#[rocket::async_test]
async fn a_server_that_was_only_read_does_not_prepare() {
    for path in ["one", "savepoints"] {
        for pair in [Pair::Servers, Pair::AuditOnFile] {
            let (stage, steps) = stage(pair.databases().await).await;
            let response = stage.send(&format!("POST /{path}")).await;
            assert_eq!(
                response.summary(),
                (201, Some("committed")),
                "{path} {pair:?}: {}",
                response.body
            );
            assert_eq!(stage.databases.notes(In::Main).await, [""; 0]);
            assert_eq!(stage.databases.notes(In::Audit).await, ["written"]);
            let expected = [
                "prepare main",
                "prepare audit",
                "commit main",
                "commit audit",
            ];
            assert_eq!(*steps.lock(), expected, "{path} {pair:?}");
        }
    }
}

#[rocket::async_test]
async fn a_transaction_that_cannot_be_prepared_is_refused_with_the_reason() {
    let (stage, steps) = stage(Pair::Servers.databases().await).await;
    for what in ["temporary-table", "notify", "listen", "cursor"] {
        let response = stage.send(&format!("POST /awkward/{what}")).await;
        assert_eq!(
            response.summary(),
            (500, Some("rolled-back")),
            "{what}: {}",
            response.body
        );
        assert_eq!(response.kind(), "cannot-prepare", "{what}");
        assert!(!response.body.contains("PREPARE"), "{}", response.body);
        assert_eq!(stage.notes().await, [""; 0], "{what}");
        stage.nothing_is_stuck().await;

        // The decider need not prepare.
        let response = stage
            .send(&format!("POST /awkward/{what}?decider=true"))
            .await;
        assert_eq!(
            response.summary(),
            (201, Some("committed")),
            "{what}: {}",
            response.body
        );
        assert_eq!(stage.notes().await, ["written", "written"], "{what}");
        stage.nothing_is_stuck().await;
        stage.databases.empty().await;
    }
    let refused = "prepare transaction audit, failed".to_owned();
    assert!(steps.lock().contains(&refused));
}

#[rocket::async_test]
async fn a_request_that_decides_too_late_is_rolled_back() {
    let databases = Pair::Servers.databases().await;
    let faster = Faster {
        main: databases.url(In::Main).to_owned(),
        audit: databases.url(In::Audit).to_owned(),
    };
    let stage = Stage::on(databases, &[], |rocket| {
        rocket
            .mount("/", routes![both])
            .attach(Settlement::new().observer(faster))
    })
    .await;
    let response = stage.send("POST /both").await;
    assert_eq!(
        response.summary(),
        (503, Some("rolled-back")),
        "{}",
        response.body
    );
    assert_eq!(response.kind(), "decided-to-abort");
    assert!(response.header("retry-after").is_some());
    assert_eq!(stage.notes().await, [""; 0]);
    assert_eq!(prepared(&stage.databases, In::Audit).await, [""; 0]);
    stage.nothing_is_stuck().await;
}

#[rocket::async_test]
async fn a_server_with_too_many_prepared_transactions_is_busy() {
    let cluster = Cluster::start_with("max_prepared_transactions = 1").await;
    let (stage, _) = stage(Databases::on_cluster(&cluster).await).await;
    let occupy = "BEGIN; CREATE TABLE other (n INT); PREPARE TRANSACTION 'of somebody else'";
    stage.databases.execute(In::Audit, occupy).await;
    let response = stage.send("POST /both").await;
    assert_eq!(
        response.summary(),
        (503, Some("rolled-back")),
        "{}",
        response.body
    );
    assert_eq!(stage.notes().await, [""; 0]);
    let free = "ROLLBACK PREPARED 'of somebody else'";
    stage.databases.execute(In::Audit, free).await;
    let response = stage.send("POST /both").await;
    assert_eq!(response.summary(), (201, Some("committed")));
    stage.nothing_is_stuck().await;
}
