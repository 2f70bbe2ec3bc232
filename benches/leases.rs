//! Measures what a durable lease costs: acquire and release, compared with the raw pair of
//! statements.
//!
//!     tests/run --postgres cargo bench --bench leases    # both backends
//!     cargo bench --bench leases -- sqlite               # one
//!
//! Each round runs every case for a second, in a different order than the round before. The raw
//! pair is an upsert that takes the row and a delete by its token. It runs on one connection, one
//! pair after the other. No lock that uses this table can be faster for one key. The result is the
//! ratio of a case to the raw pair within a round: the median of all rounds is printed, with
//! minimum and maximum.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rocket::figment::Figment;
use rocket::futures::future::join_all;
use rocket::tokio;
use rocket_db_pools::Pool;
use rocket_tx::db::UrlPool;
use rocket_tx_aggregates::lock::{Hold, UrlLockManager};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, PgConnection, SqliteConnection};

const SLICE: Duration = Duration::from_secs(1);

const CASES: [&str; 4] = [
    "raw pair of statements",
    "lease, uncontended",
    "lease, 16 tasks of one process, one key",
    "lease, 8 tasks of each of two processes, one key",
];

/// The result of one case in one round.
#[derive(Default, Clone, Copy)]
struct Done {
    pairs: u64,
    longest: Duration,
}

impl Done {
    fn and(self, other: Self) -> Self {
        Self {
            pairs: self.pairs + other.pairs,
            longest: self.longest.max(other.longest),
        }
    }
}

