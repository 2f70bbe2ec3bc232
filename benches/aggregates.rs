//! Measures aggregates with long streams: loading them, with and without snapshots, and what the
//! snapshots cost when events are stored.
//!
//!     tests/run --postgres cargo bench --bench aggregates    # both backends
//!     cargo bench --bench aggregates -- sqlite               # one
//!     cargo bench --bench aggregates -- storing sqlite       # without the long streams
//!
//! Loading is measured at several lengths of one stream. Storing is measured in rounds, each with
//! and without snapshots: the median of the ratio within a round is printed, with minimum and
//! maximum.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use rocket::figment::Figment;
use rocket_db_pools::Pool;
use rocket_tx::db::UrlPool;
use rocket_tx_aggregates::aggregate::{
    Aggregate, AsyncAggregateRepository, Entity, Event, SqlEventStore,
};
use serde::{Deserialize, Serialize};
use sqlx::{ConnectOptions, PgConnection};

/// The lengths of the stream at which loading is measured.
const LENGTHS: [usize; 3] = [1_000, 10_000, 100_000];

/// Events in one commit while the stream is filled.
const AT_ONCE: usize = 1_000;

const SNAPSHOT_EVERY: u64 = 100;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Counter {
    #[serde(skip)]
    entity: Entity,
    total: i64,
}

#[derive(Serialize, Deserialize)]
struct Added {
    number: i64,
}

impl Event<Counter> for Added {
    const NAME: &'static str = "added";

    fn apply(self, counter: &mut Counter) {
        counter.total += self.number;
    }
}

rocket_tx_aggregates::aggregate!(Counter as "counter", entity, [Added]);

type Counters = AsyncAggregateRepository<SqlEventStore<UrlPool>, Counter>;

#[rocket::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (is_only_storing, words) = match &words[..] {
        ["storing", rest @ ..] => (true, rest),
        words => (false, words),
    };
    let backends = match words {
        [] => vec!["sqlite", "postgres"],
        [one @ ("sqlite" | "postgres")] => vec![*one],
        _ => {
            let words = arguments.join(" ");
            eprintln!("unknown argument: {words}; use storing, sqlite or postgres");
            return ExitCode::FAILURE;
        }
    };
    for backend in backends {
        let url = match backend {
            "sqlite" => sqlite_url(),
            _ => postgres_url().await,
        };
        println!("\n{backend}");
        measure(&url, is_only_storing).await;
    }
    ExitCode::SUCCESS
}

fn sqlite_url() -> String {
    let folder = tempfile::tempdir().unwrap().keep();
    format!("sqlite:{}", folder.join("aggregates.db").display())
}

async fn postgres_url() -> String {
    let cluster = std::env::var("TEST_POSTGRES_URL")
        .expect("TEST_POSTGRES_URL is not set; run: tests/run --postgres cargo bench");
    let name = format!("bench_aggregates_{}", std::process::id());
    let options: sqlx::postgres::PgConnectOptions = cluster.parse().unwrap();
    let mut admin: PgConnection = options.connect().await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::raw_sql(create).execute(&mut admin).await.unwrap();
    format!("{}/{name}", cluster.rsplit_once('/').unwrap().0)
}

async fn measure(url: &str, is_only_storing: bool) {
    let figment = Figment::from(("url", url))
        .merge(("max_connections", 4))
        .merge(("connect_timeout", 5));
    let store = SqlEventStore::new(&UrlPool::init(&figment).await.unwrap());
    store.migrate().await.unwrap();
    let with = Counters::new(store.clone().with_snapshot_every(SNAPSHOT_EVERY));
    let without = Counters::new(store.with_snapshot_every(0));
    if !is_only_storing {
        compare_loading(&with, &without).await;
    }
    storing(&with, &without).await;
}

async fn compare_loading(with: &Counters, without: &Counters) {
    println!(
        "{:>9}{:>18}{:>21}",
        "events", "with snapshots", "without snapshots"
    );
    for length in LENGTHS {
        let mut took = Vec::new();
        for (counters, id) in [(with, "with"), (without, "without")] {
            fill(counters, id, length).await;
            took.push(loading(counters, id, length).await);
        }
        println!(
            "{length:>9}{:>15.2} ms{:>18.2} ms",
            millis(took[0]),
            millis(took[1])
        );
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// Appends events until the stream has `length`.
async fn fill(counters: &Counters, id: &str, length: usize) {
    let mut counter = match counters.peek(id).await.unwrap() {
        Some(counter) => counter,
        None => Counter::fresh(id).unwrap(),
    };
    while (counter.version() as usize) < length {
        for _ in 0..AT_ONCE {
            counter.record(Added { number: 1 }).unwrap();
        }
        counters.commit(&mut counter).await.unwrap();
    }
}

/// Returns the median time of a load.
async fn loading(counters: &Counters, id: &str, length: usize) -> Duration {
    const TIMES: usize = 15;

    let mut times = Vec::new();
    for _ in 0..TIMES {
        let started = Instant::now();
        let counter = counters.peek(id).await.unwrap().unwrap();
        times.push(started.elapsed());
        assert_eq!(counter.total, i64::try_from(length).unwrap());
    }
    times.sort_unstable();
    times[TIMES / 2]
}

/// Compares commits of one event with and without snapshots.
async fn storing(with: &Counters, without: &Counters) {
    const ROUNDS: usize = 9;
    const COMMITS: u32 = 1_000;

    let mut ratios = Vec::new();
    // The first round is a warm-up and is not counted.
    for round in 0..=ROUNDS {
        let mut took = [Duration::ZERO; 2];
        for turn in 0..2 {
            let case = (turn + round) % 2;
            let counters = [with, without][case];
            let mut counter = Counter::fresh(&format!("{round}-{case}")).unwrap();
            let started = Instant::now();
            for _ in 0..COMMITS {
                counter.record(Added { number: 1 }).unwrap();
                counters.commit(&mut counter).await.unwrap();
            }
            took[case] = started.elapsed();
        }
        if round > 0 {
            ratios.push(took[0].as_secs_f64() / took[1].as_secs_f64());
        }
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "time to store an event, with a snapshot every {SNAPSHOT_EVERY} / without: {:.3} ({:.3} to {:.3})",
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1]
    );
}
