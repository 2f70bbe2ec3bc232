//! Work that keeps its guard or ends its transaction itself, and sessions that end during the work.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rocket::fairing::AdHoc;
use rocket::futures::future::join;
use rocket::tokio;
use rocket::tokio::sync::{Barrier, Notify, oneshot};
use rocket_db_pools::{Database, Pool};
use rocket_tx::db::{Isolation, TransactionOptions, UrlPool};
use rocket_tx::{Error, Settlement, with_backend};
use sqlx::Executor;

use super::set_up;
use crate::support::stage::{note, run};
use crate::support::{Backend, Databases, In, Main, Stage};

async fn works(databases: &Databases, pool: &UrlPool) {
    let after = pool.transaction(async |mut tx| Ok(note(&mut tx, "after").await?));
    after.await.unwrap();
    assert_eq!(databases.notes(In::Main).await, ["after"]);
}

/// The guard is returned, or given to somebody else.
async fn a_kept_guard_commits_nothing(backend: Backend) {
    let (databases, pool) = set_up(backend).await;
    let returned = pool.transaction(async |mut tx| {
        note(&mut tx, "returned").await?;
        Ok(tx)
    });
    let returned = returned.await.map(drop);
    assert!(matches!(returned, Err(Error::Leaked(_))), "{returned:?}");
    let elsewhere = Mutex::new(Vec::new());
    let given = pool.transaction(async |mut tx| {
        note(&mut tx, "given").await?;
        elsewhere.lock().push(tx);
        Ok(())
    });
    let given = given.await;
    assert!(matches!(given, Err(Error::Leaked(_))), "{given:?}");
    let kept = elsewhere.lock().pop();
    if let (Some(mut kept), Backend::Postgres) = (kept, backend) {
        // The server has ended the session.
        assert!(run(&mut kept, "COMMIT").await.is_err());
    }
    works(&databases, &pool).await;
}

/// Two jobs exchange their guards. What is told decides.
async fn exchanged_guards_do_not_exchange_what_is_told(backend: Backend) {
    let (databases, main) = set_up(backend).await;
    let audit = databases.figment().focus("databases.audit");
    let audit = audit.merge(("connect_timeout", 60));
    let audit = UrlPool::init(&audit).await.unwrap();
    let outer = main.transaction(async |mut tx| {
        note(&mut tx, "outer").await?;
        let place = Mutex::new(tx);
        let inner = audit.transaction(async |mut tx| {
            note(&mut tx, "inner").await?;
            std::mem::swap(&mut *place.lock(), &mut tx);
            Ok(())
        });
        let told = inner.await.is_ok();
        let stored = databases.notes(In::Audit).await == ["inner"];
        assert_eq!(told, stored, "the inner one");
        Ok(())
    });
    let told = outer.await.is_ok();
    let stored = databases.notes(In::Main).await == ["outer"];
    assert_eq!(told, stored, "the outer one");
}

/// Above READ COMMITTED Postgres executes a COMMIT of the work.
#[rocket::async_test]
async fn work_that_commits_by_itself_is_told_so_and_not_repeated() {
    let (databases, pool) = set_up(Backend::Postgres).await;
    for conflict in [false, true] {
        let attempts = AtomicUsize::new(0);
        let options = TransactionOptions::new().isolation(Isolation::Serializable);
        let work = pool.transaction_with(options, async |mut tx| {
            attempts.fetch_add(1, Ordering::SeqCst);
            note(&mut tx, &format!("smuggled {conflict}")).await?;
            run(&mut tx, "COMMIT").await?;
            if conflict {
                run(&mut tx, RAISE).await?;
            }
            Err::<(), _>(Error::NotFound)
        });
        let told = work.await;
        let is_unknown = matches!(told, Err(Error::Ended { undone: false }));
        assert!(is_unknown, "{conflict}: {told:?}");
        assert_eq!(attempts.into_inner(), 1, "{conflict}");
    }
    let stored = databases.notes(In::Main).await;
    assert_eq!(stored, ["smuggled false", "smuggled true"]);
}

const RAISE: &str = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$";

