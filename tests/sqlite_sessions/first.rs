//! If all databases of a request are SQLite files that it may write, the one that commits first is not
//! proved before: its COMMIT is the proof. All others are proved before that COMMIT.

use std::borrow::Cow;
use std::sync::Arc;

use parking_lot::Mutex;
use rocket::http::Status;
use rocket::{State, post, routes};
use rocket_tx::db::UrlConnection;
use rocket_tx::tx::{Action, Phase, ReadOnly, Resource, SettleContext, Step};
use rocket_tx::{Begin, Error, Observer, Outstanding, Settlement, Tx};

use super::disks::{SmallDisk, on_disk};
use crate::support::stage::{note, run};
use crate::support::{Audit, Backend, Databases, In, Main, Stage};

/// What was done in a settlement, in order: the steps of the databases, and their proofs.
type Done = Arc<Mutex<Vec<String>>>;

struct Steps(Done);

impl Observer for Steps {
    fn before(&self, step: &Step<'_, '_>) {
        if let (Action::Commit | Action::Decide, "main" | "audit") = (step.action, step.resource) {
            self.0.lock().push(format!("commit {}", step.resource));
        }
    }
}

/// Records each proof of the connection: it deletes a row of a table of the library and restores it.
async fn watch(
    connection: &mut UrlConnection,
    name: &'static str,
    done: &Done,
) -> Result<(), Error> {
    if let UrlConnection::Sqlite(connection) = connection {
        let done = Arc::clone(done);
        let mut handle = connection.lock_handle().await?;
        handle.set_update_hook(move |change| {
            if change.table == "rocket_tx_child" {
                done.lock().push(format!("prove {name}"));
            }
        });
    }
    Ok(())
}

/// A release that wants `main` to commit last, and writes there.
struct Last;

