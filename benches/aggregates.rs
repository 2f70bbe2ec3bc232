//! Measures aggregates with long streams: loading them, with and without snapshots, and what the
//! snapshots cost when events are stored.
//!
//!     tests/run --postgres cargo bench --bench aggregates    # both backends
//!     cargo bench --bench aggregates -- sqlite               # one
//!     cargo bench --bench aggregates -- storing sqlite       # without the long streams
//!
//! Loading is measured at several lengths of one stream. Storing is measured in rounds, each with
//! and without snapshots, a hundred commits in turn: the median of the ratio within a round is
//! printed, with minimum and maximum. Other load on the machine changes the time much more than
//! snapshots do, so the CPU time is compared too: that of this process and of the Postgres server.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod cpu;

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
    storing(&with, &without, &processes(url).await).await;
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

/// Returns the processes that store the events: this one, and those of the server of `url`.
async fn processes(url: &str) -> Vec<u32> {
    let mut all = vec![std::process::id()];
    if url.starts_with("postgres") {
        let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
        let mut db: PgConnection = options.connect().await.unwrap();
        let sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()";
        let pids: Vec<i32> = sqlx::query_scalar(sql).fetch_all(&mut db).await.unwrap();
        all.extend(pids.into_iter().map(i32::unsigned_abs));
    }
    all
}

/// Compares commits of one event with and without snapshots.
async fn storing(with: &Counters, without: &Counters, processes: &[u32]) {
    const ROUNDS: usize = 15;
    const TURNS: u64 = 20;

    let cpu_time = || processes.iter().map(|pid| cpu::of(*pid)).sum::<f64>();
    let mut ratios: [Vec<f64>; 2] = Default::default();
    // The first round is a warm-up and is not counted.
    for round in 0..=ROUNDS {
        let mut counters = [(with, "with"), (without, "without")]
            .map(|(counters, id)| (counters, Counter::fresh(&format!("{round}-{id}")).unwrap()));
        let (mut times, mut cpu_times) = ([0.0; 2], [0.0; 2]);
        for turn in 0..TURNS {
            // With, without, without, with.
            let case = usize::from(matches!(turn % 4, 1 | 2));
            let (counters, counter) = &mut counters[case];
            let (started, cpu_before) = (Instant::now(), cpu_time());
            for _ in 0..SNAPSHOT_EVERY {
                counter.record(Added { number: 1 }).unwrap();
                counters.commit(counter).await.unwrap();
            }
            times[case] += started.elapsed().as_secs_f64();
            cpu_times[case] += cpu_time() - cpu_before;
        }
        if round > 0 {
            ratios[0].push(times[0] / times[1]);
            ratios[1].push(cpu_times[0] / cpu_times[1]);
        }
    }
    println!("to store an event, with a snapshot every {SNAPSHOT_EVERY} / without:");
    for (what, mut ratios) in ["time", "CPU time"].iter().zip(ratios) {
        ratios.sort_by(f64::total_cmp);
        println!(
            "{what:<9}{:.3} ({:.3} to {:.3})",
            ratios[ROUNDS / 2],
            ratios[0],
            ratios[ROUNDS - 1]
        );
    }
}
