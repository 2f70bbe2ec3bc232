//! Measures what it costs that SQLite's commits survive a power cut.
//!
//!     cargo bench --bench durability
//!     cargo bench --bench durability -- rounds=20
//!
//! Sixteen clients write one row per transaction, without HTTP: only the cost of the commits is
//! compared. There are three ways to commit. Each *slice* runs one way for two seconds, in a
//! separate process with a new file in the target directory. Each round runs all ways, in a
//! different order than the round before. The result is the ratio of two ways within a round: the
//! median of all rounds is printed, with minimum and maximum. The second half repeats this on a
//! disk whose syncs take 2 ms longer. A preloaded library simulates this disk: it wraps `fsync` and
//! `fdatasync`.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rocket::figment::Figment;
use rocket_db_pools::Pool;
use rocket_tx::db::{BeginOptions, SqlitePool, TransactionPool};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Executor};

const CLIENTS: usize = 16;
const SLICE: Duration = Duration::from_secs(2);
const DELAY: Duration = Duration::from_millis(2);

const INSERT: &str = "INSERT INTO written (text) VALUES ($1)";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The library's default: a commit waits for a sync that many commits share.
    Full,
    /// The library with `synchronous = "normal"`: a commit does not wait for the disk.
    Normal,
    /// Without the library: a sqlx pool of one connection, on which SQLite syncs at each commit.
    ByHand,
}

const WAYS: [(Way, &str); 3] = [
    (Way::Full, "full"),
    (Way::Normal, "normal"),
    (Way::ByHand, "hand"),
];

struct Slice {
    per_second: f64,
    p50: f64,
    p99: f64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    if let [run, way, file] = &arguments[..]
        && run == "run"
    {
        let way = WAYS.iter().find(|(_, name)| name == way).unwrap().0;
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let slice = runtime.block_on(write(way, Path::new(file)));
        println!("{} {} {}", slice.per_second, slice.p50, slice.p99);
        return ExitCode::SUCCESS;
    }
    let mut rounds = 7;
    for argument in &arguments {
        match argument.strip_prefix("rounds=") {
            Some(number) => rounds = number.parse().expect("rounds= takes a number"),
            None => {
                eprintln!("unknown argument: {argument}; use rounds=NUMBER");
                return ExitCode::FAILURE;
            }
        }
    }
    println!(
        "a sync of one page takes {:.2} ms here (median of 200)",
        sync_takes()
    );
    measure(
        rounds,
        None,
        &[("full / normal", 1, 0.85), ("full / by hand", 2, 2.0)],
    );
    measure(rounds, Some(&slow_disk()), &[("full / by hand", 2, 6.0)]);
    ExitCode::SUCCESS
}

fn measure(rounds: usize, slow_disk: Option<&Path>, bounds: &[(&str, usize, f64)]) {
    let mut slices: [Vec<Slice>; 3] = Default::default();
    // The first round is a warm-up and is not counted.
    for round in 0..=rounds {
        for turn in 0..WAYS.len() {
            let way = (turn + round) % WAYS.len();
            let slice = slice(WAYS[way].1, slow_disk);
            if round > 0 {
                slices[way].push(slice);
            }
        }
    }
    let disk = match slow_disk {
        None => "this disk".to_owned(),
        Some(_) => format!("a disk that takes {DELAY:?} longer to sync"),
    };
    println!("\n{disk}, {CLIENTS} clients, {rounds} rounds of {SLICE:?}");
    println!("{:<16}{:>12}{:>10}{:>10}", "way", "commits/s", "p50", "p99");
    for ((_, name), slices) in WAYS.iter().zip(&slices) {
        let rate = median(slices.iter().map(|slice| slice.per_second));
        let p50 = median(slices.iter().map(|slice| slice.p50));
        let p99 = median(slices.iter().map(|slice| slice.p99));
        println!("{name:<16}{rate:>12.0}{p50:>7.2} ms{p99:>7.2} ms");
    }
    for (name, other, bound) in bounds {
        ratio(name, &slices[0], &slices[*other], *bound);
    }
}

