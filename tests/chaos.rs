//! Chaos: processes and servers are killed, stopped and cut off while clients write to both
//! databases. Afterwards each request is stored in both databases, or in neither.
//!
//! Clients create todos. Each one is a row in `main` and a row in `audit`, and has a unique title.
//! Events happen at random moments ([`plan`]). After each event everything is brought back, and the
//! test waits until nothing is outstanding and no prepared transaction is left ([`site`]). Then both
//! databases are compared with everything that the clients were told since the beginning
//! ([`figures`]):
//!
//! | figure | meaning | must be |
//! | --- | --- | --- |
//! | half-done | a row in one of the databases, but not in the other | 0 if the pair commits atomically |
//! | lost | reported as committed, but a row is missing | 0 |
//! | untrue | reported as rolled back, but a row is stored | 0 |
//! | prepared | transactions that are still prepared | 0 |
//!
//! `tests/run` runs a short form. The long form takes about two seconds for each event:
//!
//! ```text
//! CHAOS_SEED=7 CHAOS_KILLS=300 tests/run chaos:: --nocapture
//! CHAOS_POINTS=crash=between-commits,after:COMMIT tests/run chaos:: --nocapture
//! ```

mod figures;
mod plan;
mod site;

use std::time::Instant;

use self::figures::{Figures, compare, table};
use self::plan::plan;
use self::site::Site;
use crate::history::network::Location;
use crate::history::variable;

/// Whether a request is always stored in both databases or in neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Atomic {
    Yes,
    No,
}

/// Where the two databases are, and what is expected of them.
#[derive(Debug)]
struct Pair {
    name: &'static str,
    main: Location,
    audit: Location,
    atomic: Atomic,
}

const ON_FILES: Pair = Pair {
    name: "SQLite + SQLite",
    main: Location::File,
    audit: Location::File,
    atomic: Atomic::No,
};

const MAIN_ON_FILE: Pair = Pair {
    name: "SQLite + Postgres",
    main: Location::File,
    audit: Location::Server(0),
    atomic: Atomic::Yes,
};

const AUDIT_ON_FILE: Pair = Pair {
    name: "Postgres + SQLite",
    main: Location::Server(0),
    audit: Location::File,
    atomic: Atomic::Yes,
};

const ON_ONE_SERVER: Pair = Pair {
    name: "Postgres, one server",
    main: Location::Server(0),
    audit: Location::Server(0),
    atomic: Atomic::Yes,
};

const ON_TWO_SERVERS: Pair = Pair {
    name: "Postgres, two servers",
    main: Location::Server(0),
    audit: Location::Server(1),
    atomic: Atomic::Yes,
};

async fn no_acknowledged_request_is_lost(pair: Pair) {
    let seed = variable("CHAOS_SEED", 20_261_126_u64);
    let events = variable("CHAOS_KILLS", 8);
    let points = std::env::var("CHAOS_POINTS").ok();
    println!("{}: CHAOS_SEED={seed} CHAOS_KILLS={events}", pair.name);
    let events = plan(&pair, seed, events, points.as_deref());
    let started = Instant::now();
    let mut site = Site::new(&pair).await;
    let mut requests = Vec::new();
    let mut figures = Figures::default();
    let mut happened = Vec::new();
    for (number, event) in events.iter().enumerate() {
        let has_happened = site.suffer(number, event, &mut requests).await;
        happened.push(has_happened);
        let left = site.quiet().await;
        figures = compare(&requests, &site.stored().await, left);
        let errors = figures.errors(pair.atomic);
        assert!(
            errors.is_empty(),
            "{}, CHAOS_SEED={seed}, after the event {number}, {event:?}:\n{}\n{}",
            pair.name,
            errors.join("\n"),
            table(&pair, &events, &happened, &figures),
        );
    }
    println!(
        "{}{}: CHAOS_SEED={seed}, {:.0?}, {} restarts",
        table(&pair, &events, &happened, &figures),
        pair.name,
        started.elapsed(),
        site.restarts(),
    );
}

mod sqlite {
    use super::*;

    #[rocket::async_test]
    async fn two_files_lose_nothing_that_was_acknowledged() {
        no_acknowledged_request_is_lost(ON_FILES).await;
    }
}

mod postgres {
    use super::*;

    #[rocket::async_test]
    async fn one_server_loses_nothing_that_was_acknowledged() {
        no_acknowledged_request_is_lost(ON_ONE_SERVER).await;
    }

    #[rocket::async_test]
    async fn two_servers_lose_nothing_that_was_acknowledged() {
        no_acknowledged_request_is_lost(ON_TWO_SERVERS).await;
    }
}

mod mixed {
    use super::*;

    #[rocket::async_test]
    async fn a_file_and_a_server_lose_nothing_that_was_acknowledged() {
        no_acknowledged_request_is_lost(MAIN_ON_FILE).await;
    }

    #[rocket::async_test]
    async fn a_server_and_a_file_lose_nothing_that_was_acknowledged() {
        no_acknowledged_request_is_lost(AUDIT_ON_FILE).await;
    }
}