#[rocket::async_trait]
impl Resource for Last {
    fn name(&self) -> Cow<'_, str> {
        "last".into()
    }

    async fn prepare(&mut self, context: &mut SettleContext<'_>) -> Result<(), Error> {
        if let Some(mut transaction) = context.transaction::<Main>() {
            note(transaction.connection(), "by the release").await?;
        }
        context.commit_last::<Main>();
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// A database that is not one of this library. It may refuse its COMMIT.
struct Foreign;

#[rocket::async_trait]
impl Resource for Foreign {
    fn name(&self) -> Cow<'_, str> {
        "foreign".into()
    }

    fn phase(&self) -> Phase {
        Phase::Database
    }

    async fn commit(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

fn join(outstanding: &Outstanding, what: &str) -> Result<(), Error> {
    match what {
        "last" => outstanding.join(Last),
        "foreign" => outstanding.join(Foreign),
        _ => Ok(()),
    }
}

/// Violates a deferred constraint.
const UNPAIRED: &str = "INSERT INTO pairs VALUES (1, 2)";

/// Writes both databases. `broken`: the one whose deferred constraint is violated.
#[post("/both/<resource>/<broken>")]
async fn both(
    resource: &str,
    broken: &str,
    outstanding: &Outstanding,
    done: &State<Done>,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<Status, Error> {
    join(outstanding, resource)?;
    watch(&mut main, "main", done).await?;
    watch(&mut audit, "audit", done).await?;
    note(&mut main, "written").await?;
    note(&mut audit, "written").await?;
    match broken {
        "main" => run(&mut main, UNPAIRED).await?,
        "audit" => run(&mut audit, UNPAIRED).await?,
        _ => {}
    }
    Ok(Status::Created)
}

#[post("/main/<resource>")]
async fn only_main(
    resource: &str,
    outstanding: &Outstanding,
    done: &State<Done>,
    main: Begin<Main>,
) -> Result<Status, Error> {
    join(outstanding, resource)?;
    let mut main = main.begin().await?;
    watch(&mut main, "main", done).await?;
    note(&mut main, "written").await?;
    Ok(Status::Created)
}

#[post("/reads-main")]
async fn reads_main(
    done: &State<Done>,
    mut main: Tx<Main, ReadOnly>,
    mut audit: Tx<Audit>,
) -> Result<Status, Error> {
    run(&mut main, "SELECT count(*) FROM notes").await?;
    watch(&mut audit, "audit", done).await?;
    note(&mut audit, "written").await?;
    Ok(Status::Created)
}

async fn stage(main: Backend, audit: Backend, atomic_commit: &str) -> (Stage, Done) {
    stage_on(Databases::with_tables_on(main, audit).await, atomic_commit).await
}

async fn stage_on(databases: Databases, atomic_commit: &str) -> (Stage, Done) {
    let done = Done::default();
    let settings = [("atomic_commit", atomic_commit)];
    let stage = Stage::on(databases, &settings, |rocket| {
        rocket
            .manage(Arc::clone(&done))
            .mount("/", routes![both, only_main, reads_main])
            .attach(Settlement::new().observer(Steps(Arc::clone(&done))))
    })
    .await;
    (stage, done)
}

/// Sends a request that commits, and returns what was done in its settlement.
async fn committed(stage: &Stage, done: &Done, path: &str) -> Vec<String> {
    let response = stage.send(&format!("POST {path}")).await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
    stage.databases.empty().await;
    std::mem::take(&mut *done.lock())
}

#[rocket::async_test]
async fn only_the_database_that_commits_first_is_proved_by_its_commit() {
    for mode in ["\"auto\"", "\"off\""] {
        let (stage, done) = stage(Backend::Sqlite, Backend::Sqlite, mode).await;
        for (path, expected) in [
            (
                "/both/nothing/nothing",
                &["prove audit", "commit main", "commit audit"][..],
            ),
            (
                "/both/last/nothing",
                &["prove main", "commit audit", "commit main"],
            ),
            (
                "/both/foreign/nothing",
                &["prove main", "prove audit", "commit main", "commit audit"],
            ),
            ("/main/nothing", &["commit main"]),
            ("/main/last", &["commit main"]),
            ("/main/foreign", &["prove main", "commit main"]),
            (
                "/reads-main",
                &["prove audit", "commit main", "commit audit"],
            ),
        ] {
            assert_eq!(committed(&stage, &done, path).await, expected, "{path}");
        }
        stage.nothing_is_stuck().await;
    }
}

#[rocket::async_test]
async fn beside_a_server_a_file_is_proved() {
    for mode in ["\"required\"", "\"off\""] {
        let (stage, done) = stage(Backend::Sqlite, Backend::Postgres, mode).await;
        for (path, is_last) in [
            ("/both/nothing/nothing", false),
            ("/both/last/nothing", true),
        ] {
            let done = committed(&stage, &done, path).await;
            let expected = match (mode, is_last) {
                ("\"off\"", false) => &["prove main", "commit main", "commit audit"][..],
                ("\"off\"", true) => &["prove main", "commit audit", "commit main"],
                _ => &["prove main", "commit main"],
            };
            assert_eq!(done, expected, "{mode} {path}");
        }
    }
}

#[rocket::async_test]
async fn a_refusal_of_either_database_leaves_nothing_in_both() {
    let (stage, done) = stage(Backend::Sqlite, Backend::Sqlite, "\"auto\"").await;
    for resource in ["nothing", "last", "foreign"] {
        for broken in ["main", "audit"] {
            let response = stage.send(&format!("POST /both/{resource}/{broken}")).await;
            assert_eq!(
                response.summary(),
                (409, Some("rolled-back")),
                "{resource} {broken}: {response:?}"
            );
            assert_eq!(response.kind(), "constraint");
            assert_eq!(stage.notes().await, [""; 0], "{resource} {broken}");
            let first = match resource {
                "last" => "audit",
                _ => "main",
            };
            // Only a COMMIT that is its own proof was sent.
            let expected = match broken == first && resource != "foreign" {
                true => vec![format!("commit {first}")],
                false => Vec::new(),
            };
            let mut commits = std::mem::take(&mut *done.lock());
            commits.retain(|it| it.starts_with("commit"));
            assert_eq!(commits, expected, "{resource} {broken}");
            stage.nothing_is_stuck().await;
            done.lock().clear();
        }
    }
}

/// Space is reserved in both files before the first COMMIT.
#[rocket::async_test]
async fn a_full_disk_is_found_before_the_first_commit() {
    for database in [In::Main, In::Audit] {
        let Some(disk) = SmallDisk::new("16m") else {
            println!("this process may not mount a file system; nothing was tried");
            return;
        };
        let (stage, done) = stage_on(on_disk(&disk, database).await, "\"auto\"").await;
        disk.fill(0);
        let response = stage.send("POST /both/nothing/nothing").await;
        assert_eq!(
            response.summary(),
            (503, Some("rolled-back")),
            "{response:?}"
        );
        done.lock().retain(|it| it.starts_with("commit"));
        assert_eq!(*done.lock(), [""; 0]);
        assert_eq!(stage.notes().await, [""; 0]);
    }
}
