//! The content of a disk after a power cut, within the guarantees of POSIX.
//!
//! | change before the cut | after the cut |
//! | --- | --- |
//! | a change before a sync of its file that has returned | is kept |
//! | any other write | each sector is kept, torn or lost, independently of later writes |
//! | any other resize | is kept or lost; a part by which a file has grown may hold zeros or junk |
//! | a file name created or removed before a sync of the folder that has returned | is kept |
//! | any other file name | is in any state that it had since the last sync of the folder |
//!
//! Each name is kept or lost independently of other names, and the sync of a file does not sync its
//! name.
//!
//! One effect is deliberately not simulated: a write never damages bytes outside of it. SQLite
//! relies on that by default (`SQLITE_POWERSAFE_OVERWRITE`), and disks comply.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;

use fastrand::Rng;

use super::kept::Kept;
use super::log::{self, Log};

/// The state of the files at a position of the log. The position can only increase.
pub struct Disk<'l> {
    log: &'l Log,
    /// The index of the next record to apply.
    next: usize,
    files: Vec<File>,
    /// The current file of each inode. The kernel reuses the inode number of a deleted file.
    by_inode: HashMap<u64, usize>,
    names: BTreeMap<String, Name>,
}

#[derive(Default)]
struct File {
    durable: Vec<u8>,
    pending: VecDeque<Pending>,
    /// The length that the process sees.
    length: usize,
}

struct Pending {
    position: u64,
    change: Change,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, data: Range<usize> },
    Resize(usize),
}

#[derive(Default)]
struct Name {
    durable: Option<usize>,
    pending: Vec<(u64, Option<usize>)>,
}

impl<'l> Disk<'l> {
    /// Returns the state before the first record. The files in `before` are durable.
    pub fn new(log: &'l Log, before: &BTreeMap<String, (u64, Vec<u8>)>) -> Self {
        let mut disk = Self {
            log,
            next: 0,
            files: Vec::new(),
            by_inode: HashMap::new(),
            names: BTreeMap::new(),
        };
        for (name, (inode, content)) in before {
            let file = disk.file_of(*inode);
            disk.files[file].length = content.len();
            disk.files[file].durable.clone_from(content);
            disk.names.entry(name.clone()).or_default().durable = Some(file);
        }
        disk
    }

    /// Applies all records that end at `position` or before.
    pub fn advance(&mut self, position: u64) {
        while let Some(record) = self.log.records.get(self.next) {
            if record.end > position {
                break;
            }
            self.apply(record.position, &record.change);
            self.next += 1;
        }
    }

    fn file_of(&mut self, inode: u64) -> usize {
        self.files.push(File::default());
        self.by_inode.insert(inode, self.files.len() - 1);
        self.files.len() - 1
    }

    fn known(&mut self, inode: u64) -> &mut File {
        let file = self.by_inode.get(&inode);
        &mut self.files[*file.expect("the creation of the file was recorded")]
    }

    fn apply(&mut self, position: u64, change: &log::Change) {
        match change {
            log::Change::Created { inode, name } => {
                let file = self.file_of(*inode);
                let name = self.names.entry(name.clone()).or_default();
                name.pending.push((position, Some(file)));
            }
            log::Change::Unlinked { name } => {
                let name = self.names.get_mut(name).expect("the name exists");
                name.pending.push((position, None));
            }
            log::Change::FolderSynced { since } => {
                for name in self.names.values_mut() {
                    name.settle(*since);
                }
            }
            log::Change::Wrote {
                inode,
                offset,
                data,
            } => {
                let offset = usize::try_from(*offset).unwrap();
                let file = self.known(*inode);
                file.length = file.length.max(offset + data.len());
                let data = data.clone();
                let change = Change::Write { offset, data };
                file.pending.push_back(Pending { position, change });
            }
            log::Change::Resized { inode, length } => {
                let length = usize::try_from(*length).unwrap();
                let file = self.known(*inode);
                file.length = length;
                let change = Change::Resize(length);
                file.pending.push_back(Pending { position, change });
            }
            log::Change::Synced { inode, since } => {
                let log = self.log;
                self.known(*inode).settle(*since, log);
            }
            log::Change::Syncing => {}
        }
    }

