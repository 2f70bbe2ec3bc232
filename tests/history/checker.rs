//! Checks that the responses to the clients explain the stored data.

mod forged;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rocket::serde::json::Value;

/// One operation of a client. Titles, tasks and new streams are unique in a history. Each todo is
/// shared at most once, and each stream is completed at most once.
#[derive(Debug, Clone)]
pub enum Operation {
    Todo { title: String },
    Share { id: i64, title: String },
    Create { stream: String },
    Rename { stream: String, task: String },
    Complete { stream: String },
}

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub outcome: Option<String>,
    pub request_id: Option<String>,
    /// The id of a new todo.
    pub id: Option<i64>,
}

/// One request. `response` is `None` if its connection ended without a response.
#[derive(Debug, Clone)]
pub struct Entry {
    pub operation: Operation,
    pub fault: &'static str,
    pub response: Option<Response>,
}

/// A row of `aggregate_events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub stream: String,
    pub sequence: usize,
    pub name: String,
    pub payload: Value,
}

/// The content of the databases at the end.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// The titles of all todos, from `main`.
    pub titles: Vec<String>,
    /// The titles of the shared todos, from `main`.
    pub shared: Vec<String>,
    /// All events, from `main`.
    pub events: Vec<Event>,
    /// The request ids of all entries in `audit`.
    pub audited: Vec<String>,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operation,
            fault,
            response,
        } = self;
        write!(f, "{operation:?} with {fault:?} received {response:?}")
    }
}

impl Operation {
    /// Describes what a committed operation stores in `main`.
    fn effect(&self) -> String {
        match self {
            Self::Todo { title } => format!("todo {title}"),
            Self::Share { title, .. } => format!("shared {title}"),
            Self::Create { stream } => format!("created {stream}"),
            Self::Rename { stream, task } => format!("renamed {stream} {task}"),
            Self::Complete { stream } => format!("completed {stream}"),
        }
    }
}

impl Event {
    fn effect(&self) -> String {
        let Self { stream, name, .. } = self;
        match (&**name, self.payload["task"].as_str()) {
            ("renamed", Some(task)) => format!("renamed {stream} {task}"),
            _ => format!("{name} {stream}"),
        }
    }
}

impl Stored {
    /// Counts what operations have stored in `main`, by description.
    fn effects(&self) -> BTreeMap<String, usize> {
        let titles = self.titles.iter().map(|title| format!("todo {title}"));
        let shared = self.shared.iter().map(|title| format!("shared {title}"));
        let events = self.events.iter().map(Event::effect);
        counted(titles.chain(shared).chain(events))
    }
}

fn counted<T: Ord>(all: impl Iterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    for one in all {
        *counts.entry(one).or_default() += 1;
    }
    counts
}

/// How often the effect of a request must be stored. `None` if both once and never are allowed.
pub fn times(response: Option<&Response>) -> Option<usize> {
    match response?.outcome.as_deref() {
        Some("committed") => Some(1),
        Some("unknown" | "partial") => None,
        // No outcome: nothing was outstanding.
        _ => Some(0),
    }
}

/// Counts the requests by the outcome in the response.
pub fn summary(history: &[Entry]) -> BTreeMap<&str, usize> {
    counted(history.iter().map(|entry| match &entry.response {
        Some(response) => response.outcome.as_deref().unwrap_or("no outcome"),
        None => "no response",
    }))
}

/// Returns every contradiction between the responses and the stored data.
pub fn check(history: &[Entry], stored: &Stored) -> Vec<String> {
    let mut found = Vec::new();
    let effects = stored.effects();
    let audited = counted(stored.audited.iter());
    for entry in history {
        let in_main = effects.get(&entry.operation.effect());
        let in_main = in_main.copied().unwrap_or(0);
        let response = entry.response.as_ref();
        let times = times(response);
        if in_main > 1 || times.is_some_and(|times| times != in_main) {
            found.push(format!("{in_main} times in main: {entry}"));
        }
        let Some(response) = response else { continue };
        let outcome = response.outcome.as_deref();
        if (200..300).contains(&response.status) && outcome != Some("committed") {
            found.push(format!("a success that is not committed: {entry}"));
        }
        // Faults of databases and network must not cause a 500, unless the outcome is in doubt.
        let is_doubtful = matches!(outcome, Some("unknown" | "partial"));
        if response.status == 500 && entry.fault.is_empty() && !is_doubtful {
            found.push(format!("a failure without a reason: {entry}"));
        }
        if !matches!(
            outcome,
            None | Some("committed" | "rolled-back" | "unknown" | "partial")
        ) {
            found.push(format!("an outcome that does not exist: {entry}"));
        }
        match &response.request_id {
            Some(id) => {
                let in_audit = audited.get(id).copied().unwrap_or(0);
                if times.is_some_and(|times| times != in_audit) {
                    found.push(format!("{in_audit} times in audit: {entry}"));
                }
                // `partial`: exactly one of the two databases was committed.
                if outcome == Some("partial") && in_main + in_audit != 1 {
                    found.push(format!(
                        "{in_main} times in main, {in_audit} in audit: {entry}"
                    ));
                }
            }
            None => found.push(format!("a response without X-Request-Id: {entry}")),
        }
    }
    let repeated = audited.iter().filter(|(_, count)| **count > 1);
    found.extend(repeated.map(|(id, _)| format!("audited twice: {id}")));
    check_unrequested(history, &effects, &audited, &mut found);
    check_streams(&stored.events, &mut found);
    found
}

/// Finds stored data that no client has requested.
fn check_unrequested(
    history: &[Entry],
    effects: &BTreeMap<String, usize>,
    audited: &BTreeMap<&String, usize>,
    found: &mut Vec<String>,
) {
    let requested = history.iter().map(|entry| entry.operation.effect());
    let requested: BTreeSet<String> = requested.collect();
    let unrequested = effects.keys().filter(|effect| !requested.contains(*effect));
    found.extend(unrequested.map(|effect| format!("no client requested this: {effect}")));

    let responses = history.iter().filter_map(|it| it.response.as_ref());
    let ids: BTreeSet<_> = responses.filter_map(|it| it.request_id.as_ref()).collect();
    let without_response = history.iter().filter(|it| it.response.is_none()).count();
    let unknown = audited.keys().filter(|id| !ids.contains(**id)).count();
    if unknown > without_response {
        found.push(format!(
            "{without_response} requests got no response, but audit has {unknown} unknown request ids"
        ));
    }
}

fn check_streams(events: &[Event], found: &mut Vec<String>) {
    let mut streams: BTreeMap<&String, Vec<usize>> = BTreeMap::new();
    for event in events {
        streams
            .entry(&event.stream)
            .or_default()
            .push(event.sequence);
    }
    for (stream, mut sequences) in streams {
        sequences.sort_unstable();
        if !sequences.iter().copied().eq(1..=sequences.len()) {
            found.push(format!("{stream} is not gapless from 1: {sequences:?}"));
        }
    }
}
