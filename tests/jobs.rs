//! Transactions outside of requests: retries and their limits, and what remains after a failure.

mod misuse;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rocket::futures::FutureExt;
use rocket::futures::future::{join, pending};
use rocket::tokio;
use rocket_db_pools::Pool;
use rocket_tx::Error;
use rocket_tx::db::{Isolation, TransactionOptions, UrlConnection, UrlPool};
use sqlx::Executor;

use crate::support::stage::{note, run};
use crate::support::{Backend, Break, Databases, In, Newcomers, dropped_after};

/// Opens the database `main` as a command line tool would, without a service.
async fn open(databases: &Databases) -> UrlPool {
    let figment = databases.figment().focus("databases.main");
    let figment = figment
        .merge(("connect_timeout", 60))
        .merge(("busy_timeout", "50ms"));
    UrlPool::init(&figment).await.unwrap()
}

async fn set_up(backend: Backend) -> (Databases, UrlPool) {
    let databases = Databases::with_tables(backend).await;
    let pool = open(&databases).await;
    (databases, pool)
}

async fn a_transaction_is_committed_or_leaves_nothing(backend: Backend) {
    let (databases, pool) = set_up(backend).await;
    let value = pool.transaction(async |mut tx| {
        note(&mut tx, "kept").await?;
        Ok("returned")
    });
    assert_eq!(value.await.unwrap(), "returned");
    let refused = pool.transaction(async |mut tx| {
        note(&mut tx, "undone").await?;
        Err::<(), _>(Error::Conflict("on purpose".into()))
    });
    assert!(matches!(refused.await, Err(Error::Conflict(_))));
    let twice = pool.transaction(async |mut tx| Ok(note(&mut tx, "kept").await?));
    assert!(matches!(twice.await, Err(Error::Constraint { .. })));
    let deferred = pool.transaction(async |mut tx| {
        Ok(run(&mut tx, "INSERT INTO pairs (id, partner) VALUES (1, 2)").await?)
    });
    assert!(matches!(deferred.await, Err(Error::Constraint { .. })));
    assert_eq!(databases.notes(In::Main).await, ["kept"]);
    assert!(
        databases
            .texts(In::Main, "SELECT 'pair' FROM pairs")
            .await
            .is_empty()
    );
}

/// Locks the file for other processes, or makes the transaction fail whose snapshot was taken
/// before. The latter works once for each call.
async fn disturb(databases: &Databases) -> Option<sqlx::SqliteConnection> {
    match databases.backend(In::Main) {
        Backend::Sqlite => {
            let mut other = databases.sqlite(In::Main).await;
            other.execute("BEGIN IMMEDIATE").await.unwrap();
            Some(other)
        }
        Backend::Postgres => {
            let mut other = databases.postgres(In::Main).await;
            other
                .execute("UPDATE pairs SET partner = partner")
                .await
                .unwrap();
            None
        }
    }
}

/// Updates the row of `pairs`, which a disturbance may have changed since the first statement.
async fn update(tx: &mut UrlConnection) -> Result<(), Error> {
    Ok(run(tx, "UPDATE pairs SET partner = id").await?)
}

const ROW: &str = "INSERT INTO pairs (id, partner) VALUES (1, 1)";

async fn a_conflict_is_repeated_until_it_is_gone(backend: Backend) {
    let (databases, pool) = set_up(backend).await;
    databases.execute(In::Main, ROW).await;
    let databases = Arc::new(databases);
    let attempts = Arc::new(AtomicUsize::new(0));
    let locked = match backend {
        Backend::Sqlite => disturb(&databases).await,
        Backend::Postgres => None,
    };
    let (theirs, counted) = (Arc::clone(&databases), Arc::clone(&attempts));
    // In a task: the future is `Send`.
    let job = tokio::spawn(async move {
        let options = TransactionOptions::new()
            .isolation(Isolation::RepeatableRead)
            .retry_within(Duration::from_secs(60));
        let work = pool.transaction_with(options, async |mut tx| {
            let attempt = counted.fetch_add(1, Ordering::SeqCst);
            note(&mut tx, "done").await?;
            if backend == Backend::Postgres && attempt < 3 {
                disturb(&theirs).await;
            }
            update(&mut tx).await?;
            Ok(attempt)
        });
        work.await
    });
    if locked.is_some() {
        // Longer than one attempt waits for the lock, `busy_timeout`.
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(locked);
    }
    let attempt = job.await.unwrap().unwrap();
    let expected = if backend == Backend::Postgres { 3 } else { 0 };
    assert_eq!(attempt, expected);
    assert_eq!(attempts.load(Ordering::SeqCst), expected + 1);
    assert_eq!(databases.notes(In::Main).await, ["done"]);
}

