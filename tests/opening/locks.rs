//! Another process has locked the file while a service starts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::{Executor, SqliteConnection};

use super::refused;
use crate::support::{Backend, Databases, In, Starting, eventually};

/// What a start may meet.
#[derive(Debug, Clone, Copy)]
enum Lock {
    /// The whole file, in rollback mode: the switch to WAL has to wait.
    BeforeWal,
    /// The whole file, in WAL mode: nobody else can even read it.
    WholeWal,
    /// The one place of a writer, as any transaction takes it.
    Writer,
}

impl Lock {
    /// Released when the connection is closed.
    async fn hold(self, databases: &Databases) -> SqliteConnection {
        let mut connection = databases.sqlite(In::Main).await;
        let statements = match self {
            Self::BeforeWal => {
                "CREATE TABLE before (x); PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE"
            }
            // The mode is taken up by the next statement that reads the file.
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
    eventually("it has met the lock, more than once", async || {
        starting.log().matches("trying again").count() > 1
    })
    .await;
    assert!(!starting.log().contains("launched"), "{}", starting.log());

    sqlx::Connection::close(held).await.unwrap();
    let service = match starting.launched().await {
        Ok(service) => service,
        Err((status, log)) => panic!("{lock:?}: it ended with {status}\n{log}"),
    };
    let response = service.new_todo("after the lock", "").await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
}

async fn gives_up(lock: Lock) {
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
    assert!(bounds.contains(&took), "{lock:?}: it took {took:?}");
    drop(held);
}

fn configured(databases: &Databases, busy_timeout: &str) -> String {
    format!(
        r#"{{main={{url="{}",busy_timeout="{busy_timeout}"}},audit={{url="{}"}}}}"#,
        databases.main, databases.audit
    )
}

mod sqlite {
    use super::{Lock, gives_up, waits};

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
    async fn past_busy_timeout_a_start_fails_and_says_why() {
        gives_up(Lock::BeforeWal).await;
        gives_up(Lock::WholeWal).await;
        gives_up(Lock::Writer).await;
    }
}
