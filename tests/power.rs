//! Power cuts: no row that was acknowledged is gone afterwards, and no file is broken.
//!
//! The reference service runs as a process, under a load, with a library before libc that records
//! each write, change of length, sync, and name of its SQLite files (`power/recorder.c`). A cut is a
//! position of that log. The files are rebuilt as a disk may hold them then (`power/disk.rs`): with
//! all that was synced, and any part of the rest. Then SQLite opens them.
//!
//! A row is acknowledged at a position if its answer had been read when the log was no longer than
//! that.
//!
//! `tests/run power` makes a few hundred cuts. The long form takes some minutes:
//!
//! ```text
//! POWER_CUTS=10000 POWER_REQUESTS=6000 tests/run power::sqlite
//! ```
//!
//! `POWER_SEED` draws load and cuts differently. A run that fails keeps its recording, and says by
//! which variables (`POWER_RECORDING`, `POWER_CUT`) one of its cuts can be made again, exactly:
//!
//! ```text
//! POWER_RECORDING=/dev/shm/.tmpXXXXXX POWER_CUT=6091401:12212 tests/run power::sqlite::a_power_cut
//! ```
//!
//! The load passes checkpoints, a log that begins anew, one that is removed and made again under a
//! running process, two processes at once, a process that syncs nothing, a kill, and restarts; one
//! request in seven is rolled back. What is checked after a cut: `PRAGMA integrity_check`; the rows
//! are the first of those stored in the end, without a gap, so that nothing is there that was rolled
//! back; and every acknowledged one is among them.

mod cut;
mod disk;
mod kept;
mod log;
mod model;
mod recording;

use tempfile::TempDir;

use self::recording::{Load, Recording};

/// In memory, where there is such a folder: the images of thousands of cuts are written there.
fn scratch() -> TempDir {
    match std::path::Path::new("/dev/shm").is_dir() {
        true => tempfile::tempdir_in("/dev/shm").unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

fn setting<T: std::str::FromStr<Err: std::fmt::Debug>>(name: &str, usual: T) -> T {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

/// Records a load, or reads one that was kept, and cuts it.
async fn cut(synchronous: &'static str) -> (Recording, cut::Report) {
    let seed = setting("POWER_SEED", 1);
    let recording = match std::env::var_os("POWER_RECORDING") {
        Some(path) => Recording::read(path.as_ref()),
        None => {
            let requests = setting("POWER_REQUESTS", 1_200);
            let load = Load {
                seed,
                requests,
                synchronous,
            };
            load.record().await
        }
    };
    cut::check_recorder(&recording);
    let wals = recording.log.wals();
    assert!(wals >= 8, "the load passed {wals} beginnings of a log only");
    let cuts = match std::env::var("POWER_CUT") {
        Ok(one) => vec![one.parse().unwrap()],
        Err(_) => cut::drawn(&recording, setting("POWER_CUTS", 250), seed),
    };
    let report = cut::run(&recording, cuts).await;
    println!(
        "synchronous={synchronous}, POWER_SEED={seed}, {} records, {wals} WALs, {} acknowledged: {report}",
        recording.log.records.len(),
        recording.history.acknowledged.len(),
    );
    (recording, report)
}

mod sqlite {
    #[rocket::async_test]
    async fn a_power_cut_loses_nothing_that_was_acknowledged() {
        let (mut recording, report) = super::cut("full").await;
        if !report.failures.is_empty() {
            recording.keep();
            panic!(
                "{report}\nPOWER_RECORDING={}\n{}",
                recording.path.display(),
                report.failures.join("\n")
            );
        }
    }

    /// Or the simulator would prove nothing.
    #[rocket::async_test]
    async fn with_normal_the_same_cuts_lose_acknowledged_rows() {
        let (_, report) = super::cut("normal").await;
        assert!(report.lost > 0, "{report}");
        // SQLite says that nothing else is at stake.
        assert_eq!(report.corrupt, 0, "{}", report.failures.join("\n"));
    }
}