/// An operator, or a timeout of the server, ends the session or the statement.
#[rocket::async_test]
async fn only_conflicts_are_repeated() {
    let (databases, pool) = set_up(Backend::Postgres).await;
    for statement in [
        "SELECT pg_terminate_backend(pg_backend_pid())",
        "SET LOCAL statement_timeout = '50ms'; SELECT pg_sleep(20)",
        "SELECT pg_cancel_backend(pg_backend_pid()); SELECT pg_sleep(20)",
        "SET LOCAL lock_timeout = '50ms'; LOCK TABLE pairs",
        "SELECT 1 / 0",
    ] {
        let mut other = databases.postgres(In::Main).await;
        other.execute("BEGIN; LOCK TABLE pairs").await.unwrap();
        let attempts = AtomicUsize::new(0);
        let work = pool.transaction(async |mut tx| {
            attempts.fetch_add(1, Ordering::SeqCst);
            note(&mut tx, "undone").await?;
            Ok(run(&mut tx, statement).await?)
        });
        assert!(work.await.is_err(), "{statement}");
        assert_eq!(attempts.into_inner(), 1, "{statement}");
    }
    works(&databases, &pool).await;
}

/// No statement reports this conflict, only COMMIT.
#[rocket::async_test]
async fn a_conflict_that_only_commit_reports_is_repeated() {
    let (databases, pool) = set_up(Backend::Postgres).await;
    let rows = "INSERT INTO pairs VALUES (1, 1), (2, 2)";
    databases.execute(In::Main, rows).await;
    let attempts = AtomicUsize::new(0);
    let options = TransactionOptions::new().isolation(Isolation::Serializable);
    let work = pool.transaction_with(options, async |mut tx| {
        const COUNT: &str = "SELECT count(*) FROM pairs";

        let count: i64 = with_backend!(tx, |db| sqlx::query_scalar(COUNT).fetch_one(db).await?);
        if count == 2 {
            run(&mut tx, "DELETE FROM pairs WHERE id = 1").await?;
        }
        if attempts.fetch_add(1, Ordering::SeqCst) == 0 {
            let mut other = databases.postgres(In::Main).await;
            let skew = "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM pairs; \
                        DELETE FROM pairs WHERE id = 2; COMMIT";
            other.execute(sqlx::raw_sql(skew)).await?;
        }
        Ok(count)
    });
    assert_eq!(work.await.unwrap(), 1);
    assert_eq!(attempts.into_inner(), 2);
    let left = databases
        .texts(In::Main, "SELECT id::text FROM pairs")
        .await;
    assert_eq!(left, ["1"]);
}

#[rocket::async_test]
async fn a_deadlock_is_repeated() {
    let (databases, pool) = set_up(Backend::Postgres).await;
    let rows = "INSERT INTO pairs VALUES (1, 1), (2, 2)";
    databases.execute(In::Main, rows).await;
    let both_have_one = Barrier::new(2);
    let attempts = AtomicUsize::new(0);
    let job = async |statements: [&'static str; 2]| {
        let is_first = AtomicUsize::new(1);
        let work = pool.transaction(async |mut tx| {
            attempts.fetch_add(1, Ordering::SeqCst);
            run(&mut tx, statements[0]).await?;
            if is_first.swap(0, Ordering::SeqCst) == 1 {
                both_have_one.wait().await;
            }
            Ok(run(&mut tx, statements[1]).await?)
        });
        work.await.unwrap();
    };
    let (one, two) = (
        "UPDATE pairs SET partner = id WHERE id = 1",
        "UPDATE pairs SET partner = id WHERE id = 2",
    );
    join(job([one, two]), job([two, one])).await;
    assert_eq!(attempts.load(Ordering::SeqCst), 3);
}

/// A pool that only a job uses is closed at shutdown only when the job has ended.
async fn shutdown_waits_for_a_running_transaction(backend: Backend) {
    let (sender, pool) = oneshot::channel();
    let stage = Stage::new(backend, |rocket| {
        let sharing = AdHoc::on_liftoff("Shares the pool", |rocket| {
            let pool = Main::fetch(rocket).map(|main| UrlPool::clone(main));
            assert!(sender.send(pool.unwrap()).is_ok());
            Box::pin(async {})
        });
        rocket.attach(Settlement::new()).attach(sharing)
    })
    .await;
    let pool = pool.await.unwrap();
    let (has_begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begun, ends) = (Arc::clone(&has_begun), Arc::clone(&go_on));
    let job = tokio::spawn(async move {
        let work = pool.transaction(async |mut tx| {
            begun.notify_one();
            ends.notified().await;
            Ok(note(&mut tx, "at shutdown").await?)
        });
        work.await
    });
    has_begun.notified().await;
    let closing = tokio::spawn(stage.close());
    // Without the wait, the pool would be closed by then.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!closing.is_finished());
    go_on.notify_one();
    job.await.unwrap().unwrap();
    let databases = closing.await.unwrap();
    assert_eq!(databases.notes(In::Main).await, ["at shutdown"]);
}

on_each_backend!(
    a_kept_guard_commits_nothing,
    exchanged_guards_do_not_exchange_what_is_told,
    shutdown_waits_for_a_running_transaction,
);
