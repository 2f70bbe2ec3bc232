//! Whether a final state can be explained by what the clients were told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rocket::serde::json::Value;

/// Titles, tasks and new streams are unique in a history; a todo is shared and a stream completed
/// once at most.
#[derive(Debug, Clone)]
pub enum Operation {
    Todo { title: String },
    Share { id: i64, title: String },
    Create { stream: String },
    Rename { stream: String, task: String },
    Complete { stream: String },
}

#[derive(Debug, Clone)]
pub struct Answered {
    pub status: u16,
    pub outcome: Option<String>,
    pub request_id: Option<String>,
    /// Of a new todo.
    pub id: Option<i64>,
}

/// One request; `answered` is `None` if its connection ended without an answer.
#[derive(Debug, Clone)]
pub struct Entry {
    pub operation: Operation,
    pub fault: &'static str,
    pub answered: Option<Answered>,
}

/// A row of `aggregate_events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub stream: String,
    pub sequence: usize,
    pub name: String,
    pub payload: Value,
}

/// What is in the databases at the end.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// In `main`.
    pub titles: Vec<String>,
    /// The titles of those that are shared.
    pub shared: Vec<String>,
    /// In `main`.
    pub events: Vec<Event>,
    /// The ids of the requests that `audit` has a line of.
    pub audited: Vec<String>,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operation,
            fault,
            answered,
        } = self;
        write!(f, "{operation:?} with {fault:?} was told {answered:?}")
    }
}