#[rocket::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["contend", url] => contend(url).await,
        [] => {
            measure("SQLite", &sqlite_url()).await;
            measure("Postgres", &postgres_url().await).await;
        }
        ["sqlite"] => measure("SQLite", &sqlite_url()).await,
        ["postgres"] => measure("Postgres", &postgres_url().await).await,
        _ => {
            eprintln!(
                "unknown argument: {}; use sqlite or postgres",
                arguments.join(" ")
            );
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn sqlite_url() -> String {
    let folder = tempfile::tempdir().unwrap().keep();
    format!("sqlite:{}", folder.join("leases.db").display())
}

async fn postgres_url() -> String {
    use sqlx::Connection;

    let cluster = std::env::var("TEST_POSTGRES_URL")
        .expect("TEST_POSTGRES_URL is not set; run: tests/run --postgres cargo bench");
    let name = format!("bench_leases_{}", std::process::id());
    let mut admin = PgConnection::connect(&cluster).await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::raw_sql(create).execute(&mut admin).await.unwrap();
    format!("{}/{name}", cluster.rsplit_once('/').unwrap().0)
}

async fn manager(url: &str) -> UrlLockManager {
    let figment = Figment::from(("url", url))
        .merge(("max_connections", 4))
        .merge(("connect_timeout", 5));
    UrlLockManager::new(&UrlPool::init(&figment).await.unwrap()).with_max_wait(None)
}

async fn measure(name: &str, url: &str) {
    const ROUNDS: usize = 7;

    let leases = manager(url).await;
    leases.migrate().await.unwrap();
    let mut raw = Raw::connect(url).await;
    let mut other = Other::start(url);
    let mut done = [[Done::default(); ROUNDS]; CASES.len()];
    // The first round is a warm-up and is not counted.
    for round in 0..=ROUNDS {
        for turn in 0..CASES.len() {
            let case = (turn + round) % CASES.len();
            let result = match case {
                0 => raw.run().await,
                1 => tasks(&leases, 1).await,
                2 => tasks(&leases, 16).await,
                _ => {
                    other.go();
                    let ours = tasks(&leases, 8).await;
                    ours.and(other.done())
                }
            };
            if round > 0 {
                done[case][round - 1] = result;
            }
        }
    }
    println!("\n{name}");
    for (case, rounds) in CASES.iter().zip(&done) {
        let mut ratios: Vec<f64> = rounds
            .iter()
            .zip(&done[0])
            .map(|(this, raw)| this.pairs as f64 / raw.pairs as f64)
            .collect();
        ratios.sort_by(f64::total_cmp);
        let mut pairs: Vec<u64> = rounds.iter().map(|done| done.pairs).collect();
        pairs.sort_unstable();
        let longest = rounds.iter().map(|done| done.longest).max().unwrap();
        println!(
            "{case:<50} {:>7} pairs/s  {:.3} of raw ({:.3} to {:.3})  the longest took {:.1?}",
            pairs[ROUNDS / 2],
            ratios[ROUNDS / 2],
            ratios[0],
            ratios[ROUNDS - 1],
            longest
        );
    }
}

/// Acquires and releases one key from `number` tasks.
async fn tasks(leases: &UrlLockManager, number: usize) -> Done {
    let until = Instant::now() + SLICE;
    let task = |_| {
        let leases = leases.clone();
        tokio::spawn(async move {
            let mut done = Done::default();
            while Instant::now() < until {
                let started = Instant::now();
                let lease = leases.acquire("key").await.unwrap();
                lease.release().await.unwrap();
                done.pairs += 1;
                done.longest = done.longest.max(started.elapsed());
            }
            done
        })
    };
    let all = join_all((0..number).map(task)).await;
    all.into_iter()
        .fold(Done::default(), |sum, done| sum.and(done.unwrap()))
}

/// A connection for the raw pair of statements.
enum Raw {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

macro_rules! pair {
    ($connection:expr, $now:literal) => {{
        sqlx::query(concat!(
            "INSERT INTO aggregate_locks AS held \
                 (lock_key, owner_id, token, fencing_token, acquired_at, expires_at, wanted) \
             VALUES ($1, 'raw', $2, 1, ",
            $now,
            ", ",
            $now,
            " + 30000, FALSE) ON CONFLICT (lock_key) DO UPDATE SET token = excluded.token \
             WHERE held.expires_at <= ",
            $now
        ))
        .bind("raw")
        .bind("token")
        .execute(&mut *$connection)
        .await
        .unwrap();
        let gone = sqlx::query("DELETE FROM aggregate_locks WHERE lock_key = $1 AND token = $2")
            .bind("raw")
            .bind("token")
            .execute(&mut *$connection)
            .await
            .unwrap();
        assert_eq!(gone.rows_affected(), 1);
    }};
}

impl Raw {
    /// Connects with the settings that the library uses for leases.
    async fn connect(url: &str) -> Self {
        match url.starts_with("sqlite:") {
            true => {
                let options: SqliteConnectOptions = url.parse().unwrap();
                let options = options.synchronous(sqlx::sqlite::SqliteSynchronous::Normal);
                Self::Sqlite(options.connect().await.unwrap())
            }
            false => {
                let options: PgConnectOptions = url.parse().unwrap();
                let options = options.options([("synchronous_commit", "off")]);
                Self::Postgres(options.connect().await.unwrap())
            }
        }
    }

    async fn run(&mut self) -> Done {
        let until = Instant::now() + SLICE;
        let mut done = Done::default();
        while Instant::now() < until {
            let started = Instant::now();
            match self {
                Self::Sqlite(db) => {
                    pair!(db, "CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)")
                }
                Self::Postgres(db) => {
                    pair!(db, "(extract(epoch FROM clock_timestamp()) * 1000)::bigint")
                }
            }
            done.pairs += 1;
            done.longest = done.longest.max(started.elapsed());
        }
        done
    }
}

/// Another process, which competes for the same key for one slice after each [`go`](Self::go).
struct Other {
    process: Child,
    output: BufReader<ChildStdout>,
}

impl Other {
    fn start(url: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["contend", url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self { process, output }
    }

    fn go(&mut self) {
        self.process
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"go\n")
            .unwrap();
    }

    fn done(&mut self) -> Done {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let (pairs, micros) = line.trim().split_once(' ').unwrap();
        Done {
            pairs: pairs.parse().unwrap(),
            longest: Duration::from_micros(micros.parse().unwrap()),
        }
    }
}

impl Drop for Other {
    /// The process ends when its standard input is closed.
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// The main function of the other process.
async fn contend(url: &str) {
    let leases = manager(url).await;
    loop {
        let has_line = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).unwrap() > 0
        });
        if !has_line.await.unwrap() {
            return;
        }
        let done = tasks(&leases, 8).await;
        println!("{} {}", done.pairs, done.longest.as_micros());
    }
}
