//! Power cuts: when they happen, which data is left, and whether it contains everything that was
//! acknowledged.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use fastrand::Rng;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::disk::Disk;
use super::log::Change;
use super::recording::{History, ROWS, Recording};

/// How many images are checked concurrently.
const AT_ONCE: usize = 4;

/// A power cut.
#[derive(Clone, Copy)]
pub struct Cut {
    /// The length of the log at the time of the cut.
    position: u64,
    /// The seed of the random choice of the data that the disk keeps.
    salt: u64,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.position, self.salt)
    }
}

impl FromStr for Cut {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (position, salt) = text.split_once(':').unwrap_or((text, "0"));
        Ok(Self {
            position: position.parse()?,
            salt: salt.parse()?,
        })
    }
}

/// The damage that a cut has done to a database.
enum Harm {
    /// The number of acknowledged rows that are missing.
    Lost(usize),
    /// The database cannot be read, or holds a row that was never stored.
    Corrupt(String),
}

/// The results of several cuts.
#[derive(Default)]
pub struct Report {
    pub cuts: usize,
    /// Acknowledged rows that had to be present, summed over all cuts.
    pub acknowledged: usize,
    /// Acknowledged rows that were missing, summed over all cuts.
    pub lost: usize,
    /// Cuts after which a row was missing.
    pub losing: usize,
    /// Databases that were corrupt after a cut.
    pub corrupt: usize,
    /// Descriptions of the first few failures.
    pub failures: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cuts, {} acknowledged rows checked, {} lost by {} cuts, {} databases corrupt",
            self.cuts, self.acknowledged, self.lost, self.losing, self.corrupt
        )
    }
}

/// Draws cuts at random: at any record, at the moment of a response, and near rare records.
pub fn drawn(recording: &Recording, count: usize, seed: u64) -> Vec<Cut> {
    let records = &recording.log.records;
    let acknowledged = &recording.history.acknowledged;
    let rare: Vec<usize> = (0..records.len())
        .filter(|index| {
            !matches!(
                records[*index].change,
                Change::Wrote { .. } | Change::Syncing
            )
        })
        .collect();
    let mut rng = Rng::with_seed(seed);
    let cuts = (0..count).map(|_| {
        let position = match rng.u8(..4) {
            0 => acknowledged[rng.usize(..acknowledged.len())].position,
            1 => {
                let near = rare[rng.usize(..rare.len())] + rng.usize(..6);
                records[near.saturating_sub(4).min(records.len() - 1)].end
            }
            _ => records[rng.usize(..records.len())].end,
        };
        let salt = rng.u64(..);
        Cut { position, salt }
    });
    cuts.collect()
}

/// Runs all cuts, and checks the files after each.
pub async fn run(recording: &Recording, mut cuts: Vec<Cut>) -> Report {
    cuts.sort_by_key(|cut| cut.position);
    let history = Arc::new(Promised::of(&recording.history));
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut disk = Disk::new(&recording.log, &recording.before);
    let mut checks = JoinSet::new();
    let mut report = Report::default();
    for cut in cuts {
        disk.advance(cut.position);
        let (files, story) = disk.cut(&mut Rng::with_seed(cut.salt));
        let permit = Arc::clone(&permits).acquire_owned().await.unwrap();
        let history = Arc::clone(&history);
        checks.spawn(async move {
            let harm = history.check(cut, &files).await;
            drop(permit);
            (cut, harm, history.required(cut), story)
        });
        while let Some(checked) = checks.try_join_next() {
            report.add(checked.unwrap());
        }
    }
    while let Some(checked) = checks.join_next().await {
        report.add(checked.unwrap());
    }
    report
}

/// Checks that without a cut the simulator's files equal those that were in the folder.
pub fn check_recorder(recording: &Recording) {
    let mut disk = Disk::new(&recording.log, &recording.before);
    for (position, files) in &recording.seen {
        disk.advance(*position);
        let seen = disk.seen();
        let names = |files: &BTreeMap<String, Vec<u8>>| {
            let names = files
                .iter()
                .map(|(name, content)| (name.clone(), content.len()));
            names.collect::<Vec<_>>()
        };
        assert_eq!(names(&seen), names(files), "at {position}");
        assert!(
            seen == *files,
            "the recorder missed a write before {position}"
        );
    }
}

