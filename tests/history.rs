//! A randomised history: several clients send random operations while random faults happen and
//! processes are killed. At the end, the responses must explain the stored data.
//!
//! | drawn at random | module |
//! | --- | --- |
//! | operations, and faults of the service | this one |
//! | kills, stops and restarts of processes | `places` |
//! | on Postgres, faults of the network and the server | `network` |
//!
//! | checked | module |
//! | --- | --- |
//! | responses against rows, audit entries and events; streams have no gaps | `checker` |
//! | lists and snapshots against events | `models` |
//! | fencing tokens, as clients see them | `tokens` |
//!
//! A seed reproduces the operations of each client and all faults, but not their order relative to
//! each other. So a second run with the same seed may have other results. The long form also fails
//! if one of the outcomes or faults never occurred:
//!
//! ```text
//! HISTORY_STEPS=2000 HISTORY_SEED=7 tests/run history
//! ```

pub mod checker;
mod models;
pub mod network;
pub mod places;
mod tokens;

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use fastrand::Rng;
use rocket::futures::future::{join, join_all, join3};

use self::checker::{Entry, Event, Operation, Stored, check, summary};
use self::models::{Listed, Snapshot};
use self::network::{Disturbance, Disturbances, Location, Network};
use self::places::{Place, kill_and_stop};
use self::tokens::Seen;
use crate::aggregates::leases;
use crate::support::{Backend, Databases, In, eventually_or};

const CLIENTS: u64 = 8;

/// From this number of steps on, each possible outcome and fault must occur in a run.
const LONG: u64 = 300;

const FAULTS: &[&str] = &[
    "respond=502",
    "panic",
    "doom",
    "commit",
    "swallow",
    "leak=50",
    "delay=20",
    "delay=20@loaded",
    "disconnect",
    "downstream=502",
    "downstream=timeout",
    "expire-lease",
];

const CRASHES: &[&str] = &[
    "crash=before-commit",
    "crash=between-commits",
    "crash=after-commit",
];

/// Draws the fault of a request. Half of the requests have none; one in a hundred ends its process.
fn draw_fault(rng: &mut Rng) -> &'static str {
    match rng.u8(..100) {
        0..50 => "",
        50..99 => FAULTS[rng.usize(..FAULTS.len())],
        _ => CRASHES[rng.usize(..CRASHES.len())],
    }
}

/// A client, and what it has created.
#[derive(Default)]
struct Client {
    /// Todos that are not shared yet, with their titles.
    todos: Vec<(i64, String)>,
    /// Streams whose creation was requested and that are not completed yet.
    streams: Vec<String>,
}

impl Client {
    /// Draws an operation. The random numbers do not depend on responses. But a client without an
    /// unshared todo creates one instead of sharing.
    fn draw(&mut self, rng: &mut Rng, unique: String) -> Operation {
        let (kind, stream) = (rng.u8(..10), rng.u8(..3));
        match kind {
            0..4 => Operation::Todo { title: unique },
            4..8 => Operation::Rename {
                stream: format!("h{stream}"),
                task: unique,
            },
            8 => match self.streams.pop() {
                Some(stream) => Operation::Complete { stream },
                None => {
                    let stream = format!("new-{unique}");
                    self.streams.push(stream.clone());
                    Operation::Create { stream }
                }
            },
            _ => match self.todos.pop() {
                Some((id, title)) => Operation::Share { id, title },
                None => Operation::Todo { title: unique },
            },
        }
    }
}

async fn client(places: &[Place; 2], seed: u64, number: u64, steps: u64) -> Vec<Entry> {
    let mut rng = Rng::with_seed(seed);
    let mut client = Client::default();
    let mut history = Vec::new();
    for step in 0..steps {
        let operation = client.draw(&mut rng, format!("{number}-{step}"));
        let fault = draw_fault(&mut rng);
        let place = &places[rng.usize(..2)];
        let response = place.send(&operation, fault).await;
        if let Operation::Todo { title } = &operation
            && let Some(id) = response.as_ref().and_then(|response| response.id)
        {
            client.todos.push((id, title.clone()));
        }
        history.push(Entry {
            operation,
            fault,
            response,
        });
    }
    history
}