    /// Returns all files as the process sees them, without a power cut.
    pub fn seen(&self) -> BTreeMap<String, Vec<u8>> {
        let files = self.names.iter().filter_map(|(name, entry)| {
            let file = &self.files[entry.last()?];
            let content = file.after(&Kept::Everything, self.log, &mut Rng::with_seed(0), false);
            Some((name.clone(), content))
        });
        files.collect()
    }

    /// Returns all files as they may be after a power cut at this position, and a description of
    /// the random choices.
    pub fn cut(&self, rng: &mut Rng) -> (BTreeMap<String, Vec<u8>>, String) {
        let mut files = BTreeMap::new();
        let mut story = String::new();
        for (name, entry) in &self.names {
            let Some(file) = entry.drawn(rng) else {
                continue;
            };
            let file = &self.files[file];
            let kept = Kept::drawn(file.pending.len(), rng);
            let junk = rng.u8(..8) == 0;
            let mut content = file.after(&kept, self.log, rng, junk);
            let had = content.len();
            match rng.u8(..4) {
                // The new length is kept, but the data may be lost.
                0 => grow(&mut content, file.length, rng, junk),
                // The old length is kept, so data after it is lost.
                1 if !file.pending.is_empty() && content.len() > file.durable.len() => {
                    content.truncate(file.durable.len());
                }
                _ => {}
            }
            let pending = file.pending.len();
            story += &format!(
                "{name}: {} bytes durable, {pending} changes pending, {kept:?}, {had} and then {} bytes; ",
                file.durable.len(),
                content.len(),
            );
            files.insert(name.clone(), content);
        }
        (files, story)
    }
}

impl Name {
    fn settle(&mut self, since: u64) {
        let settled = self.pending.partition_point(|(at, _)| *at < since);
        if let Some((_, file)) = self.pending.drain(..settled).next_back() {
            self.durable = file;
        }
    }

    fn last(&self) -> Option<usize> {
        self.pending.last().map_or(self.durable, |(_, file)| *file)
    }

    /// Returns the file that the name refers to after a power cut.
    fn drawn(&self, rng: &mut Rng) -> Option<usize> {
        let changes = self.pending.len();
        let kept = match rng.u8(..3) {
            0 => 0,
            1 => changes,
            _ => rng.usize(..=changes),
        };
        match kept {
            0 => self.durable,
            kept => self.pending[kept - 1].1,
        }
    }
}

impl File {
    /// Makes all changes before `since` durable.
    fn settle(&mut self, since: u64, log: &Log) {
        while self.pending.front().is_some_and(|it| it.position < since) {
            let Some(Pending { change, .. }) = self.pending.pop_front() else {
                break;
            };
            put(&mut self.durable, &change, log);
        }
    }

    /// Returns the durable content with those pending changes that are kept.
    fn after(&self, kept: &Kept, log: &Log, rng: &mut Rng, junk: bool) -> Vec<u8> {
        let mut content = self.durable.clone();
        for (index, Pending { change, .. }) in self.pending.iter().enumerate() {
            match change {
                Change::Resize(_) => {
                    if kept.has(index, self.pending.len(), rng) {
                        put(&mut content, change, log);
                    }
                }
                Change::Write { offset, data } => {
                    for (from, data) in kept.of_write(index, self.pending.len(), *offset, data, rng)
                    {
                        grow(&mut content, from, rng, junk);
                        let change = Change::Write { offset: from, data };
                        put(&mut content, &change, log);
                    }
                }
            }
        }
        content
    }
}

/// Extends the content with zeros, or with junk, as it may be left on a disk from another file.
fn grow(content: &mut Vec<u8>, length: usize, rng: &mut Rng, junk: bool) {
    let old = content.len();
    if length > old {
        content.resize(length, 0);
        if junk {
            rng.fill(&mut content[old..]);
        }
    }
}

fn put(content: &mut Vec<u8>, change: &Change, log: &Log) {
    match change {
        Change::Write { offset, data } => {
            let end = offset + data.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[*offset..end].copy_from_slice(log.data(data));
        }
        Change::Resize(length) => content.resize(*length, 0),
    }
}
