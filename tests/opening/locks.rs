//! A service starts while another process has locked the file.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::{Executor, SqliteConnection};

use super::refused;
use crate::support::{Backend, Databases, In, Starting, eventually};

/// The lock that another process holds.
#[derive(Debug, Clone, Copy)]
enum Lock {
    /// A lock on the whole file, in rollback mode. The switch to WAL has to wait.
    BeforeWal,
    /// A lock on the whole file, in WAL mode. No other connection can even read it.
    WholeWal,
    /// The lock of the only writer, as any writing transaction takes it.
    Writer,
}

impl Lock {
    /// Takes the lock. It is released when the connection is closed.
    async fn hold(self, databases: &Databases) -> SqliteConnection {
        let mut connection = databases.sqlite(In::Main).await;
        let statements = match self {
            Self::BeforeWal => {
                "CREATE TABLE before (x); PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE"
            }
            // EXCLUSIVE takes effect with the next statement that reads the file.
            Self::WholeWal => {
                "PRAGMA journal_mode = WAL; CREATE TABLE before (x); \
                 PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE"
            }
            Self::Writer => "PRAGMA journal_mode = WAL; CREATE TABLE before (x); BEGIN IMMEDIATE",
        };
        connection.execute(statements).await.unwrap();
        connection
    }
}

async fn waits(lock: Lock) {
    let databases = Arc::new(Databases::new(Backend::Sqlite).await);
    let held = lock.hold(&databases).await;
    let variables = [
        ("ROCKET_DATABASES", &*configured(&databases, "40s")),
        ("RUST_LOG", "rocket_tx=debug,rocket=warn"),
    ];
    let starting = Starting::new(Arc::clone(&databases), &[], &variables);
    eventually("the start has tried more than once", async || {
        starting.log().matches("trying again").count() > 1
    })
    .await;
    assert!(!starting.log().contains("launched"), "{}", starting.log());

    sqlx::Connection::close(held).await.unwrap();
    let service = match starting.launched().await {
        Ok(service) => service,
        Err((status, log)) => panic!("{lock:?}: the service ended with {status}\n{log}"),
    };
    let response = service.new_todo("after the lock", "").await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
}

async fn times_out(lock: Lock) {
    let databases = Databases::new(Backend::Sqlite).await;
    let held = lock.hold(&databases).await;
    let variables = [("ROCKET_DATABASES", &*configured(&databases, "700ms"))];
    let started = Instant::now();
    refused(
        &databases,
        &variables,
        &[
            "main.db",
            "locked by another process for 700ms",
            "stop that process, or raise `busy_timeout`",
        ],
    )
    .await;
    let took = started.elapsed();
    let bounds = Duration::from_millis(700)..Duration::from_secs(60);
    assert!(bounds.contains(&took), "{lock:?}: the start took {took:?}");
    drop(held);
}

fn configured(databases: &Databases, busy_timeout: &str) -> String {
    format!(
        r#"{{main={{url="{}",busy_timeout="{busy_timeout}"}},audit={{url="{}"}}}}"#,
        databases.main, databases.audit
    )
}

mod sqlite {
    use super::{Lock, times_out, waits};

    #[rocket::async_test]
    async fn a_start_waits_until_the_whole_file_is_released() {
        waits(Lock::BeforeWal).await;
        waits(Lock::WholeWal).await;
    }

    #[rocket::async_test]
    async fn a_start_waits_until_another_writer_is_done() {
        waits(Lock::Writer).await;
    }

    #[rocket::async_test]
    async fn past_busy_timeout_a_start_fails_with_the_reason() {
        times_out(Lock::BeforeWal).await;
        times_out(Lock::WholeWal).await;
        times_out(Lock::Writer).await;
    }
}
