//! A recorded load on the real service: the changes of its processes to their files, its responses
//! with their times, and the rows that are stored at the end.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fastrand::Rng;
use rocket::serde::json::{Value, serde_json};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor};
use tempfile::TempDir;

use crate::support::{Backend, Databases, In, Service, eventually};

use super::log::Log;

/// For each database: its file, its table, and a query that returns one line per row, by id.
pub const ROWS: [(&str, &str, &str); 2] = [
    (
        "main.db",
        "todos",
        "SELECT group_concat(id || ' ' || title, char(10)) FROM (SELECT * FROM todos ORDER BY id)",
    ),
    (
        "audit.db",
        "audit",
        "SELECT group_concat(id || ' ' || request_id || ' ' || subject, char(10)) \
         FROM (SELECT * FROM audit ORDER BY id)",
    ),
];

const CLIENTS: usize = 16;

/// The longest duration of a sync, in microseconds. Other commits can arrive during a sync.
const SYNC: &str = "4000";

/// In every other stretch of this many requests, some requests make rocket_tx close the writer.
const STRETCH: usize = 300;

/// The parameters of a load.
pub struct Load {
    pub seed: u64,
    /// The number of requests, over all phases.
    pub requests: usize,
    /// The setting `synchronous` of both databases.
    pub synchronous: &'static str,
}

/// A recorded load.
pub struct Recording {
    /// The folder of the recording. It is removed on drop, unless [`Recording::keep`] is called.
    folder: Option<TempDir>,
    pub path: PathBuf,
    pub log: Log,
    pub history: History,
    /// The files in the folder at some positions of the log, to compare the simulator with.
    pub seen: Vec<(u64, BTreeMap<String, Vec<u8>>)>,
    /// The files before the first process started, with their inodes.
    pub before: BTreeMap<String, (u64, Vec<u8>)>,
}

#[derive(Serialize, Deserialize)]
pub struct History {
    /// Names and inodes of the files before the first process started. Their contents are stored in
    /// the same folder as the history.
    before: Vec<(String, u64)>,
    /// All acknowledged requests, in the order of their positions.
    pub acknowledged: Vec<Acknowledged>,
    /// The rows that are stored at the end, as read by [`ROWS`]. Rows are only added, and the id of
    /// a rolled-back row is used again. Therefore the rows after a cut must be a prefix of these.
    pub stored: [String; 2],
}

/// A response that acknowledges that a todo and its row in the audit are stored.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Acknowledged {
    /// The length of the log when the response had been read.
    pub position: u64,
    /// The ids in both databases.
    pub rows: [usize; 2],
}

/// A response to a client.
struct Reported {
    title: String,
    request: String,
    position: u64,
    /// The id of the todo if the response acknowledges it. `None` if the response reports a
    /// rollback.
    id: Option<usize>,
}

/// A load that is running.
struct Recorder {
    load: Load,
    library: String,
    log: PathBuf,
    databases: Arc<Databases>,
    sent: AtomicUsize,
    seen: Vec<(u64, BTreeMap<String, Vec<u8>>)>,
}

impl Load {
    pub async fn record(self) -> Recording {
        let folder = super::scratch();
        let databases = Arc::new(Databases::new(Backend::Sqlite).await);
        let before = with_small_pages(&databases).await;
        let mut recorder = Recorder {
            library: compiled(folder.path()),
            log: folder.path().join("log"),
            databases,
            sent: AtomicUsize::new(0),
            seen: Vec::new(),
            load: self,
        };
        let reported = recorder.run().await;
        let history = recorder.history(reported, &before).await;
        for (name, (_, content)) in &before {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let json = serde_json::to_vec(&history).unwrap();
        std::fs::write(folder.path().join("history"), json).unwrap();

        let mut recording = Recording::read(folder.path());
        recording.seen = recorder.seen;
        recording.folder = Some(folder);
        recording
    }
}

impl Recording {
    /// Reads a kept recording.
    pub fn read(path: &Path) -> Self {
        let history = std::fs::read(path.join("history")).unwrap();
        let history: History = serde_json::from_slice(&history).unwrap();
        let before = history.before.iter();
        let before = before.map(|(name, inode)| {
            let content = std::fs::read(path.join(name)).unwrap();
            (name.clone(), (*inode, content))
        });
        Self {
            folder: None,
            path: path.to_owned(),
            log: Log::read(&path.join("log")),
            before: before.collect(),
            history,
            seen: Vec::new(),
        }
    }

