//! Many processes open the same new databases at the same moment.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use rocket::futures::future::join_all;
use rocket::tokio::task::spawn_blocking;

use crate::support::{Backend, Databases, In, Service, Starting, eventually};

const PROCESSES: usize = 16;

/// Holds processes back in front of the service's first instruction, and lets all go at once.
struct Gate(PathBuf);

impl Gate {
    fn new(databases: &Databases) -> Self {
        let path = databases.folder().join("gate");
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        Self(path)
    }

    /// A shell that becomes the service once it could open the pipe, which takes a writer.
    fn start(&self, databases: &Arc<Databases>) -> Starting {
        const WAIT: &str = r#"echo at the gate >&2; : < "$0"; exec "$@""#;

        let path = self.0.to_str().unwrap();
        Starting::new(Arc::clone(databases), &["sh", "-c", WAIT, path], &[])
    }

    /// It stays open as long as what is returned.
    async fn open(self) -> File {
        spawn_blocking(move || OpenOptions::new().write(true).open(self.0).unwrap())
            .await
            .unwrap()
    }
}

async fn sixteen_processes_open_the_same_new_databases_and_each_can_write(backend: Backend) {
    // SQLite has no server that would put them in a row.
    let rounds = match backend {
        Backend::Sqlite => 20,
        Backend::Postgres => 2,
    };
    for round in 0..rounds {
        let databases = Arc::new(Databases::new(backend).await);
        let gate = Gate::new(&databases);
        let starting: Vec<Starting> = (0..PROCESSES).map(|_| gate.start(&databases)).collect();
        eventually("all wait at the gate", async || {
            starting.iter().all(|one| one.log().contains("at the gate"))
        })
        .await;

        let _open = gate.open().await;
        let results = join_all(starting.into_iter().map(Starting::launched)).await;
        let (launched, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        let failed: Vec<String> = failed
            .into_iter()
            .filter_map(|result| result.err().map(|(_, log)| log))
            .collect();
        assert!(failed.is_empty(), "round {round}: {}", failed.join("\n"));

        let services: Vec<Service> = launched.into_iter().flatten().collect();
        let written = join_all(services.iter().map(|service| service.new_todo("a", ""))).await;
        for answer in written {
            assert_eq!(answer.told(), (201, Some("committed")), "{answer:?}");
        }
        let migrated = "SELECT CAST(count(*) AS TEXT) FROM _sqlx_migrations";
        let todos = "SELECT title FROM todos";
        let audit = "SELECT request_id FROM audit";
        assert_eq!(databases.texts(In::Main, migrated).await, ["1"]);
        assert_eq!(databases.texts(In::Main, todos).await.len(), PROCESSES);
        assert_eq!(databases.texts(In::Audit, audit).await.len(), PROCESSES);
    }
}

on_each_backend!(sixteen_processes_open_the_same_new_databases_and_each_can_write);
