//! A transaction without writes waits only for the syncs of commits that it may have read.

use std::path::Path;

use rocket::figment::Figment;
use rocket_db_pools::Pool;
use rocket_tx::db::{Durability, SqlitePool, TransactionPool};

use super::disk::Disk;
use crate::support::WRITES;

mod sqlite {
    use super::*;

    async fn pool(folder: &Path) -> SqlitePool {
        let figment = Figment::new()
            .merge(("url", format!("sqlite:{}", folder.join("a.db").display())))
            .merge(("max_connections", 1))
            .merge(("connect_timeout", 5));
        let pool = SqlitePool::init(&figment).await.unwrap();
        // The pool relies on the modification time of the log only after some commits have shown
        // that this is reliable.
        for sql in [
            "CREATE TABLE notes (text TEXT)",
            "CREATE INDEX by_text ON notes (text)",
            "CREATE TABLE kept (id INTEGER PRIMARY KEY, text TEXT) WITHOUT ROWID",
            "INSERT INTO notes VALUES ('before')",
        ] {
            commit(&pool, sql, false).await.wait().await.unwrap();
        }
        pool
    }

    async fn commit(pool: &SqlitePool, sql: &str, with_proof: bool) -> Durability {
        let mut transaction = pool.open(WRITES).await.unwrap();
        let sql = sqlx::AssertSqlSafe(sql);
        sqlx::raw_sql(sql)
            .execute(&mut *transaction.connection())
            .await
            .unwrap();
        if with_proof {
            transaction.prepare().await.unwrap();
        }
        transaction.commit_without_waiting().await.unwrap()
    }