    /// Keeps the recording on the disk, so that its cuts can be repeated.
    pub fn keep(&mut self) {
        if let Some(folder) = self.folder.take() {
            self.path = folder.keep();
        }
    }
}

impl Recorder {
    /// Runs all phases: one process; two processes on the same files; a process that is killed, and
    /// its successor.
    ///
    /// A process is killed only while no request is running, so that its record is complete.
    async fn run(&mut self) -> Vec<Reported> {
        let requests = self.load.requests;
        let mut reported = Vec::new();

        let one = self.start().await;
        reported.extend(self.send(&[&one], requests * 3 / 10).await);
        self.close_the_writer(&one).await;
        reported.extend(self.send(&[&one], requests * 2 / 10).await);
        self.snapshot();
        // The last connection that closes a database removes its WAL.
        one.stop().await;
        self.snapshot();

        // A process that syncs nothing begins the WAL and is killed before a checkpoint. Its
        // responses guarantee nothing. The commits of the other process come after its commits in
        // the same WAL, and those are guaranteed.
        let (one, other) = (self.start().await, self.start_with("off").await);
        let unsynced = self.send(&[&other], 40).await;
        reported.extend(unsynced.into_iter().filter(|one| one.id.is_none()));
        other.signal("KILL");
        drop(other);
        reported.extend(self.send(&[&one], requests / 20).await);
        self.snapshot();

        let two = self.start().await;
        reported.extend(self.send(&[&one, &two], requests * 2 / 10).await);
        one.stop().await;
        self.snapshot();
        reported.extend(self.send(&[&two], requests / 10).await);
        two.signal("KILL");
        drop(two);
        self.snapshot();

        let one = self.start().await;
        reported.extend(self.send(&[&one], requests * 2 / 10).await);
        one.stop().await;
        self.snapshot();
        reported
    }

    async fn start(&self) -> Service {
        self.start_with(self.load.synchronous).await
    }

    async fn start_with(&self, synchronous: &str) -> Service {
        // Idle readers are closed early. Then a writer that is closed may be the last connection.
        let setting = format!(
            r#"max_connections=4,idle_timeout="50ms",synchronous="{}""#,
            synchronous
        );
        let variables = [
            ("LD_PRELOAD", self.library.as_str()),
            ("POWER_LOG", self.log.to_str().unwrap()),
            ("POWER_FOLDER", self.databases.folder().to_str().unwrap()),
            ("POWER_SYNC", SYNC),
            ("ROCKET_DATABASES", &self.databases.variable_with(&setting)),
        ];
        Service::on(Arc::clone(&self.databases), &variables).await
    }

    async fn send(&self, services: &[&Service], requests: usize) -> Vec<Reported> {
        let last = self.sent.load(Ordering::Relaxed) + requests;
        let clients = (0..CLIENTS).map(|client| async move {
            let mut reported = Vec::new();
            loop {
                let number = self.sent.fetch_add(1, Ordering::Relaxed);
                if number >= last {
                    self.sent.store(last, Ordering::Relaxed);
                    return reported;
                }
                let service = services[client % services.len()];
                reported.extend(self.new_todo(service, number).await);
            }
        });
        let reported: Vec<_> = rocket::futures::future::join_all(clients).await;
        reported.into_iter().flatten().collect()
    }

    /// Makes the service close its writer of `main`. Once the readers are closed too, SQLite
    /// removes the WAL. It creates another one for the next request.
    async fn close_the_writer(&self, service: &Service) {
        let response = service.new_todo("closes the writer", "swallow").await;
        assert_eq!(response.outcome(), Some("rolled-back"), "{response:?}");
        let wal = self.databases.folder().join("main.db-wal");
        eventually("the WAL is removed", async || !wal.exists()).await;
    }