async fn one_deadline_bounds_all_attempts(backend: Backend) {
    const LIMIT: Duration = Duration::from_millis(600);
    /// A busy machine does not delay the last attempt that much.
    const SLACK: Duration = Duration::from_secs(10);

    let (databases, pool) = set_up(backend).await;
    databases.execute(In::Main, ROW).await;
    let _locked = match backend {
        Backend::Sqlite => disturb(&databases).await,
        Backend::Postgres => None,
    };
    for (limit, least) in [(Duration::ZERO, 1), (LIMIT, 2)] {
        let attempts = AtomicUsize::new(0);
        let started = Instant::now();
        let options = TransactionOptions::new()
            .isolation(Isolation::RepeatableRead)
            .retry_within(limit);
        let failed = pool.transaction_with(options, async |mut tx| {
            attempts.fetch_add(1, Ordering::SeqCst);
            note(&mut tx, "undone").await?;
            disturb(&databases).await;
            update(&mut tx).await
        });
        assert!(matches!(failed.await, Err(Error::Busy(_))));
        assert!(started.elapsed() < limit + SLACK, "{:?}", started.elapsed());
        let attempts = attempts.into_inner();
        match backend {
            // BEGIN waits for the lock, so the work never runs.
            Backend::Sqlite => assert_eq!(attempts, 0),
            Backend::Postgres if limit.is_zero() => assert_eq!(attempts, 1),
            Backend::Postgres => assert!(attempts >= least, "{attempts}"),
        }
    }
    drop(_locked);
    assert!(databases.notes(In::Main).await.is_empty());
}

/// The limit is more than the clock can count.
async fn the_limit_may_be_any_duration(backend: Backend) {
    let (databases, pool) = set_up(backend).await;
    let options = TransactionOptions::new().retry_within(Duration::MAX);
    let work = pool.transaction_with(options, async |mut tx| Ok(note(&mut tx, "done").await?));
    work.await.unwrap();
    assert_eq!(databases.notes(In::Main).await, ["done"]);
}

/// COMMIT gets no reply. The work runs once, whatever became of it.
#[rocket::async_test]
async fn a_commit_without_a_reply_is_not_repeated() {
    for (kind, newcomers, stored) in [
        (Break::After, Newcomers::Served, 1),
        (Break::Before, Newcomers::Served, 0),
        (Break::After, Newcomers::Refused, 1),
    ] {
        let mut databases = Databases::with_tables(Backend::Postgres).await;
        let proxy = databases.by_proxy(In::Main).await;
        let pool = open(&databases).await;
        let attempts = AtomicUsize::new(0);
        let result = pool.transaction(async |mut tx| {
            attempts.fetch_add(1, Ordering::SeqCst);
            note(&mut tx, "once").await?;
            proxy.set("COMMIT", kind);
            proxy.newcomers(newcomers).await;
            Ok(())
        });
        let result = result.await;
        assert!(proxy.has_sprung());
        match (kind, newcomers) {
            (_, Newcomers::Refused) => {
                assert!(matches!(&result, Err(Error::Unknown(_))), "{result:?}");
            }
            (Break::After, _) => assert!(result.is_ok(), "{result:?}"),
            _ => assert!(
                matches!(&result, Err(Error::ConnectionLost(_))),
                "{result:?}"
            ),
        }
        assert_eq!(attempts.into_inner(), 1, "{kind:?}, {newcomers:?}");
        assert_eq!(databases.notes(In::Main).await.len(), stored);
    }
}