pub fn variable<T: FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} must be a number, but is {text:?}")),
        Err(_) => default,
    }
}

/// Returns the rows of `sql`, which must join its columns with `|`, as columns of text.
async fn rows<const N: usize>(
    databases: &Databases,
    database: In,
    sql: &'static str,
) -> Vec<[String; N]> {
    let rows = databases.texts(database, sql).await;
    let rows = rows.iter().map(|row| {
        let columns: Vec<String> = row.splitn(N, '|').map(Into::into).collect();
        columns.try_into().unwrap()
    });
    rows.collect()
}

fn id(stream: &str) -> String {
    stream.trim_start_matches("todo:").to_owned()
}

async fn stored(databases: &Databases) -> (Stored, Vec<Listed>, Vec<Snapshot>) {
    const EVENTS: &str = "SELECT stream || '|' || sequence || '|' || name || '|' || payload \
                          FROM aggregate_events ORDER BY stream, sequence";
    const SHARED: &str = "SELECT title FROM todos WHERE shared";
    const LISTED: &str = "SELECT id || '|' || user_id || '|' || task || '|' || version || '|' || \
                          CASE WHEN completed THEN 'completed' ELSE '' END FROM todo_list";
    const SNAPSHOTS: &str =
        "SELECT stream || '|' || sequence || '|' || state FROM aggregate_snapshots";

    let json = |text: &str| rocket::serde::json::from_str(text).unwrap();
    let events = rows(databases, In::Main, EVENTS).await.into_iter();
    let events = events.map(|[stream, sequence, name, payload]| Event {
        stream: id(&stream),
        sequence: sequence.parse().unwrap(),
        name,
        payload: json(&payload),
    });
    let listed = rows(databases, In::Main, LISTED).await.into_iter();
    let listed = listed.map(|[id, user_id, task, version, completed]| Listed {
        id,
        user_id,
        task,
        completed: !completed.is_empty(),
        version: version.parse().unwrap(),
    });
    let snapshots = rows(databases, In::Main, SNAPSHOTS).await.into_iter();
    let snapshots = snapshots.map(|[stream, sequence, state]| Snapshot {
        stream: id(&stream),
        sequence: sequence.parse().unwrap(),
        state: json(&state),
    });
    let stored = Stored {
        events: events.collect(),
        titles: databases.texts(In::Main, "SELECT title FROM todos").await,
        shared: databases.texts(In::Main, SHARED).await,
        audited: databases
            .texts(In::Audit, "SELECT request_id FROM audit")
            .await,
    };
    (stored, listed.collect(), snapshots.collect())
}

/// Counts, from the logs of the services, the outcomes of COMMITs without a reply that they
/// queried.
fn fates(databases: &Databases) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for file in std::fs::read_dir(databases.folder()).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let log = std::fs::read(path).unwrap();
        for line in String::from_utf8_lossy(&log).lines() {
            for fate in ["Some(Committed)", "Some(RolledBack)", "None"] {
                if line.contains("queried the server how the transaction ended")
                    && line.contains(&format!("fate={fate}"))
                {
                    *counts.entry(fate).or_default() += 1;
                }
            }
        }
    }
    counts
}

