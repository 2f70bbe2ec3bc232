//! Tests of the simulator's disk: which data it keeps and which it may lose.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::disk::Disk;
use super::log::Log;

const CREATED: u32 = 1;
const WROTE: u32 = 2;
const RESIZED: u32 = 3;
const SYNCING: u32 = 4;
const SYNCED: u32 = 5;
const UNLINKED: u32 = 6;
const FOLDER_SYNCING: u32 = 7;
const FOLDER_SYNCED: u32 = 8;

/// A log of one file, written by the test.
#[derive(Default)]
struct Written(Vec<u8>);

impl Written {
    /// Appends a record, and returns its position.
    fn add(&mut self, kind: u32, number: u64, payload: &[u8]) -> u64 {
        let position = self.0.len() as u64;
        self.0.extend(b"POWR");
        self.0.extend(kind.to_le_bytes());
        self.0.extend(7_u64.to_le_bytes());
        self.0.extend(number.to_le_bytes());
        self.0
            .extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
        self.0.extend(1_u32.to_le_bytes());
        self.0.extend(payload);
        position
    }

    fn sync(&mut self, begins: u32, ends: u32) {
        let since = self.add(begins, 0, &[]);
        self.add(ends, since, &[]);
    }

    /// Returns a log with a durable file `a.db` of two sectors.
    fn with_a_file() -> Self {
        let mut log = Self::default();
        log.add(CREATED, 0, b"a.db");
        log.sync(FOLDER_SYNCING, FOLDER_SYNCED);
        log.add(WROTE, 0, &[1; 1024]);
        log.sync(SYNCING, SYNCED);
        log
    }

    /// Returns every content that `a.db` may have after a power cut.
    fn left(self) -> BTreeSet<Option<Vec<u8>>> {
        let end = self.0.len() as u64;
        let log = Log::of(self.0);
        let mut disk = Disk::new(&log, &BTreeMap::new());
        disk.advance(end);
        let cuts = (0..2_000).map(|seed| disk.cut(&mut Rng::with_seed(seed)).0.remove("a.db"));
        cuts.collect()
    }
}

fn sectors(first: u8, second: u8) -> Option<Vec<u8>> {
    Some([[first; 512], [second; 512]].concat())
}

#[test]
fn synced_data_is_kept() {
    let left = Written::with_a_file().left();
    assert_eq!(left, BTreeSet::from([sectors(1, 1)]));
}

#[test]
fn any_part_of_unsynced_data_may_be_kept() {
    let mut log = Written::with_a_file();
    log.add(WROTE, 0, &[2; 512]);
    log.add(WROTE, 512, &[3; 512]);
    let left = log.left();
    for expected in [sectors(1, 1), sectors(2, 1), sectors(1, 3), sectors(2, 3)] {
        assert!(left.contains(&expected));
    }
    let is_torn = |content: &Option<Vec<u8>>| {
        let content = content.as_deref().unwrap();
        content[..512].contains(&1) && content[..512].contains(&2)
    };
    assert!(left.iter().any(is_torn));
    // Each byte has a value that was once written there.
    let is_known = |content: &Option<Vec<u8>>| {
        let content = content.as_deref().unwrap();
        content.len() == 1024
            && content[..512].iter().all(|byte| matches!(byte, 1 | 2))
            && content[512..].iter().all(|byte| matches!(byte, 1 | 3))
    };
    assert!(left.iter().all(is_known));
}

#[test]
fn a_sync_covers_writes_before_it_began() {
    let mut log = Written::with_a_file();
    log.add(WROTE, 0, &[2; 512]);
    let since = log.add(SYNCING, 0, &[]);
    log.add(WROTE, 512, &[3; 512]);
    log.add(SYNCED, since, &[]);
    let left = log.left();
    assert!(left.contains(&sectors(2, 1)) && left.contains(&sectors(2, 3)));
    let keeps_the_first = |content: &Option<Vec<u8>>| content.as_ref().unwrap()[..512] == [2; 512];
    assert!(left.iter().all(keeps_the_first));
}

#[test]
fn a_sync_that_has_not_returned_guarantees_nothing() {
    let mut log = Written::with_a_file();
    log.add(WROTE, 0, &[2; 1024]);
    log.add(SYNCING, 0, &[]);
    assert!(log.left().contains(&sectors(1, 1)));
}

#[test]
fn a_length_is_the_old_or_the_new_one() {
    let mut log = Written::with_a_file();
    log.add(RESIZED, 512, &[]);
    let lengths = log.left().into_iter().map(|content| content.unwrap().len());
    assert_eq!(
        lengths.collect::<BTreeSet<_>>(),
        BTreeSet::from([512, 1024])
    );
}

#[test]
fn a_name_is_durable_only_after_a_sync_of_the_folder() {
    let mut log = Written::default();
    log.add(CREATED, 0, b"a.db");
    log.add(WROTE, 0, &[1; 1024]);
    log.sync(SYNCING, SYNCED);
    assert_eq!(log.left(), BTreeSet::from([None, sectors(1, 1)]));

    let mut log = Written::with_a_file();
    log.add(UNLINKED, 0, b"a.db");
    assert_eq!(log.left(), BTreeSet::from([None, sectors(1, 1)]));

    let mut log = Written::with_a_file();
    log.add(UNLINKED, 0, b"a.db");
    log.sync(FOLDER_SYNCING, FOLDER_SYNCED);
    assert_eq!(log.left(), BTreeSet::from([None]));
}