/// Runs one way in a separate process.
fn slice(way: &str, slow_disk: Option<&Path>) -> Slice {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["run", way])
        .arg(folder.path().join("bench.db"));
    if let Some(library) = slow_disk {
        command
            .env("LD_PRELOAD", library)
            .env("DISK_DELAY", DELAY.as_micros().to_string());
    }
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let output = String::from_utf8(output.stdout).unwrap();
    let mut numbers = output.split_whitespace().map(|word| word.parse().unwrap());
    let mut next = || numbers.next().unwrap();
    Slice {
        per_second: next(),
        p50: next(),
        p99: next(),
    }
}

async fn write(way: Way, file: &Path) -> Slice {
    let url = format!("sqlite:{}", file.display());
    let options: SqliteConnectOptions = url.parse().unwrap();
    let options = options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5));
    let mut connection = options.connect().await.unwrap();
    connection
        .execute("CREATE TABLE written (text TEXT NOT NULL)")
        .await
        .unwrap();
    connection.close().await.unwrap();
    let slice = match way {
        Way::Full | Way::Normal => {
            let figment = Figment::new()
                .merge(("url", url))
                .merge(("max_connections", 4))
                .merge(("connect_timeout", 5))
                .merge(("synchronous", WAYS[way as usize].1));
            let pool = SqlitePool::init(&figment).await.unwrap();
            let one = async |text: String| {
                let mut transaction = pool.open(BeginOptions::default()).await.unwrap();
                let insert = sqlx::query(INSERT).bind(text);
                insert.execute(transaction.connection()).await.unwrap();
                transaction.commit().await.unwrap();
            };
            load(&one).await
        }
        Way::ByHand => {
            // One connection: several connections would only wait for each other's locks.
            let pool = SqlitePoolOptions::new().max_connections(1);
            let pool = pool.connect_with(options.clone()).await.unwrap();
            let one = async |text: String| {
                let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
                let insert = sqlx::query(INSERT).bind(text);
                insert.execute(&mut *transaction).await.unwrap();
                transaction.commit().await.unwrap();
            };
            load(&one).await
        }
    };
    // Make sure that the benchmark has not measured failures.
    let mut connection = options.connect().await.unwrap();
    let stored: i64 = sqlx::query_scalar("SELECT count(*) FROM written")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(stored as u64, slice.0);
    slice.1
}

/// Runs all clients at the same time. Returns the number of commits and their durations.
async fn load(one: &impl AsyncFn(String)) -> (u64, Slice) {
    let started = Instant::now();
    let clients = (0..CLIENTS).map(async |client| {
        let mut micros = Histogram::<u64>::new(3).unwrap();
        while started.elapsed() < SLICE {
            let sent = Instant::now();
            one(format!("a row of client {client}")).await;
            micros
                .record(u64::try_from(sent.elapsed().as_micros()).unwrap())
                .unwrap();
        }
        micros
    });
    let mut all = Histogram::<u64>::new(3).unwrap();
    for micros in rocket::futures::future::join_all(clients).await {
        all.add(micros).unwrap();
    }
    let millis = |quantile| all.value_at_quantile(quantile) as f64 / 1_000.0;
    let slice = Slice {
        per_second: all.len() as f64 / started.elapsed().as_secs_f64(),
        p50: millis(0.5),
        p99: millis(0.99),
    };
    (all.len(), slice)
}

/// Returns the milliseconds that one `fdatasync` takes after one page was appended to a file, as a
/// commit appends to the log.
fn sync_takes() -> f64 {
    let mut file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let synced = (0..200).map(|_| {
        file.write_all(&[1; 4_096]).unwrap();
        let started = Instant::now();
        file.sync_data().unwrap();
        started.elapsed().as_secs_f64() * 1_000.0
    });
    median(synced)
}

/// Compiles the library that delays syncs.
fn slow_disk() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/durability/disk.c");
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("slow-disk.so");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status()
        .expect("there is no C compiler (cc)");
    assert!(compiled.success());
    library
}

fn ratio(name: &str, one: &[Slice], other: &[Slice], bound: f64) {
    let ratios = one
        .iter()
        .zip(other)
        .map(|(one, other)| one.per_second / other.per_second);
    let (mut least, mut greatest) = (f64::MAX, f64::MIN);
    for ratio in ratios.clone() {
        least = least.min(ratio);
        greatest = greatest.max(ratio);
    }
    let middle = median(ratios);
    let verdict = if middle >= bound { "meets" } else { "MISSES" };
    println!("{name:<22} {middle:.3} ({least:.3} to {greatest:.3}), {verdict} {bound}");
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