impl Operation {
    /// What it leaves in `main`.
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
    /// What requests have left in `main`.
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

/// How often something must be stored; `None` if once and never are both right.
fn times(answered: Option<&Answered>) -> Option<usize> {
    match answered?.outcome.as_deref() {
        Some("committed") => Some(1),
        Some("unknown" | "partial") => None,
        // Without an outcome nothing was outstanding.
        _ => Some(0),
    }
}

/// How many requests were told each outcome.
pub fn summary(history: &[Entry]) -> BTreeMap<&str, usize> {
    counted(history.iter().map(|entry| match &entry.answered {
        Some(answered) => answered.outcome.as_deref().unwrap_or("no outcome"),
        None => "no answer",
    }))
}

/// Every contradiction between what was told and what is stored.
pub fn check(history: &[Entry], stored: &Stored) -> Vec<String> {
    let mut found = Vec::new();
    let effects = stored.effects();
    let audited = counted(stored.audited.iter());
    for entry in history {
        let in_main = effects.get(&entry.operation.effect());
        let in_main = in_main.copied().unwrap_or(0);
        let answered = entry.answered.as_ref();
        let times = times(answered);
        if in_main > 1 || times.is_some_and(|times| times != in_main) {
            found.push(format!("{in_main} times in main: {entry}"));
        }
        let Some(answered) = answered else { continue };
        let outcome = answered.outcome.as_deref();
        if (200..300).contains(&answered.status) && outcome != Some("committed") {
            found.push(format!("a success that is not committed: {entry}"));
        }
        if !matches!(
            outcome,
            None | Some("committed" | "rolled-back" | "unknown" | "partial")
        ) {
            found.push(format!("an outcome that does not exist: {entry}"));
        }
        match &answered.request_id {
            Some(id) => {
                let lines = audited.get(id).copied().unwrap_or(0);
                if times.is_some_and(|times| times != lines) {
                    found.push(format!("{lines} times in audit: {entry}"));
                }
                // One of the two was committed, and the other was not.
                if outcome == Some("partial") && in_main + lines != 1 {
                    found.push(format!(
                        "{in_main} times in main, {lines} in audit: {entry}"
                    ));
                }
            }
            None => found.push(format!("an answer without X-Request-Id: {entry}")),
        }
    }
    let repeated = audited.iter().filter(|(_, lines)| **lines > 1);
    found.extend(repeated.map(|(id, _)| format!("audited twice: {id}")));
    check_strangers(history, &effects, &audited, &mut found);
    check_streams(&stored.events, &mut found);
    found
}

/// What nobody asked for.
fn check_strangers(
    history: &[Entry],
    effects: &BTreeMap<String, usize>,
    audited: &BTreeMap<&String, usize>,
    found: &mut Vec<String>,
) {
    let asked = history.iter().map(|entry| entry.operation.effect());
    let asked: BTreeSet<String> = asked.collect();
    let strangers = effects.keys().filter(|effect| !asked.contains(*effect));
    found.extend(strangers.map(|effect| format!("nobody asked for this: {effect}")));

    let told = history.iter().filter_map(|it| it.answered.as_ref());
    let told: BTreeSet<_> = told.filter_map(|it| it.request_id.as_ref()).collect();
    let unanswered = history.iter().filter(|it| it.answered.is_none()).count();
    let strangers = audited.keys().filter(|id| !told.contains(**id)).count();
    if strangers > unanswered {
        found.push(format!(
            "{unanswered} requests got no answer, and {strangers} that nobody knows of are audited"
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

#[cfg(test)]
mod tests {
    use rocket::serde::json::json;

    use super::*;

    fn entry(operation: Operation, status: u16, outcome: &str) -> Entry {
        let id = match &operation {
            Operation::Todo { title: id } | Operation::Rename { task: id, .. } => id.clone(),
            Operation::Share { title, .. } => format!("share {title}"),
            Operation::Create { stream } => format!("create {stream}"),
            Operation::Complete { stream } => format!("complete {stream}"),
        };
        let answered = Answered {
            status,
            outcome: Some(outcome.into()),
            request_id: Some(format!("id of {id}")),
            id: None,
        };
        Entry {
            operation,
            fault: "",
            answered: Some(answered),
        }
    }

    fn todo(title: &str, status: u16, outcome: &str) -> Entry {
        let title = title.into();
        entry(Operation::Todo { title }, status, outcome)
    }

    fn rename(task: &str, status: u16, outcome: &str) -> Entry {
        let (stream, task) = ("h0".into(), task.into());
        entry(Operation::Rename { stream, task }, status, outcome)
    }

    fn share(title: &str, status: u16, outcome: &str) -> Entry {
        let (id, title) = (1, title.into());
        entry(Operation::Share { id, title }, status, outcome)
    }

    fn event(sequence: usize, name: &str, task: &str) -> Event {
        Event {
            stream: "h0".to_owned(),
            sequence,
            name: name.to_owned(),
            payload: json!({ "task": task }),
        }
    }

    /// Some acknowledged, some rolled back, and some that nobody knows of.
    fn true_history() -> (Vec<Entry>, Stored) {
        let mut unanswered = todo("lost, stored", 0, "");
        unanswered.answered = None;
        let stream = || "h0".to_owned();
        let history = vec![
            todo("a", 201, "committed"),
            todo("b", 201, "committed"),
            todo("undone", 502, "rolled-back"),
            todo("unknown", 500, "unknown"),
            unanswered,
            share("a", 200, "committed"),
            share("b", 504, "rolled-back"),
            entry(Operation::Create { stream: stream() }, 201, "committed"),
            rename("c", 200, "committed"),
            rename("d", 200, "committed"),
            rename("undone rename", 409, "rolled-back"),
            rename("half", 500, "partial"),
            entry(Operation::Complete { stream: stream() }, 200, "committed"),
        ];
        let audited = "a, b, share a, create h0, c, d, complete h0".split(", ");
        let stored = Stored {
            titles: ["a", "b", "lost, stored"].map(Into::into).into(),
            shared: vec!["a".into()],
            events: vec![
                event(1, "created", "first"),
                event(2, "renamed", "d"),
                event(3, "renamed", "half"),
                event(4, "renamed", "c"),
                event(5, "completed", ""),
            ],
            audited: audited
                .map(|it| format!("id of {it}"))
                .chain(["the lost one's".into()])
                .collect(),
        };
        (history, stored)
    }

    /// Forges the true history; `expected` must be in the first finding.
    fn forged(expected: &str, forge: impl FnOnce(&mut Vec<Entry>, &mut Stored)) {
        let (mut history, mut stored) = true_history();
        forge(&mut history, &mut stored);
        let found = check(&history, &stored);
        assert!(
            found.first().is_some_and(|first| first.contains(expected)),
            "{expected}: {found:?}"
        );
    }

    #[test]
    fn a_true_history_is_believed() {
        let (history, stored) = true_history();
        assert_eq!(check(&history, &stored), [""; 0]);
        assert_eq!(summary(&history)["committed"], 7);
        assert_eq!(summary(&history)["no answer"], 1);
    }

    #[test]
    fn a_lost_row_is_found() {
        forged("0 times in main", |_, stored| {
            stored.titles.retain(|it| it != "b")
        });
        forged("0 times in main", |_, stored| stored.shared.clear());
        forged("0 times in audit", |_, stored| {
            stored.audited.retain(|it| it != "id of b")
        });
    }

    #[test]
    fn a_doubled_row_is_found() {
        forged("2 times in main", |_, stored| {
            stored.titles.push("a".into())
        });
        forged("2 times in audit", |_, stored| {
            stored.audited.push("id of a".into())
        });
        forged("2 times in main", |_, stored| {
            stored.titles.push("lost, stored".into())
        });
        forged("audited twice", |_, stored| {
            stored.audited.push("the lost one's".into())
        });
    }

    #[test]
    fn a_rolled_back_row_that_is_there_is_found() {
        forged("1 times in main", |_, stored| {
            stored.titles.push("undone".into())
        });
        forged("1 times in main", |_, stored| {
            stored.shared.push("b".into())
        });
        forged("1 times in audit", |_, stored| {
            stored.audited.push("id of undone".into())
        });
        forged("1 times in main", |_, stored| {
            stored.events.push(event(6, "renamed", "undone rename"));
        });
    }

    #[test]
    fn a_partial_that_is_none_is_found() {
        forged("1 times in main, 1 in audit", |_, stored| {
            stored.audited.push("id of half".into());
        });
        forged("0 times in main, 0 in audit", |history, _| {
            history.push(rename("nothing", 500, "partial"));
        });
    }

    #[test]
    fn a_stream_that_is_not_gapless_is_found() {
        forged("not gapless", |_, stored| stored.events[4].sequence = 6);
        forged("not gapless", |_, stored| stored.events[4].sequence = 4);
        forged("not gapless", |_, stored| {
            stored
                .events
                .iter_mut()
                .for_each(|event| event.sequence += 1);
        });
    }

    #[test]
    fn a_lost_event_is_found() {
        for index in [0, 1, 3, 4] {
            forged("0 times in main", |_, stored| {
                stored.events.remove(index);
            });
        }
        forged("0 times in main", |_, stored| {
            stored.events[3] = event(4, "renamed", "half");
        });
        forged("0 times in main", |_, stored| {
            stored.events[3].stream = "h1".into()
        });
    }

    #[test]
    fn a_success_without_commit_is_found() {
        for outcome in ["rolled-back", "unknown"] {
            forged("a success", |history, _| {
                history.push(todo("new", 201, outcome));
            });
        }
        forged("an outcome", |history, _| {
            history.push(todo("new", 500, "maybe"))
        });
    }

    #[test]
    fn what_nobody_asked_for_is_found() {
        forged("nobody asked for this: todo stray", |_, stored| {
            stored.titles.push("stray".into())
        });
        forged("nobody asked for this: shared stray", |_, stored| {
            stored.shared.push("stray".into())
        });
        forged("nobody asked for this: renamed h0 stray", |_, stored| {
            stored.events.push(event(6, "renamed", "stray"));
        });
        forged("2 that nobody knows of", |_, stored| {
            stored.audited.push("another's".into())
        });
    }
}
