//! The events of a run. They are drawn before the run, from its seed.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

use super::{Atomic, Pair};
use crate::history::network::{Disturbance, Location};
use crate::support::In;

/// The points where the service ends its own process, as values of `X-Fault`.
const FAULTS: &[&str] = &[
    "crash=before-commit",
    "crash=before-decision",
    "crash=between-commits",
    "crash=after-commit",
];

/// The beginnings of statements at which the service or a server is killed. `COMMIT` includes the
/// COMMIT PREPARED of an atomic commit.
const STATEMENTS: &[&str] = &["COMMIT"];
const ATOMIC_STATEMENTS: &[&str] = &["COMMIT", "PREPARE TRANSACTION", "COMMIT PREPARED"];

/// One event, and what surrounds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// How long the clients send requests before the event, and after it.
    pub before: Duration,
    pub after: Duration,
    pub kind: Kind,
    /// How long something is stopped, and how long the connections of a killed process stay open.
    pub pause: Duration,
    /// The seed of everything else that the event draws.
    pub seed: u64,
    /// Whether the service is restarted afterwards if it survives.
    pub restarts: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The process of the service is killed.
    Kill,
    /// The process of the service is stopped for a while.
    Pause,
    /// The process ends itself at a point of a settlement: a value of `X-Fault`.
    Fault(String),
    /// A process is killed when the service sends a statement.
    Statement {
        moment: Moment,
        statement: String,
        database: In,
        victim: Victim,
    },
    /// Something happens to a server, or to the connections.
    Network(Disturbance),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The server never receives the statement.
    Before,
    /// The server has executed the statement, and the service does not know that.
    After,
    /// The server receives the statement when the service has been restarted.
    Late,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    Service,
    /// The server that the statement is sent to.
    Server,
}

/// A named point, as in `CHAOS_POINTS`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Point {
    Fault(String),
    Statement(Moment, String),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill => f.write_str("kill of the service"),
            Self::Pause => f.write_str("stop of the service"),
            Self::Fault(fault) => f.write_str(fault),
            Self::Statement {
                moment,
                statement,
                database,
                victim,
            } => {
                let moment = format!("{moment:?}").to_lowercase();
                let victim = format!("{victim:?}").to_lowercase();
                write!(
                    f,
                    "{moment}:{statement} at {database:?}, kill of the {victim}"
                )
            }
            Self::Network(disturbance) => write!(f, "network: {disturbance:?}"),
        }
    }
}

impl Pair {
    /// The databases on a server.
    fn on_servers(&self) -> Vec<In> {
        let all = [(In::Main, self.main), (In::Audit, self.audit)].into_iter();
        all.filter(|(_, location)| *location != Location::File)
            .map(|(database, _)| database)
            .collect()
    }
}

/// Draws `count` events. With `points`, a list separated by commas, each event is one of them.
pub fn plan(pair: &Pair, seed: u64, count: usize, points: Option<&str>) -> Vec<Event> {
    let servers = pair.on_servers();
    let named = points.map(|list| named(list, &servers));
    if named.as_ref().is_some_and(Vec::is_empty) {
        println!("{}: none of the points can occur", pair.name);
        return Vec::new();
    }
    // Each pair has other events.
    let name = pair.name.bytes().map(u64::from);
    let seed = name.fold(seed, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte));
    let mut rng = Rng::with_seed(seed);
    let event = |_| Event {
        before: Duration::from_millis(rng.u64(20..400)),
        after: Duration::from_millis(rng.u64(..300)),
        kind: match &named {
            Some(points) => at_point(&points[rng.usize(..points.len())], &servers, &mut rng),
            None => any_kind(pair.atomic, &servers, &mut rng),
        },
        pause: Duration::from_millis(rng.u64(..1_200)),
        seed: rng.u64(..),
        restarts: rng.u8(..3) > 0,
    };
    (0..count).map(event).collect()
}

