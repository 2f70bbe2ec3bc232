//! Measures what a durable lease costs: acquire and release, compared with the raw pair of
//! statements.
//!
//! ```text
//! tests/run --postgres cargo bench --bench leases    # both backends
//! cargo bench --bench leases -- sqlite               # one
//! ```
//!
//! | file | contents |
//! | --- | --- |
//! | `main` | the cases, their order, and the report |
//! | `process` | a process that runs cases, and what it is told |
//! | `serve` | the main function of such a process, for any kind of lock |
//! | `ours` | the leases of this library |
//! | `raw` | the raw pair of statements |
//!
//! Each round runs every case for a second, in a different order than the round before. The raw
//! pair is an upsert that takes the row and a delete by its token. It runs on one connection, one
//! pair after the other: no lock that uses this table can be faster for one key. On Postgres it
//! also runs on as many connections as a lease manager has by default, each with a key of its own.
//! The result is the ratio of a case to the raw pair within a round: the median of all rounds is
//! printed, with minimum and maximum.
//!
//! A hand-over is the time from the call that releases a key in one process to the return of the
//! call that takes it in another process, which was waiting for it.
//!
//! With `--peer PROGRAM` the same cases run with the locks of another library: a program that takes the
//! URL of the database and serves the commands of `serve`.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod ours;
mod process;
mod raw;
mod serve;

use std::process::ExitCode;
use std::time::Duration;

use self::process::{Contender, Done, Program};

const ROUNDS: usize = 7;

/// The number of hand-overs that are measured.
const HAND_OVERS: usize = 101;

/// A case: who runs it, and which case it is compared with.
struct Case {
    name: &'static str,
    program: &'static str,
    command: String,
    processes: usize,
    /// The index of the case that it is compared with.
    base: usize,
}

fn cases(connections: u32, programs: &[Program]) -> Vec<Case> {
    let case = |program, name, command: String, processes, base| Case {
        name,
        program,
        command,
        processes,
        base,
    };
    let mut cases = vec![
        case("raw", "1 connection", "tasks 1 distinct".into(), 1, 0),
        case(
            "raw",
            "as many connections as leases have",
            format!("tasks {connections} distinct"),
            1,
            1,
        ),
    ];
    for program in programs.iter().map(|program| program.name) {
        if program == "raw" {
            continue;
        }
        let all = [
            ("1 task", "tasks 1 distinct", 1, 0),
            ("16 tasks, distinct keys", "tasks 16 distinct", 1, 1),
            ("16 tasks, one key", "tasks 16 one", 1, 0),
            (
                "8 tasks of each of 2 processes, one key",
                "tasks 8 one",
                2,
                0,
            ),
        ];
        cases.extend(all.map(|(name, command, processes, base)| {
            case(program, name, command.to_owned(), processes, base)
        }));
    }
    cases
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (peer, words) = match &words[..] {
        ["--peer", program, rest @ ..] => (Some(program.to_string()), rest),
        _ => (None, &words[..]),
    };
    match words {
        ["contend", "raw", url] => serve::serve(raw::Raw::new(url)),
        ["contend", "ours", url] => serve::serve(ours::Ours::new(url)),
        [] => {
            measure("SQLite", &ours::sqlite_url(), 1, peer.clone());
            let url = ours::postgres_url();
            measure("Postgres", &url, ours::CONNECTIONS, peer);
        }
        ["sqlite"] => measure("SQLite", &ours::sqlite_url(), 1, peer),
        ["postgres"] => measure("Postgres", &ours::postgres_url(), ours::CONNECTIONS, peer),
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

fn measure(backend: &str, url: &str, connections: u32, peer: Option<String>) {
    ours::migrate(url);
    let mut programs = vec![Program::this("raw"), Program::this("ours")];
    programs.extend(peer.map(|path| Program::other("peer", path)));
    let cases = cases(connections, &programs);
    let mut running: Vec<(&str, Vec<Contender>)> = programs
        .iter()
        .map(|program| {
            (
                program.name,
                vec![
                    Contender::start(program, url),
                    Contender::start(program, url),
                ],
            )
        })
        .collect();
    let mut done = vec![[Done::default(); ROUNDS]; cases.len()];
    // The first round is a warm-up and is not counted.
    for round in 0..=ROUNDS {
        for turn in 0..cases.len() {
            let index = (turn + round) % cases.len();
            let case = &cases[index];
            let processes = contenders(&mut running, case.program);
            let processes = &mut processes[..case.processes];
            for process in &mut *processes {
                process.tell(&case.command);
            }
            let results = processes.iter_mut().map(|process| process.done());
            let result = results.fold(Done::default(), Done::and);
            if round > 0 {
                done[index][round - 1] = result;
            }
        }
    }
    println!("\n{backend}");
    for (index, case) in cases.iter().enumerate() {
        report(case, &done[index], &done[case.base]);
    }
    let others = programs
        .iter()
        .map(|program| program.name)
        .filter(|name| *name != "raw");
    for name in others {
        hand_overs(name, contenders(&mut running, name));
    }
}

fn contenders<'a>(
    running: &'a mut [(&str, Vec<Contender>)],
    program: &str,
) -> &'a mut Vec<Contender> {
    let found = running.iter_mut().find(|(name, _)| *name == program);
    &mut found.unwrap().1
}

fn report(case: &Case, rounds: &[Done; ROUNDS], base: &[Done; ROUNDS]) {
    let ratio = |(this, base): (&Done, &Done)| this.pairs as f64 / base.pairs as f64;
    let mut ratios: Vec<f64> = rounds.iter().zip(base).map(ratio).collect();
    ratios.sort_by(f64::total_cmp);
    let mut pairs: Vec<u64> = rounds.iter().map(|done| done.pairs).collect();
    pairs.sort_unstable();
    let longest = rounds.iter().map(|done| done.longest).max().unwrap();
    println!(
        "{:<5} {:<42} {:>7} pairs/s  {:.3} of raw ({:.3} to {:.3})  the longest took {longest:.1?}",
        case.program,
        case.name,
        pairs[ROUNDS / 2],
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1],
    );
}

/// Measures hand-overs from one process to another, in turns.
fn hand_overs(name: &str, processes: &mut [Contender]) {
    let mut took: Vec<Duration> = Vec::new();
    for turn in 0..HAND_OVERS {
        let (from, to) = match processes {
            [one, two] if turn % 2 == 0 => (one, two),
            [one, two] => (two, one),
            _ => unreachable!("each program has two processes"),
        };
        from.tell("hold");
        from.reply();
        to.tell("wait");
        // Both processes are idle meanwhile: the other one has seen that the key is held.
        std::thread::sleep(Duration::from_millis(60));
        from.tell("release");
        let released: u64 = from.reply().parse().unwrap();
        let taken: u64 = to.reply().parse().unwrap();
        took.push(Duration::from_micros(taken.saturating_sub(released)));
    }
    took.sort_unstable();
    println!(
        "{name:<5} hand-over between processes: p50 {:.2?}, p90 {:.2?}, the longest took {:.2?}",
        took[HAND_OVERS / 2],
        took[HAND_OVERS * 9 / 10],
        took[HAND_OVERS - 1],
    );
}