    /// Sends a request for a new todo. Returns `None` if the response leaves the outcome open.
    async fn new_todo(&self, service: &Service, number: usize) -> Option<Reported> {
        let mut rng = Rng::with_seed(self.load.seed ^ (number as u64) << 32);
        let filler: String = (0..rng.usize(..480)).map(|_| rng.alphanumeric()).collect();
        let title = format!("{number} {filler}");
        let fault = match rng.u8(..64) {
            0..8 => "respond=502",
            8 => "commit",
            // SQLite itself rolls the transaction back, and rocket_tx closes the writer. This
            // happens only in every other stretch, so that the WAL also grows until it restarts.
            9 | 10 if (number / STRETCH).is_multiple_of(2) => "swallow",
            _ => "",
        };
        let response = service.new_todo(&title, fault).await;
        let position = length(&self.log);
        let id = match response.summary() {
            (201, Some("committed")) if fault.is_empty() => {
                let todo: Value = response.json();
                Some(todo["id"].as_u64().unwrap().try_into().unwrap())
            }
            // 503: the other process held the lock for too long.
            (400.., Some("rolled-back")) => None,
            (_, Some("unknown" | "partial")) => return None,
            _ => panic!("{response:?}\n{}", service.log()),
        };
        Some(Reported {
            title,
            request: response.header("x-request-id").unwrap().to_owned(),
            position,
            id,
        })
    }

    /// Saves a copy of all files. No request is running.
    fn snapshot(&mut self) {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(self.databases.folder()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name.contains(".db") && !name.ends_with("-shm") {
                files.insert(name, std::fs::read(entry.path()).unwrap());
            }
        }
        self.seen.push((length(&self.log), files));
    }

    /// Compares the responses with the stored rows, and returns the history.
    async fn history(
        &self,
        reported: Vec<Reported>,
        before: &BTreeMap<String, (u64, Vec<u8>)>,
    ) -> History {
        let mut stored = [String::new(), String::new()];
        for (database, rows) in [In::Main, In::Audit].into_iter().zip(&mut stored) {
            let found = self.databases.texts(database, ROWS[database as usize].2);
            *rows = found.await.pop().unwrap();
        }
        let lines: HashMap<&str, usize> = stored[1]
            .lines()
            .zip(1..)
            .map(|(line, id)| (line.split(' ').nth(1).unwrap(), id))
            .collect();
        let titles: Vec<&str> = stored[0].lines().collect();
        for rows in &stored {
            for (line, id) in rows.lines().zip(1_usize..) {
                assert!(line.starts_with(&format!("{id} ")), "a gap before {line}");
            }
        }

        let mut acknowledged = Vec::new();
        for one in reported {
            let line = lines.get(one.request.as_str());
            match one.id {
                Some(id) => {
                    assert_eq!(titles[id - 1], format!("{id} {}", one.title));
                    acknowledged.push(Acknowledged {
                        position: one.position,
                        rows: [id, *line.unwrap()],
                    });
                }
                None => {
                    let row = format!(" {}", one.title);
                    assert!(!titles.iter().any(|title| title.ends_with(&row)), "{row}");
                    assert!(line.is_none(), "{row}");
                }
            }
        }
        acknowledged.sort_by_key(|one| one.position);
        let before = before.iter();
        History {
            before: before.map(|(name, it)| (name.clone(), it.0)).collect(),
            acknowledged,
            stored,
        }
    }
}

/// Creates one of the two files in advance, with the smallest page size. A checkpoint comes after a
/// number of pages, so it comes sooner if each todo needs several pages.
async fn with_small_pages(databases: &Databases) -> BTreeMap<String, (u64, Vec<u8>)> {
    let path = databases.folder().join("main.db");
    let options = SqliteConnectOptions::new().filename(&path).page_size(512);
    let mut connection = options.create_if_missing(true).connect().await.unwrap();
    connection.execute("PRAGMA user_version = 1").await.unwrap();
    connection.close().await.unwrap();
    let inode = std::fs::metadata(&path).unwrap().ino();
    BTreeMap::from([("main.db".to_owned(), (inode, std::fs::read(&path).unwrap()))])
}

/// Compiles the recorder.
fn compiled(folder: &Path) -> String {
    let library = folder.join("recorder.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/power/recorder.c");
    let compiled = Command::new("cc")
        .args([
            "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o",
        ])
        .args([library.as_path(), Path::new(source)])
        .args(["-ldl", "-lpthread"])
        .status();
    assert!(compiled.unwrap().success());
    library.into_os_string().into_string().unwrap()
}

fn length(log: &Path) -> u64 {
    std::fs::metadata(log).map_or(0, |it| it.len())
}