/// Parses a list of points. Those at statements cannot occur without a server, and are left out.
fn named(list: &str, servers: &[In]) -> Vec<Point> {
    let points = list.split(',').map(str::trim).map(|text| {
        let statement = |moment, text: &str| Point::Statement(moment, text.to_owned());
        match text.split_once(':') {
            Some(("before", text)) => statement(Moment::Before, text),
            Some(("after", text)) => statement(Moment::After, text),
            Some(("late", text)) => statement(Moment::Late, text),
            _ => Point::Fault(text.to_owned()),
        }
    });
    points
        .filter(|point| matches!(point, Point::Fault(_)) || !servers.is_empty())
        .collect()
}

fn at_point(point: &Point, servers: &[In], rng: &mut Rng) -> Kind {
    match point {
        Point::Fault(fault) => Kind::Fault(fault.clone()),
        Point::Statement(moment, statement) => Kind::Statement {
            moment: *moment,
            statement: statement.clone(),
            database: servers[rng.usize(..servers.len())],
            victim: match rng.bool() {
                false if *moment != Moment::Late => Victim::Server,
                _ => Victim::Service,
            },
        },
    }
}

fn any_kind(atomic: Atomic, servers: &[In], rng: &mut Rng) -> Kind {
    let statements = match atomic {
        Atomic::Yes => ATOMIC_STATEMENTS,
        Atomic::No => STATEMENTS,
    };
    let one_of = |all: &[&str], rng: &mut Rng| all[rng.usize(..all.len())].to_owned();
    let percent = rng.u8(..100);
    if servers.is_empty() {
        return match percent {
            0..60 => Kind::Kill,
            60..75 => Kind::Pause,
            _ => Kind::Fault(one_of(FAULTS, rng)),
        };
    }
    match percent {
        0..30 => Kind::Kill,
        30..35 => Kind::Pause,
        35..45 => Kind::Fault(one_of(FAULTS, rng)),
        45..65 => {
            let moments = [Moment::Before, Moment::After, Moment::Late];
            let moment = moments[rng.usize(..moments.len())];
            let point = Point::Statement(moment, one_of(statements, rng));
            at_point(&point, servers, rng)
        }
        65..75 => Kind::Network(Disturbance::Crash),
        75..85 => Kind::Network(Disturbance::Kill),
        _ => Kind::Network(Disturbance::ALL[rng.usize(..Disturbance::ALL.len())]),
    }
}

#[test]
fn the_seed_determines_the_events() {
    let drawn = |seed| plan(&super::ON_TWO_SERVERS, seed, 50, None);
    assert_eq!(drawn(7), drawn(7));
    assert_ne!(drawn(7), drawn(8));
}

#[test]
fn files_have_no_events_of_servers() {
    let points = Some("crash=after-commit,before:COMMIT");
    for points in [None, points] {
        for event in plan(&super::ON_FILES, 7, 100, points) {
            let is_local = matches!(event.kind, Kind::Kill | Kind::Pause | Kind::Fault(_));
            assert!(is_local, "{event:?}");
        }
    }
    assert_eq!(plan(&super::ON_FILES, 7, 100, Some("after:COMMIT")), []);
}

#[test]
fn each_named_point_is_drawn_and_nothing_else() {
    let points = Some("crash=after-commit, before:COMMIT PREPARED");
    let events = plan(&super::AUDIT_ON_FILE, 7, 100, points);
    let is_fault = |event: &&Event| event.kind == Kind::Fault("crash=after-commit".into());
    let is_statement = |event: &&Event| {
        matches!(
            &event.kind,
            Kind::Statement { moment: Moment::Before, statement, database: In::Main, .. }
                if statement == "COMMIT PREPARED"
        )
    };
    let faults = events.iter().filter(is_fault).count();
    let statements = events.iter().filter(is_statement).count();
    assert!(faults > 20 && statements > 20, "{faults} {statements}");
    assert_eq!(faults + statements, 100);
}
