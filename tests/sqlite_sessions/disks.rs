//! The file of a database was deleted or replaced, or the disk is full.

use std::path::{Path, PathBuf};
use std::process::Command;

use rocket::http::Status;
use rocket::{Route, post, routes};
use rocket_tx::{Error, Tx};

use super::{send_sql, stage, stage_on, swallow};
use crate::support::stage::note;
use crate::support::{Audit, Backend, Databases, In, Main};

pub(super) fn routes() -> Vec<Route> {
    routes![run_in_audit, run_in_both]
}

#[post("/run/audit", data = "<sql>")]
async fn run_in_audit(sql: String, mut audit: Tx<Audit>) -> Status {
    swallow(&mut audit, sql).await;
    Status::Created
}

/// Writes a note to the first database, and runs SQL from the test in the second.
#[post("/run/both", data = "<sql>")]
async fn run_in_both(
    sql: String,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<Status, Error> {
    note(&mut main, "both").await?;
    swallow(&mut audit, sql).await;
    Ok(Status::Created)
}

fn files(databases: &Databases) -> [PathBuf; 3] {
    let main = databases.file(In::Main);
    ["db", "db-wal", "db-shm"].map(|extension| main.with_extension(extension))
}

#[rocket::async_test]
async fn a_file_that_was_deleted_is_refused() {
    let stage = stage().await;
    assert_eq!(stage.send("POST /note/before").await.status, 201);
    for file in files(&stage.databases) {
        std::fs::remove_file(file).unwrap();
    }
    for path in ["POST /note/after", "POST /note-both/after", "GET /notes"] {
        let response = stage.send(path).await;
        assert_eq!(response.status, 503, "{path}: {response:?}");
        assert_ne!(response.outcome(), Some("committed"), "{path}");
    }
    // No new file was created in its place.
    assert!(!files(&stage.databases)[0].exists());
    assert_eq!(stage.databases.notes(In::Audit).await, [""; 0]);
}

#[rocket::async_test]
async fn a_file_that_was_replaced_is_refused() {
    let stage = stage().await;
    assert_eq!(stage.send("POST /note/before").await.status, 201);
    let [main, wal, shm] = files(&stage.databases);
    let backup = stage.databases.folder().join("backup.db");
    std::fs::copy(&main, &backup).unwrap();
    std::fs::rename(&backup, &main).unwrap();
    for file in [wal, shm] {
        std::fs::remove_file(file).unwrap();
    }
    for path in ["POST /note/after", "GET /notes"] {
        let response = stage.send(path).await;
        assert_eq!(response.status, 503, "{path}: {response:?}");
        assert_ne!(response.outcome(), Some("committed"), "{path}");
    }
}

/// Only the WAL is deleted. Rows that are committed into it are lost when the last connection
/// closes.
#[rocket::async_test]
async fn a_commit_into_a_deleted_wal_is_never_a_success() {
    let stage = stage().await;
    assert_eq!(stage.send("POST /note/before").await.status, 201);
    std::fs::remove_file(&files(&stage.databases)[1]).unwrap();
    let response = stage.send("POST /note/first").await;
    assert_eq!(response.summary(), (500, Some("unknown")), "{response:?}");
    let response = stage.send("POST /note/second").await;
    assert_eq!(
        response.summary(),
        (503, Some("rolled-back")),
        "{response:?}"
    );
}

/// A small separate file system. It is unmounted on drop.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts the file system. Returns `None` if this process may not mount.
    fn new(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self { folder })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Fills the file system and leaves `space` bytes free.
    fn fill(&self, space: usize) {
        use std::io::Write;

        let mut file = std::fs::File::create(self.path().join("filling")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length - space as u64).unwrap();
    }

    fn empty(&self) {
        std::fs::remove_file(self.path().join("filling")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(unmounted.is_ok());
    }
}

/// Returns both databases, the second one on a separate disk.
async fn audit_on(disk: &SmallDisk) -> Databases {
    let mut databases = Databases::with_tables(Backend::Sqlite).await;
    databases.audit = format!("sqlite:{}", disk.path().join("audit.db").display());
    let tables = "\
        CREATE TABLE notes (text TEXT NOT NULL UNIQUE);
        CREATE TABLE pairs (id BIGINT PRIMARY KEY, partner BIGINT NOT NULL)";
    databases.execute(In::Audit, tables).await;
    databases
}

/// The first database is committed only if the second has enough space.
#[rocket::async_test]
async fn a_full_disk_refuses_the_request_and_never_commits_half() {
    let Some(disk) = SmallDisk::new("16m") else {
        println!("this process may not mount a file system; nothing was tried");
        return;
    };
    let stage = stage_on(audit_on(&disk).await).await;
    let response = stage.send("POST /note-both/before").await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");

    let mut stored = vec!["before".to_owned()];
    for space in [0, 4_096, 16_384, 65_536] {
        disk.fill(space);
        let mut refused = 0;
        // Space that was reserved before the disk became full is used first.
        while refused < 10 {
            let text = format!("{space}-{}", stored.len());
            let response = stage.send(&format!("POST /note-both/{text}")).await;
            match response.summary() {
                (201, Some("committed")) => stored.push(text),
                other => {
                    assert_eq!(other, (503, Some("rolled-back")), "{response:?}");
                    refused += 1;
                }
            }
        }
        disk.empty();
    }
    stored.sort();
    for database in [In::Main, In::Audit] {
        assert_eq!(stage.databases.notes(database).await, stored);
    }
    let response = stage.send("POST /note-both/after").await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
    stage.nothing_is_stuck().await;
}

/// Space is reserved for the pages that may be in memory at COMMIT. A larger cache would keep more
/// pages in memory than that.
#[rocket::async_test]
async fn space_is_reserved_even_if_another_request_has_changed_the_cache() {
    for sql in [
        "SELECT 1",
        "PRAGMA cache_size = -100000",
        "PRAGMA cache_spill = 0",
    ] {
        let Some(disk) = SmallDisk::new("24m") else {
            println!("this process may not mount a file system; nothing was tried");
            return;
        };
        let stage = stage_on(audit_on(&disk).await).await;
        let set = send_sql(&stage, "POST /run/audit", sql).await;
        assert_eq!(set.summary(), (201, Some("committed")), "{set:?}");
        disk.fill(6_000_000);
        let much = "INSERT INTO notes VALUES (hex(zeroblob(4000000)))";
        let response = send_sql(&stage, "POST /run/both", much).await;
        // The statement itself fails on the full disk, and SQLite rolls back.
        assert_eq!(
            response.outcome(),
            Some("rolled-back"),
            "{sql}: {response:?}"
        );
        assert_eq!(stage.notes().await, [""; 0], "{sql}");
    }
}

/// A COMMIT with attached databases commits one file after another.
#[rocket::async_test]
async fn an_attached_file_on_a_full_disk_causes_no_false_outcome() {
    for mode in ["wal", "delete"] {
        let Some(disk) = SmallDisk::new("2m") else {
            println!("this process may not mount a file system; nothing was tried");
            return;
        };
        let mut databases = Databases::with_tables(Backend::Sqlite).await;
        let main = databases.audit.clone();
        let other = disk.path().join("other.db");
        databases.audit = format!("sqlite:{}", other.display());
        let table = format!("PRAGMA journal_mode = {mode}; CREATE TABLE archive (text)");
        databases.execute(In::Audit, table.leak()).await;
        databases.audit = main;
        let stage = stage_on(databases).await;
        disk.fill(200_000);
        let sql = format!(
            "ATTACH '{}' AS other; INSERT INTO notes VALUES ('in main');
             INSERT INTO other.archive VALUES (zeroblob(900000))",
            other.display()
        );
        let response = send_sql(&stage, "POST /run/tx/201", &sql).await;
        let stored = stage.notes().await;
        assert_ne!(
            response.outcome(),
            Some("committed"),
            "{mode}: {response:?}"
        );
        if response.outcome() == Some("rolled-back") {
            assert_eq!(stored, [""; 0], "{mode}: {response:?}");
        }
    }
}
