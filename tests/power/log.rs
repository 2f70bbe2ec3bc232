//! The log of `recorder.c`: every change to the database files, in order.

use std::ops::Range;
use std::path::Path;

const HEADER: usize = 32;
const MAGIC: u32 = u32::from_le_bytes(*b"POWR");

/// The log of one recording.
pub struct Log {
    bytes: Vec<u8>,
    pub records: Vec<Record>,
}

pub struct Record {
    /// Where the record begins in the log. `Synced` refers to the record `Syncing` by its position.
    pub position: u64,
    /// Where the record ends. A client that reads the length of the log after its response knows
    /// which records were written before.
    pub end: u64,
    pub change: Change,
}

/// A recorded change. `recorder.c` numbers the kinds in this order, with a kind of its own for the
/// beginning of a folder sync.
#[derive(Debug, Clone)]
pub enum Change {
    Created {
        inode: u64,
        name: String,
    },
    Wrote {
        inode: u64,
        offset: u64,
        data: Range<usize>,
    },
    Resized {
        inode: u64,
        length: u64,
    },
    Syncing,
    /// All changes to this file that were recorded before `since` are durable.
    Synced {
        inode: u64,
        since: u64,
    },
    Unlinked {
        name: String,
    },
    /// All names that were created or removed before `since` are durable.
    FolderSynced {
        since: u64,
    },
}

impl Log {
    /// # Panics
    ///
    /// If the process did something that the simulator has no model for.
    pub fn read(path: &Path) -> Self {
        Self::of(std::fs::read(path).unwrap())
    }

    pub fn of(bytes: Vec<u8>) -> Self {
        let mut records = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let word =
                |from: usize| u32::from_le_bytes(bytes[at + from..][..4].try_into().unwrap());
            let long =
                |from: usize| u64::from_le_bytes(bytes[at + from..][..8].try_into().unwrap());
            assert_eq!(word(0), MAGIC, "the log is broken at {at}");
            let (kind, inode, number) = (word(4), long(8), long(16));
            let data = at + HEADER..at + HEADER + word(24) as usize;
            let text = || String::from_utf8(bytes[data.clone()].to_vec()).unwrap();
            let change = match kind {
                1 => Change::Created {
                    inode,
                    name: text(),
                },
                2 => Change::Wrote {
                    inode,
                    offset: number,
                    data: data.clone(),
                },
                3 => Change::Resized {
                    inode,
                    length: number,
                },
                4 | 7 => Change::Syncing,
                5 => Change::Synced {
                    inode,
                    since: number,
                },
                6 => Change::Unlinked { name: text() },
                8 => Change::FolderSynced { since: number },
                9 => panic!("the simulator has no model for {}", text()),
                _ => panic!("unknown kind {kind} at {at}"),
            };
            let end = data.end;
            records.push(Record {
                position: at as u64,
                end: end as u64,
                change,
            });
            at = end;
        }
        Self { bytes, records }
    }

    /// Returns how often a WAL was begun: in a new file, or from its start after a checkpoint.
    pub fn wals(&self) -> usize {
        let is_header = |data: &[u8]| data.len() == 32 && data.starts_with(&[0x37, 0x7f, 0x06]);
        let begins = |change: &Change| match change {
            Change::Wrote {
                offset: 0, data, ..
            } => is_header(self.data(data)),
            _ => false,
        };
        let records = self.records.iter();
        records.filter(|record| begins(&record.change)).count()
    }

    pub fn data(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }
}