async fn the_stored_data_matches_the_responses(backend: Backend) {
    let (seed, steps) = (
        variable("HISTORY_SEED", 20_261_125_u64),
        variable("HISTORY_STEPS", 25),
    );
    println!("{backend:?}: HISTORY_SEED={seed} HISTORY_STEPS={steps}");
    let seed_of = |number: u64| seed.wrapping_mul(1_000).wrapping_add(number);
    let (mut network, databases) = match backend {
        Backend::Sqlite => (None, Databases::new(backend).await),
        Backend::Postgres => {
            let server = Location::Server(0);
            let (network, databases) = Network::new(server, server).await;
            (Some(network), databases)
        }
    };
    let databases = Arc::new(databases);
    let places = &[Place::new(&databases).await, Place::new(&databases).await];
    let started = Instant::now();
    let mut history = Vec::new();
    for number in 0..3 {
        let stream = format!("h{number}");
        let operation = Operation::Create { stream };
        history.push(Entry {
            response: places[0].send(&operation, "").await,
            operation,
            fault: "",
        });
    }

    let done = AtomicBool::new(false);
    let clients = async {
        let clients = (0..CLIENTS).map(|number| client(places, seed_of(number), number, steps));
        let entries = join_all(clients).await;
        done.store(true, SeqCst);
        entries
    };
    let trouble = async {
        match &mut network {
            Some(network) => network.trouble(seed_of(CLIENTS + 1), &done).await,
            None => Disturbances::new(),
        }
    };
    let seen = Mutex::new(Seen::default());
    let watching = join_all(places.iter().map(|it| it.watch(started, &done, &seen)));
    let killing = kill_and_stop(places, seed_of(CLIENTS), &done);
    let ((entries, _), (kills, stops), disturbances) =
        join3(join(clients, watching), killing, trouble).await;
    history.extend(entries.into_iter().flatten());
    let took = started.elapsed();

    for place in places {
        let http = place.http();
        if http.request("GET /registry").send().await.is_err() {
            place.revive(&http).await;
        }
    }
    let mut held = Vec::new();
    eventually_or("the leases are free", &mut held, async |held| {
        *held = leases(&places[0].http()).await;
        held.retain(|lease| lease["token"] != "expire-lease");
        held.is_empty()
    })
    .await;
    let settled = started.elapsed() - took;

    let count = |counter: fn(&Place) -> &AtomicUsize| -> usize {
        places.iter().map(|place| counter(place).load(SeqCst)).sum()
    };
    let silences = count(|place| &place.silences);
    let (outcomes, fates, seen) = (
        summary(&history),
        fates(&databases),
        seen.into_inner().unwrap(),
    );
    println!(
        "{backend:?}: {} requests in {took:.1?}, all leases free after {settled:.1?}: {outcomes:?}\n\
         {backend:?}: {kills} kills, {stops} stops, {} restarts, {} failed launches, \
         {} requests without a response; {} leases in {} polls\n\
         {backend:?}: {disturbances:?}; queried outcomes of COMMITs without a reply: {fates:?}",
        history.len(),
        count(|place| &place.restarts),
        count(|place| &place.refusals),
        silences,
        seen.leases(),
        seen.polls,
    );
    let (stored, listed, snapshots) = stored(&databases).await;
    let mut found = check(&history, &stored);
    if silences > 0 {
        found.push(format!(
            "{silences} requests got no response from a running process"
        ));
    }
    found.extend(models::check(&stored.events, &listed, &snapshots));
    found.extend(seen.check());
    if steps >= LONG {
        found.extend(missing(backend, &outcomes, &fates, &disturbances));
    }
    assert!(
        found.is_empty(),
        "{backend:?}, HISTORY_SEED={seed} HISTORY_STEPS={steps}, {} errors:\n{}",
        found.len(),
        found.join("\n")
    );
}

/// Lists the outcomes and faults that never occurred in a long run.
fn missing(
    backend: Backend,
    outcomes: &BTreeMap<&str, usize>,
    fates: &BTreeMap<&str, usize>,
    disturbances: &Disturbances,
) -> Vec<String> {
    let expected = ["committed", "rolled-back", "no response"].iter();
    let mut missing: Vec<String> = Vec::new();
    let expected = expected.chain(match backend {
        Backend::Sqlite => [].iter(),
        Backend::Postgres => ["unknown"].iter(),
    });
    let never = expected.filter(|outcome| !outcomes.contains_key(**outcome));
    missing.extend(never.map(|outcome| format!("no request ended with {outcome}")));
    if backend == Backend::Postgres {
        let fate = ["Some(Committed)", "Some(RolledBack)"].iter();
        let fate = fate.filter(|fate| !fates.contains_key(**fate));
        missing.extend(fate.map(|fate| format!("no queried outcome was {fate}")));
        let kinds = Disturbance::ALL.iter();
        let kinds = kinds.filter(|kind| !disturbances.contains_key(kind));
        missing.extend(kinds.map(|kind| format!("{kind:?} never happened")));
    }
    missing
}

on_each_backend!(the_stored_data_matches_the_responses);