    #[rocket::async_test]
    async fn a_transaction_without_writes_does_not_wait_for_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let pool = pool(folder.path()).await;
        for round in 0..3 {
            for sql in [
                "SELECT * FROM notes",
                "UPDATE notes SET text = 'other' WHERE text = 'there is none'",
                "DELETE FROM kept WHERE id = 1",
                "CREATE TABLE IF NOT EXISTS notes (text TEXT)",
            ] {
                for with_proof in [false, true] {
                    let durability = commit(&pool, sql, with_proof).await;
                    assert!(
                        durability.is_reached(),
                        "{sql}, {with_proof}, round {round}"
                    );
                }
            }
            let written = commit(&pool, "INSERT INTO notes VALUES ('more')", false).await;
            assert!(!written.is_reached());
            written.wait().await.unwrap();
        }
        pool.close().await;
    }

    /// This includes statements that SQLite does not count as changes, and commits that do not make
    /// the write-ahead log longer.
    #[rocket::async_test]
    async fn every_transaction_with_writes_waits_for_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let pool = pool(folder.path()).await;
        for round in 0..3 {
            for sql in [
                "PRAGMA user_version = 7",
                "PRAGMA application_id = 7",
                "REINDEX",
                "ANALYZE",
                "CREATE TABLE made (text TEXT); DROP TABLE made",
                "UPDATE notes SET text = 'before'",
                "INSERT OR REPLACE INTO kept VALUES (1, 'one')",
                "DELETE FROM kept; INSERT INTO kept VALUES (1, 'one'); DELETE FROM kept",
                "SAVEPOINT a; INSERT INTO kept VALUES (1, 'one'); RELEASE a; DELETE FROM kept",
            ] {
                for with_proof in [false, true] {
                    let durability = commit(&pool, sql, with_proof).await;
                    assert!(!durability.is_reached(), "{sql}, {with_proof}, {round}");
                    durability.wait().await.unwrap();
                }
            }
            // After this checkpoint, the next write restarts the log.
            checkpoint(folder.path()).await;
        }
        pool.close().await;
    }

    async fn checkpoint(folder: &Path) {
        use sqlx::{ConnectOptions, Connection, Executor};

        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.join("a.db"));
        let mut other = options.connect().await.unwrap();
        other
            .execute("PRAGMA wal_checkpoint(RESTART)")
            .await
            .unwrap();
        other.close().await.unwrap();
    }

    /// Without this wait, its response could show data that a power cut undoes.
    #[rocket::async_test]
    async fn a_transaction_without_writes_waits_for_commits_it_may_have_read() {
        const NAME: &str = "durability::unwritten::sqlite::a_transaction_without_writes_waits_for_commits_it_may_have_read";

        let folder = tempfile::tempdir().unwrap();
        let Some(disk) = Disk::of_this_process(folder.path(), NAME) else {
            return;
        };
        let pool = pool(folder.path()).await;
        disk.order("fdatasync -wal stuck");
        let reads = commit(&pool, "SELECT * FROM notes", false).await;
        assert!(reads.is_reached());
        let written = commit(&pool, "INSERT INTO notes VALUES ('more')", false).await;
        let reads = commit(&pool, "SELECT * FROM notes", false).await;
        assert!(!written.is_reached() && !reads.is_reached());
        disk.mend();
        written.wait().await.unwrap();
        reads.wait().await.unwrap();
        let reads = commit(&pool, "SELECT * FROM notes", false).await;
        assert!(reads.is_reached());
        pool.close().await;
    }

    /// After a failed sync, the file is checked or the later commit is durable. `how` is the fate
    /// of the connection whose commit could not be synced: `kept`, `closed` or `replaced`.
    async fn after_a_failed_sync(name: &str, how: &str) {
        use sqlx::{ConnectOptions, Connection, Executor};
        use std::io::{Seek, SeekFrom, Write};

        let folder = tempfile::tempdir().unwrap();
        let Some(disk) = Disk::of_this_process(folder.path(), name) else {
            return;
        };
        let pool = pool(folder.path()).await;
        let insert = "INSERT INTO kept VALUES (1, 'before')";
        commit(&pool, insert, false).await.wait().await.unwrap();
        let wal = folder.path().join("a.db-wal");
        let length = || std::fs::metadata(&wal).unwrap().len();
        // A request commits, and its sync does not return yet.
        disk.order("fdatasync -wal stuck");
        let from = length();
        let lost = commit(&pool, "INSERT INTO notes VALUES ('lost')", false).await;
        let to = length();
        assert!(!lost.is_reached() && to > from);
        if how != "kept" {
            // Another request makes the pool close the connection. A handler that times out in
            // `bounded` does the same.
            let mut transaction = pool.open(WRITES).await.unwrap();
            let sql = match how {
                "closed" => "ROLLBACK",
                _ => "PRAGMA recursive_triggers = 1",
            };
            transaction.connection().execute(sql).await.unwrap();
            transaction.rollback().await.unwrap();
        }
        // If the connection has a changed setting, the next BEGIN waits for the sync.
        let mut early = None;
        if how == "replaced" {
            let pool = pool.clone();
            early = Some(rocket::tokio::spawn(async move { pool.open(WRITES).await }));
            rocket::tokio::task::yield_now().await;
        }
        // The sync fails. The test then drops the pages of the commit, as the kernel does.
        disk.order("fdatasync -wal eio");
        let result = lost.wait().await;
        assert!(result.is_err());
        disk.mend();
        let mut file = std::fs::OpenOptions::new().write(true).open(&wal).unwrap();
        file.seek(SeekFrom::Start(from)).unwrap();
        file.write_all(&vec![0; (to - from) as usize]).unwrap();
        // The next transaction writes to another page.
        let opened = match early {
            Some(early) => early.await.unwrap(),
            None => pool.open(WRITES).await,
        };
        let mut transaction = match opened {
            Ok(transaction) => transaction,
            // The check has detected the damage.
            Err(_) => return,
        };
        let update = "UPDATE kept SET text = 'after'";
        transaction.connection().execute(update).await.unwrap();
        let result = transaction.commit().await;
        assert!(result.is_ok());
        // A power cut leaves only the content of both files.
        let image = tempfile::tempdir().unwrap();
        for name in ["a.db", "a.db-wal"] {
            std::fs::copy(folder.path().join(name), image.path().join(name)).unwrap();
        }
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(image.path().join("a.db"));
        let mut after = options.connect().await.unwrap();
        let kept: String = sqlx::query_scalar("SELECT text FROM kept")
            .fetch_one(&mut after)
            .await
            .unwrap();
        after.close().await.unwrap();
        assert_eq!(kept, "after", "the reported commit is not durable");
    }

    #[rocket::async_test]
    async fn a_file_is_checked_after_a_failed_sync() {
        after_a_failed_sync(
            "durability::unwritten::sqlite::a_file_is_checked_after_a_failed_sync",
            "kept",
        )
        .await;
    }

    #[rocket::async_test]
    async fn a_file_is_checked_although_the_connection_was_closed() {
        after_a_failed_sync(
            "durability::unwritten::sqlite::a_file_is_checked_although_the_connection_was_closed",
            "closed",
        )
        .await;
    }

    #[rocket::async_test]
    async fn a_file_is_checked_although_the_connection_was_replaced() {
        after_a_failed_sync(
            "durability::unwritten::sqlite::a_file_is_checked_although_the_connection_was_replaced",
            "replaced",
        )
        .await;
    }
}