async fn a_dropped_future_leaves_nothing(backend: Backend) {
    let (databases, pool) = set_up(backend).await;
    for polls in 0..30 {
        let work = pool.transaction(async |mut tx| {
            note(&mut tx, "dropped").await?;
            pending::<Result<(), Error>>().await
        });
        assert!(!dropped_after(polls, work).await);
    }
    let after = pool.transaction(async |mut tx| Ok(note(&mut tx, "after").await?));
    after.await.unwrap();
    assert_eq!(databases.notes(In::Main).await, ["after"]);
}

async fn a_panic_rolls_back(backend: Backend) {
    let (databases, pool) = set_up(backend).await;
    let work = pool.transaction(async |mut tx| {
        note(&mut tx, "before the panic").await?;
        if true {
            panic!("in the work");
        }
        Ok(())
    });
    assert!(AssertUnwindSafe(work).catch_unwind().await.is_err());
    let after = pool.transaction(async |mut tx| Ok(note(&mut tx, "after").await?));
    after.await.unwrap();
    assert_eq!(databases.notes(In::Main).await, ["after"]);
}

async fn the_commit_is_proved(backend: Backend) {
    let (databases, pool) = set_up(backend).await;
    databases
        .execute(In::Main, "INSERT INTO notes VALUES ('there')")
        .await;
    let attempts = AtomicUsize::new(0);
    let swallowed = pool.transaction(async |mut tx| {
        attempts.fetch_add(1, Ordering::SeqCst);
        let _swallowed = note(&mut tx, "there").await;
        let _swallowed = note(&mut tx, "swallowed").await;
        Ok(())
    });
    let swallowed = swallowed.await;
    assert_eq!(attempts.into_inner(), 1);
    let mut expected = vec!["there"];
    match backend {
        // On SQLite a failed statement does not abort its transaction.
        Backend::Sqlite => {
            swallowed.unwrap();
            expected.insert(0, "swallowed");
        }
        Backend::Postgres => assert!(matches!(swallowed, Err(Error::Aborted)), "{swallowed:?}"),
    }
    for statement in ["COMMIT", "ROLLBACK"] {
        let ended = pool.transaction(async |mut tx| {
            note(&mut tx, "ended").await?;
            let _swallowed = run(&mut tx, statement).await;
            Ok(())
        });
        let ended = ended.await;
        assert!(ended.is_err(), "{statement}");
    }
    assert_eq!(databases.notes(In::Main).await, expected);
}

/// On SQLite a transaction within another one would wait for itself. Two beside each other do not.
async fn a_transaction_within_another_one_does_not_wait(backend: Backend) {
    let (databases, pool) = set_up(backend).await;
    let started = Instant::now();
    let nested = pool.transaction(async |_| {
        let inner = pool.transaction(async |mut tx| Ok(note(&mut tx, "nested").await?));
        inner.await
    });
    let nested = nested.await;
    assert!(started.elapsed() < Duration::from_secs(45), "it has waited");
    let mut expected = vec!["one", "other"];
    match backend {
        Backend::Sqlite => {
            let error = nested.unwrap_err();
            assert!(
                matches!(error, Error::WaitsForItself("the database")),
                "{error:?}"
            );
        }
        Backend::Postgres => {
            nested.unwrap();
            expected.insert(0, "nested");
        }
    }
    let (one, other) = join(
        pool.transaction(async |mut tx| Ok(note(&mut tx, "one").await?)),
        pool.transaction(async |mut tx| Ok(note(&mut tx, "other").await?)),
    )
    .await;
    one.unwrap();
    other.unwrap();
    assert_eq!(databases.notes(In::Main).await, expected);
}

on_each_backend!(
    a_transaction_is_committed_or_leaves_nothing,
    a_conflict_is_repeated_until_it_is_gone,
    one_deadline_bounds_all_attempts,
    the_limit_may_be_any_duration,
    a_dropped_future_leaves_nothing,
    a_panic_rolls_back,
    the_commit_is_proved,
    a_transaction_within_another_one_does_not_wait,
);