impl Report {
    fn add(&mut self, checked: (Cut, [Option<Harm>; 2], [usize; 2], String)) {
        let (cut, harm, required, story) = checked;
        self.cuts += 1;
        self.acknowledged += required.iter().sum::<usize>();
        let mut loses = false;
        for (harm, (name, ..)) in harm.into_iter().zip(ROWS) {
            let damage = match harm {
                None => continue,
                Some(Harm::Lost(rows)) => {
                    loses = true;
                    self.lost += rows;
                    format!("{rows} acknowledged rows are lost")
                }
                Some(Harm::Corrupt(why)) => {
                    self.corrupt += 1;
                    why
                }
            };
            if self.failures.len() < 10 {
                self.failures
                    .push(format!("POWER_CUT={cut} {name}: {damage} ({story})"));
            }
        }
        self.losing += usize::from(loses);
    }
}

/// The rows that must be stored, and from which position on.
struct Promised {
    stored: [String; 2],
    /// Positions, each with the number of rows that must be stored from there on.
    from: Vec<(u64, [usize; 2])>,
}

impl Promised {
    fn of(history: &History) -> Self {
        let mut most = [0; 2];
        let from = history.acknowledged.iter().map(|one| {
            for (most, row) in most.iter_mut().zip(one.rows) {
                *most = row.max(*most);
            }
            (one.position, most)
        });
        let from = from.collect();
        let stored = history.stored.clone();
        Self { stored, from }
    }

    /// Returns how many rows must be stored. Ids have no gaps, so all rows before an acknowledged
    /// row must be stored too.
    fn required(&self, cut: Cut) -> [usize; 2] {
        let passed = self.from.partition_point(|(at, _)| *at <= cut.position);
        passed
            .checked_sub(1)
            .map_or([0; 2], |last| self.from[last].1)
    }

    async fn check(&self, cut: Cut, files: &BTreeMap<String, Vec<u8>>) -> [Option<Harm>; 2] {
        let folder = super::scratch();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let mut harm = [None, None];
        for (index, (name, table, rows)) in ROWS.into_iter().enumerate() {
            let found = match files.get(name).is_none_or(Vec::is_empty) {
                true => Ok(String::new()),
                false => read(&folder.path().join(name), table, rows).await,
            };
            harm[index] = self.harm(index, found, self.required(cut)[index]);
        }
        harm
    }

    fn harm(&self, index: usize, found: Result<String, String>, required: usize) -> Option<Harm> {
        let found = match found {
            Ok(found) => found,
            Err(why) => return Some(Harm::Corrupt(why)),
        };
        let stored = &self.stored[index];
        let is_a_prefix = match stored.strip_prefix(&found) {
            Some(rest) => found.is_empty() || rest.is_empty() || rest.starts_with('\n'),
            None => false,
        };
        if !is_a_prefix {
            let common = found.lines().zip(stored.lines());
            let common = common.take_while(|(one, other)| one == other).count();
            let first = found.lines().nth(common).unwrap_or_default();
            return Some(Harm::Corrupt(format!(
                "after {common} rows, the database holds {first:?}, which was never stored there"
            )));
        }
        match required.saturating_sub(found.lines().count()) {
            0 => None,
            lost => Some(Harm::Lost(lost)),
        }
    }
}

/// Opens the database after the cut, as the next process would, and reads all rows.
async fn read(path: &Path, table: &str, rows: &'static str) -> Result<String, String> {
    let mut connection = SqliteConnectOptions::new()
        .filename(path)
        .connect()
        .await
        .map_err(|error| format!("the database cannot be opened: {error}"))?;
    let found = rows_of(&mut connection, table, rows).await;
    let _ = connection.close().await;
    found.map_err(|error| format!("the database cannot be read: {error}"))
}

async fn rows_of(
    connection: &mut SqliteConnection,
    table: &str,
    rows: &'static str,
) -> Result<String, sqlx::Error> {
    let check: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_all(&mut *connection)
        .await?;
    if check != ["ok"] {
        return Err(sqlx::Error::Protocol(check.join("; ")));
    }
    let exists: bool = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE name = $1")
        .bind(table)
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(String::new());
    }
    let found: Option<String> = sqlx::query_scalar(rows).fetch_one(connection).await?;
    Ok(found.unwrap_or_default())
}
