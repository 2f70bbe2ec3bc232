//! A commit that was reported to the client survives a power cut. On SQLite the response waits for
//! the disk, but the writer does not.

#[path = "durability/disk.rs"]
pub mod disk;
#[path = "durability/unwritten.rs"]
mod unwritten;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rocket::tokio;

use self::disk::Disk;
use crate::support::{Backend, Databases, In, eventually};

const TITLES: &str = "SELECT title FROM todos ORDER BY title";

/// Creates both databases on a disk that obeys orders.
async fn databases() -> (Arc<Databases>, Disk) {
    let databases = Arc::new(Databases::new(Backend::Sqlite).await);
    let disk = Disk::of(&databases);
    (databases, disk)
}

mod sqlite {
    use super::*;

    /// Two commits are visible from outside before either has a response, because the writer did
    /// not wait.
    #[rocket::async_test]
    async fn responses_wait_for_the_disk_and_the_writer_does_not() {
        let (databases, disk) = databases().await;
        let service = Arc::new(disk.service(&databases, &[]).await);
        assert_eq!(service.new_todo("before", "").await.status, 201);

        disk.order("fdatasync -wal stuck");
        let requests: Vec<_> = ["one", "two"]
            .map(|title| {
                let service = Arc::clone(&service);
                tokio::spawn(async move { service.new_todo(title, "").await })
            })
            .into();
        eventually("both are stored", async || {
            databases.texts(In::Main, TITLES).await == ["before", "one", "two"]
        })
        .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(requests.iter().all(|request| !request.is_finished()));

        disk.mend();
        for request in requests {
            let response = request.await.unwrap();
            assert_eq!(
                response.summary(),
                (201, Some("committed")),
                "{}",
                response.body
            );
        }
    }

    #[rocket::async_test]
    async fn a_sync_that_is_not_done_in_time_is_unknown() {
        let (databases, disk) = databases().await;
        let service = disk
            .service(&databases, &[("ROCKET_SETTLE_TIMEOUT", "\"1s\"")])
            .await;
        assert_eq!(service.new_todo("before", "").await.status, 201);

        disk.order("fdatasync -wal stuck");
        let sent = Instant::now();
        let response = service.new_todo("late", "").await;
        assert_eq!(
            response.summary(),
            (500, Some("unknown")),
            "{}",
            response.body
        );
        assert!(sent.elapsed() < Duration::from_secs(5));

        disk.mend();
        let response = service.new_todo("after", "").await;
        assert_eq!(
            response.summary(),
            (201, Some("committed")),
            "{}",
            response.body
        );
        assert_eq!(
            databases.texts(In::Main, TITLES).await,
            ["after", "before", "late"]
        );
        service.stop().await;
    }

    /// The kernel reports a failed sync only once, so a later sync that succeeds proves nothing.
    #[rocket::async_test]
    async fn a_failed_sync_is_unknown_and_nothing_is_written_before_a_check() {
        let (databases, disk) = databases().await;
        let service = disk.service(&databases, &[]).await;
        assert_eq!(service.new_todo("before", "").await.status, 201);

        disk.order("fdatasync main.db-wal eio");
        let response = service.new_todo("failed", "").await;
        assert_eq!(
            response.summary(),
            (500, Some("unknown")),
            "{}",
            response.body
        );
        assert!(response.body.contains("main"), "{}", response.body);
        assert!(!response.body.contains("audit"), "{}", response.body);
        // The disk still fails, so nothing is begun.
        for _ in 0..3 {
            let response = service.new_todo("refused", "").await;
            assert_eq!(
                response.summary(),
                (503, Some("rolled-back")),
                "{}",
                response.body
            );
        }
        // Reads still work.
        assert_eq!(service.get("/todos").await.status, 200);

        disk.mend();
        let response = service.new_todo("after", "").await;
        assert_eq!(
            response.summary(),
            (201, Some("committed")),
            "{}",
            response.body
        );
        assert!(service.log().contains("was checked"), "{}", service.log());
        assert_eq!(
            databases.texts(In::Main, TITLES).await,
            ["after", "before", "failed"]
        );
        service.stop().await;
    }

    /// When SQLite restarts its write-ahead log, it syncs the new header, within COMMIT. Here this
    /// sync fails.
    #[rocket::async_test]
    async fn a_disk_that_fails_within_commit_is_unknown() {
        for synchronous in ["normal", "full"] {
            let (databases, disk) = databases().await;
            let settings = databases
                .variable_with(&format!("max_connections=8,synchronous=\"{synchronous}\""));
            let service = disk
                .service(&databases, &[("ROCKET_DATABASES", &settings)])
                .await;
            assert_eq!(service.new_todo("before", "").await.status, 201);
            databases
                .execute(In::Main, "PRAGMA wal_checkpoint(RESTART)")
                .await;
            disk.order("fsync main.db-wal eio");
            let response = service.new_todo("failed", "").await;
            assert_eq!(
                response.summary(),
                (500, Some("unknown")),
                "{synchronous}: {}",
                response.body
            );
            disk.mend();
            let response = service.new_todo("after", "").await;
            assert_eq!(
                response.summary(),
                (201, Some("committed")),
                "{}",
                response.body
            );
            service.stop().await;
        }
    }

    #[rocket::async_test]
    async fn without_synchronous_full_no_request_waits_for_a_sync() {
        for synchronous in ["normal", "off"] {
            let (databases, disk) = databases().await;
            let settings = databases
                .variable_with(&format!("max_connections=8,synchronous=\"{synchronous}\""));
            let service = disk
                .service(&databases, &[("ROCKET_DATABASES", &settings)])
                .await;
            disk.order("fdatasync -wal stuck");
            let response = service.new_todo("at once", "").await;
            assert_eq!(
                response.summary(),
                (201, Some("committed")),
                "{}",
                response.body
            );
            disk.mend();
            service.stop().await;
        }
    }
}
