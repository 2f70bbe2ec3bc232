//! The file is gone, or the disk is full.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{stage, stage_on};
use crate::support::{Backend, Databases, In};

fn files(databases: &Databases) -> [PathBuf; 3] {
    ["main.db", "main.db-wal", "main.db-shm"].map(|name| databases.folder().join(name))
}

#[rocket::async_test]
async fn a_file_that_was_deleted_is_refused() {
    let stage = stage().await;
    assert_eq!(stage.send("POST /note/before").await.status, 201);
    for file in files(&stage.databases) {
        std::fs::remove_file(file).unwrap();
    }
    for path in ["POST /note/after", "POST /note-both/after", "GET /notes"] {
        let answer = stage.send(path).await;
        assert_eq!(answer.status, 503, "{path}: {answer:?}");
        assert_ne!(answer.outcome(), Some("committed"), "{path}");
    }
    // And none was made in its place.
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
        let answer = stage.send(path).await;
        assert_eq!(answer.status, 503, "{path}: {answer:?}");
        assert_ne!(answer.outcome(), Some("committed"), "{path}");
    }
}

/// The log alone: what is committed into it is gone when the last connection closes.
#[rocket::async_test]
async fn a_log_that_was_deleted_is_never_a_success() {
    let stage = stage().await;
    assert_eq!(stage.send("POST /note/before").await.status, 201);
    std::fs::remove_file(&files(&stage.databases)[1]).unwrap();
    let answer = stage.send("POST /note/first").await;
    assert_eq!(answer.told(), (500, Some("unknown")), "{answer:?}");
    let answer = stage.send("POST /note/second").await;
    assert_eq!(answer.told(), (503, Some("rolled-back")), "{answer:?}");
}

/// A small file system of its own; taken away when it is dropped.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` where this process may not mount.
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

    /// Leaves `room` bytes.
    fn fill(&self, room: usize) {
        use std::io::Write;

        let mut file = std::fs::File::create(self.path().join("filling")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length - room as u64).unwrap();
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

/// The first database is committed only when the second has room; with one it is plain.
#[rocket::async_test]
async fn a_full_disk_is_a_refusal_and_never_half_a_commit() {
    let Some(disk) = SmallDisk::new("16m") else {
        println!("this process may not mount a file system; nothing was tried");
        return;
    };
    let mut databases = Databases::with_tables(Backend::Sqlite).await;
    databases.audit = format!("sqlite:{}", disk.path().join("audit.db").display());
    databases
        .execute(
            In::Audit,
            "CREATE TABLE notes (text TEXT NOT NULL UNIQUE);
             CREATE TABLE pairs (id BIGINT PRIMARY KEY, partner BIGINT NOT NULL)",
        )
        .await;
    let stage = stage_on(databases).await;
    let answer = stage.send("POST /note-both/before").await;
    assert_eq!(answer.told(), (201, Some("committed")), "{answer:?}");

    let mut stored = vec!["before".to_owned()];
    for room in [0, 4_096, 16_384, 65_536] {
        disk.fill(room);
        let mut refused = 0;
        // What was reserved before is used up first.
        while refused < 10 {
            let text = format!("{room}-{}", stored.len());
            let answer = stage.send(&format!("POST /note-both/{text}")).await;
            match answer.told() {
                (201, Some("committed")) => stored.push(text),
                told => {
                    assert_eq!(told, (503, Some("rolled-back")), "{answer:?}");
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
    let answer = stage.send("POST /note-both/after").await;
    assert_eq!(answer.told(), (201, Some("committed")), "{answer:?}");
    stage.nothing_is_stuck().await;
}
