//! Power cuts: afterwards no acknowledged row is missing, and no file is corrupt.
//!
//! The reference service runs under load, as a process with a preloaded library
//! (`power/recorder.c`). The library logs each write, resize and sync of the SQLite files, and each
//! file name that is created or removed. A power cut is a position in that log. The simulator
//! (`power/disk.rs`) rebuilds the files as a disk may hold them at that position: with everything
//! that was synced, and any part of the rest. Then SQLite opens the files.
//!
//! A row counts as acknowledged at a position of the log if the client had read the response before
//! the log grew past that position.
//!
//! `tests/run power` makes a few hundred cuts. The long form takes some minutes:
//!
//! ```text
//! POWER_CUTS=10000 POWER_REQUESTS=6000 tests/run power::sqlite
//! ```
//!
//! `POWER_SEED` changes the load and the cuts. A run that fails keeps its recording, and prints the
//! variables `POWER_RECORDING` and `POWER_CUT` that repeat one of its cuts exactly:
//!
//! ```text
//! POWER_RECORDING=/dev/shm/.tmpXXXXXX POWER_CUT=6091401:12212 tests/run power::sqlite::a_power_cut
//! ```
//!
//! The load includes checkpoints, a WAL that restarts from its beginning, a WAL that is removed and
//! created again while a process runs, two concurrent processes, a process that syncs nothing, a
//! kill, and restarts. One request in seven is rolled back. After each cut the test checks:
//!
//! - `PRAGMA integrity_check` reports no error.
//! - The rows are the first of those that are stored at the end, without a gap. Therefore no
//!   rolled-back row is present.
//! - All acknowledged rows are present.

mod cut;
mod disk;
mod kept;
mod log;
mod model;
mod recording;

use tempfile::TempDir;

use self::recording::{Load, Recording};

/// Returns a temporary folder, in memory if possible: the images of thousands of cuts are written
/// to it.
fn scratch() -> TempDir {
    match std::path::Path::new("/dev/shm").is_dir() {
        true => tempfile::tempdir_in("/dev/shm").unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

fn setting<T: std::str::FromStr<Err: std::fmt::Debug>>(name: &str, default: T) -> T {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Records a load, or reads a kept recording, and runs the cuts on it.
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
    assert!(wals >= 8, "the load began a WAL only {wals} times");
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

    /// If no row were lost here either, the simulator would prove nothing.
    #[rocket::async_test]
    async fn with_normal_the_same_cuts_lose_acknowledged_rows() {
        let (_, report) = super::cut("normal").await;
        assert!(report.lost > 0, "{report}");
        // According to SQLite's manual, NORMAL can lose commits but does not corrupt a database.
        assert_eq!(report.corrupt, 0, "{}", report.failures.join("\n"));
    }
}
