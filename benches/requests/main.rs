//! Measures what a request-scoped transaction costs, on a real server that is loaded over loopback.
//!
//!     tests/run --postgres cargo bench --bench requests  # everything, in four minutes
//!     cargo bench --bench requests -- sqlite             # one backend
//!     tests/run --postgres cargo bench --bench requests -- atomic rounds=20
//!
//! `sqlite` and `postgres` load six routes for two seconds each in a round, in a different order
//! than in the round before, so that other load on the machine affects all of them alike. `atomic`
//! loads one route that writes two Postgres databases: once with atomic commit, and once with two
//! COMMITs. The result is the ratio of two routes within a round: the median of all rounds is
//! printed, with minimum and maximum. Nothing is printed before the last round.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod load;
mod server;

use std::process::ExitCode;
use std::time::Duration;

use load::Slice;
use server::{Backend, Server};

const SLICE: Duration = Duration::from_secs(2);

/// The routes: a label, the request, and `true` if the server with the library has the route.
const ROUTES: [(&str, &str, bool); 6] = [
    ("write, Tx", "POST /tx", true),
    ("write, by hand", "POST /hand", false),
    ("read, Read", "GET /read", true),
    ("read, by hand", "GET /hand", false),
    ("read, Tx", "GET /tx", true),
    // The same handler as the first one. Each request has a new `Idempotency-Key`.
    ("write, key", "POST /keyed/tx", true),
];

/// What is measured.
#[derive(Clone, Copy)]
enum Subject {
    /// The [`ROUTES`] on a backend.
    Routes(Backend),
    Atomic,
}

#[rocket::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    if let [serve, role, backend, url] = &arguments[..]
        && serve == "serve"
    {
        server::serve(role, backend.parse().unwrap(), url).await;
        return ExitCode::SUCCESS;
    }
    let mut rounds = 7;
    let mut subjects = Vec::new();
    for argument in &arguments {
        match (argument.strip_prefix("rounds="), &**argument) {
            (Some(number), _) => rounds = number.parse().expect("rounds= takes a number"),
            (None, "sqlite") => subjects.push(Subject::Routes(Backend::Sqlite)),
            (None, "postgres") => subjects.push(Subject::Routes(Backend::Postgres)),
            (None, "atomic") => subjects.push(Subject::Atomic),
            (None, _) => {
                eprintln!(
                    "unknown argument: {argument}; use sqlite, postgres, atomic, rounds=NUMBER"
                );
                return ExitCode::FAILURE;
            }
        }
    }
    if subjects.is_empty() {
        subjects = vec![
            Subject::Routes(Backend::Sqlite),
            Subject::Routes(Backend::Postgres),
            Subject::Atomic,
        ];
    }
    for subject in subjects {
        let is_local = matches!(subject, Subject::Routes(Backend::Sqlite));
        if !is_local && std::env::var_os("TEST_POSTGRES_URL").is_none() {
            eprintln!("TEST_POSTGRES_URL is not set; run: tests/run --postgres cargo bench");
            return ExitCode::FAILURE;
        }
        match subject {
            Subject::Routes(backend) => measure(backend, rounds).await,
            Subject::Atomic => measure_atomic(rounds).await,
        }
    }
    ExitCode::SUCCESS
}

async fn measure(backend: Backend, rounds: usize) {
    let mut with = Server::start(backend, "with").await;
    let mut without = Server::start(backend, "without").await;
    let mut slices: [Vec<Slice>; ROUTES.len()] = Default::default();
    // The first round is a warm-up and is not counted.
    for round in 0..=rounds {
        for turn in 0..ROUTES.len() {
            let route = (turn + round) % ROUTES.len();
            let (_, what, has_library) = ROUTES[route];
            let server = if has_library { &mut with } else { &mut without };
            let before = server.cpu_time();
            let mut slice = load::run(server.port, what, SLICE).await;
            slice.cpu = (server.cpu_time() - before) / slice.responses as f64;
            if round > 0 {
                slices[route].push(slice);
            }
            server.has_written(load::written(what, slice.responses));
        }
    }

    heading(&format!("{backend:?}"), rounds);
    for ((name, ..), slices) in ROUTES.iter().zip(&slices) {
        row(name, slices);
    }
    ratio("write: Tx / by hand", &slices[0], &slices[1], 0.95);
    ratio("read: Read / by hand", &slices[2], &slices[3], 0.90);
    ratio("read: Read / Tx", &slices[2], &slices[4], 1.5);
    ratio("write: key / no key", &slices[5], &slices[0], 0.4);

    with.stop().await;
    without.stop().await;
}

/// Measures a request that writes two Postgres databases: an atomic commit against two COMMITs.
async fn measure_atomic(rounds: usize) {
    let [mode, other] = server::WITH_TWO;
    let mut servers = [
        Server::start(Backend::Postgres, mode).await,
        Server::start(Backend::Postgres, other).await,
    ];
    let mut slices: [Vec<Slice>; 2] = Default::default();
    for round in 0..=rounds {
        for turn in 0..2 {
            let which = (turn + round) % 2;
            let what = "POST /both";
            let before = servers[which].cpu_time();
            let mut slice = load::run(servers[which].port, what, SLICE).await;
            slice.cpu = (servers[which].cpu_time() - before) / slice.responses as f64;
            if round > 0 {
                slices[which].push(slice);
            }
            servers[which].has_written(load::written(what, slice.responses));
        }
    }
    heading("Postgres + Postgres", rounds);
    for (name, slices) in ["atomic", "two COMMITs"].iter().zip(&slices) {
        row(name, slices);
    }
    ratio("atomic / two COMMITs", &slices[0], &slices[1], 0.5);
    for server in servers {
        server.stop().await;
    }
}

fn heading(subject: &str, rounds: usize) {
    println!(
        "\n{subject}, {} clients, {rounds} rounds of {SLICE:?}",
        load::CLIENTS
    );
    println!(
        "{:<16}{:>12}{:>10}{:>10}{:>14}",
        "route", "requests/s", "p50", "p99", "CPU/request"
    );
}

fn row(name: &str, slices: &[Slice]) {
    let rate = median(slices.iter().map(|slice| slice.per_second));
    let p50 = median(slices.iter().map(|slice| slice.p50));
    let p99 = median(slices.iter().map(|slice| slice.p99));
    let cpu = median(slices.iter().map(|slice| slice.cpu));
    println!("{name:<16}{rate:>12.0}{p50:>7.2} ms{p99:>7.2} ms{cpu:>11.0} us");
}

fn ratio(name: &str, one: &[Slice], other: &[Slice], target: f64) {
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
    let verdict = if middle >= target { "meets" } else { "MISSES" };
    println!("{name:<22} {middle:.3} ({least:.3} to {greatest:.3}), {verdict} {target}");
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
