//! Many processes open the same new databases at the same moment.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use rocket::futures::future::join_all;

use crate::support::{Backend, Databases, In, Service, Starting, eventually};

const PROCESSES: usize = 16;

/// Stops processes while they open their databases, and lets them all continue at once.
///
/// The log of each process is a pipe that is full and not read yet, so the process stops at its
/// first log line. sqlx writes that line, after the connection was opened and got its settings.
struct Gate {
    path: PathBuf,
    open: Option<File>,
}

impl Gate {
    fn new(databases: &Databases) -> Self {
        let path = databases.folder().join("gate");
        make_pipe(&path);
        Self { path, open: None }
    }

    fn start(&self, databases: &Arc<Databases>, number: usize) -> Starting {
        /// The shell fills the pipe and then becomes the service. The reader of the pipe starts
        /// when the gate has a writer.
        const FILL: &str = r#"
            { : < "$0"; head -c 65536 > /dev/null; exec cat >&2; } < "$1" &
            exec 2<> "$1"
            head -c 65536 /dev/zero >&2
            shift
            exec "$@""#;

        let log = databases.folder().join(format!("{number}.pipe"));
        make_pipe(&log);
        let (gate, log) = (self.path.to_str().unwrap(), log.to_str().unwrap());
        let wrapper = ["sh", "-c", FILL, gate, log];
        let verbose = [("RUST_LOG", "rocket=warn,rocket_tx=warn,sqlx::query=debug")];
        Starting::new(Arc::clone(databases), &wrapper, &verbose)
    }

    fn open(&mut self) {
        // Opening a pipe for reading and writing does not wait for a reader.
        let pipe = OpenOptions::new().read(true).write(true).open(&self.path);
        self.open.get_or_insert(pipe.unwrap());
    }
}

/// Processes that still wait must not wait for ever.
impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

fn make_pipe(path: &PathBuf) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Returns how many processes have opened `main` and stopped there.
async fn at_the_gate(databases: &Databases, starting: &[Starting]) -> usize {
    match databases.backend(In::Main) {
        Backend::Sqlite => {
            let main = databases.folder().join("main.db");
            let has_it_open = |one: &&Starting| {
                let files = std::fs::read_dir(format!("/proc/{}/fd", one.id())).unwrap();
                files
                    .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
                    .any(|file| file == main)
            };
            starting.iter().filter(has_it_open).count()
        }
        Backend::Postgres => {
            let sessions = "SELECT pid::text FROM pg_stat_activity \
                            WHERE datname = current_database() AND pid <> pg_backend_pid()";
            // Each process opens two connections, to detect a pooler between itself and the server.
            databases.texts(In::Main, sessions).await.len() / 2
        }
    }
}

async fn sixteen_processes_open_the_same_new_databases_and_each_can_write(backend: Backend) {
    // Postgres serialises the processes; SQLite has no server, so races are more likely there.
    let rounds = match backend {
        Backend::Sqlite => 20,
        Backend::Postgres => 2,
    };
    for round in 0..rounds {
        let databases = Arc::new(Databases::new(backend).await);
        let mut gate = Gate::new(&databases);
        let starting: Vec<Starting> = (0..PROCESSES)
            .map(|number| gate.start(&databases, number))
            .collect();
        eventually("all wait at the gate", async || {
            at_the_gate(&databases, &starting).await == PROCESSES
        })
        .await;
        if backend == Backend::Sqlite {
            let written = std::fs::metadata(databases.folder().join("main.db")).unwrap();
            assert_eq!(written.len(), 0, "a process went past the gate");
        }

        gate.open();
        let results = join_all(starting.into_iter().map(Starting::launched)).await;
        let (launched, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        let failed: Vec<String> = failed
            .into_iter()
            .filter_map(|result| result.err().map(|(_, log)| log))
            .collect();
        assert!(failed.is_empty(), "round {round}: {}", failed.join("\n"));

        let services: Vec<Service> = launched.into_iter().flatten().collect();
        let written = join_all(services.iter().map(|service| service.new_todo("a", ""))).await;
        for response in written {
            assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
        }
        let migrated = "SELECT CAST(count(*) AS TEXT) FROM _sqlx_migrations";
        let todos = "SELECT title FROM todos";
        let audit = "SELECT request_id FROM audit";
        assert_eq!(databases.texts(In::Main, migrated).await, ["3"]);
        let events = "SELECT description FROM _aggregate_events_migrations";
        assert_eq!(databases.texts(In::Main, events).await.len(), 1);
        let leases = "SELECT description FROM _aggregate_locks_migrations";
        let each_once = match backend {
            Backend::Sqlite => 1,
            Backend::Postgres => 2,
        };
        assert_eq!(databases.texts(In::Main, leases).await.len(), each_once);
        assert_eq!(databases.texts(In::Main, todos).await.len(), PROCESSES);
        assert_eq!(databases.texts(In::Audit, audit).await.len(), PROCESSES);
    }
}

on_each_backend!(sixteen_processes_open_the_same_new_databases_and_each_can_write);
