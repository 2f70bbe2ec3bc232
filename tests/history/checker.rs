//! Whether a final state can be explained by what the clients were told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Titles and tasks are unique in a history.
#[derive(Debug, Clone)]
pub enum Operation {
    Todo { title: String },
    Rename { stream: String, task: String },
}

#[derive(Debug, Clone)]
pub struct Answered {
    pub status: u16,
    pub outcome: Option<String>,
    pub request_id: Option<String>,
}

/// One request; `answered` is `None` if its connection ended without an answer.
#[derive(Debug, Clone)]
pub struct Entry {
    pub operation: Operation,
    pub fault: &'static str,
    pub answered: Option<Answered>,
}

/// What is in the databases at the end.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// In `main`.
    pub titles: Vec<String>,
    /// Stream, sequence and task, in `main`. The first of a stream is no request of the history.
    pub events: Vec<(String, usize, String)>,
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
    let mut counts = BTreeMap::new();
    for entry in history {
        let told = match &entry.answered {
            Some(answered) => answered.outcome.as_deref().unwrap_or("no outcome"),
            None => "no answer",
        };
        *counts.entry(told).or_default() += 1;
    }
    counts
}

/// Every contradiction between what was told and what is stored.
pub fn check(history: &[Entry], stored: &Stored) -> Vec<String> {
    let mut found = Vec::new();
    let mut titles = BTreeSet::new();
    let mut tasks = BTreeSet::new();
    for entry in history {
        let in_main = match &entry.operation {
            Operation::Todo { title } => {
                titles.insert(title);
                stored.titles.iter().filter(|it| *it == title).count()
            }
            Operation::Rename { stream, task } => {
                tasks.insert((stream, task));
                let events = stored.events.iter();
                events.filter(|it| (&it.0, &it.2) == (stream, task)).count()
            }
        };
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
                let lines = stored.audited.iter().filter(|it| *it == id).count();
                if times.is_some_and(|times| times != lines) {
                    found.push(format!("{lines} times in audit: {entry}"));
                }
            }
            None => found.push(format!("an answer without X-Request-Id: {entry}")),
        }
    }
    let strangers = stored.titles.iter().filter(|it| !titles.contains(it));
    found.extend(strangers.map(|title| format!("nobody asked for the todo {title}")));
    let mut lines = BTreeSet::new();
    let repeated = stored.audited.iter().filter(|id| !lines.insert(*id));
    found.extend(repeated.map(|id| format!("audited twice: {id}")));
    check_streams(&tasks, stored, &mut found);
    found
}

fn check_streams(tasks: &BTreeSet<(&String, &String)>, stored: &Stored, found: &mut Vec<String>) {
    let mut streams: BTreeMap<&String, Vec<usize>> = BTreeMap::new();
    for (stream, sequence, task) in &stored.events {
        streams.entry(stream).or_default().push(*sequence);
        if *sequence != 1 && !tasks.contains(&(stream, task)) {
            found.push(format!(
                "nobody asked {stream} for its event {sequence}, {task}"
            ));
        }
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
    use super::*;

    fn entry(operation: Operation, status: u16, outcome: &str) -> Entry {
        let (Operation::Todo { title: id } | Operation::Rename { task: id, .. }) = &operation;
        let answered = Answered {
            status,
            outcome: Some(outcome.into()),
            request_id: Some(format!("id of {id}")),
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

    /// Two acknowledged todos and renames, one of each rolled back, and some that nobody knows of.
    fn true_history() -> (Vec<Entry>, Stored) {
        let mut unanswered = todo("lost, stored", 0, "");
        unanswered.answered = None;
        let history = vec![
            todo("a", 201, "committed"),
            todo("b", 201, "committed"),
            todo("undone", 502, "rolled-back"),
            todo("unknown", 500, "unknown"),
            unanswered,
            rename("c", 200, "committed"),
            rename("d", 200, "committed"),
            rename("undone rename", 409, "rolled-back"),
            rename("half", 500, "partial"),
        ];
        let event = |sequence, task: &str| ("h0".to_owned(), sequence, task.to_owned());
        let stored = Stored {
            titles: ["a", "b", "lost, stored"].map(Into::into).into(),
            events: vec![
                event(1, "first"),
                event(2, "d"),
                event(3, "half"),
                event(4, "c"),
            ],
            audited: ["id of a", "id of b", "id of c", "id of d", "the lost one's"]
                .map(Into::into)
                .into(),
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
        assert_eq!(summary(&history)["committed"], 4);
        assert_eq!(summary(&history)["no answer"], 1);
    }

    #[test]
    fn a_lost_row_is_found() {
        forged("0 times in main", |_, stored| {
            stored.titles.retain(|it| it != "b")
        });
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
        forged("1 times in audit", |_, stored| {
            stored.audited.push("id of undone".into())
        });
        forged("1 times in main", |_, stored| {
            stored.events.push(("h0".into(), 5, "undone rename".into()));
        });
    }

    #[test]
    fn a_stream_that_is_not_gapless_is_found() {
        forged("not gapless", |_, stored| stored.events[3].1 = 5);
        forged("not gapless", |_, stored| stored.events[3].1 = 3);
        forged("not gapless", |_, stored| drop(stored.events.remove(0)));
    }

    #[test]
    fn a_lost_rename_is_found() {
        forged("0 times in main", |_, stored| {
            stored.events[3].2 = "half".into()
        });
        forged("0 times in main", |_, stored| drop(stored.events.pop()));
        forged("0 times in main", |_, stored| {
            stored.events[3].0 = "h1".into()
        });
    }

    #[test]
    fn a_success_without_commit_is_found() {
        for outcome in ["rolled-back", "unknown", "partial"] {
            forged("a success", |history, _| {
                history.push(todo("new", 201, outcome));
            });
        }
        forged("an outcome", |history, _| {
            history.push(todo("new", 500, "maybe"))
        });
    }

    #[test]
    fn rows_that_nobody_asked_for_are_found() {
        forged("nobody asked", |_, stored| {
            stored.titles.push("stray".into())
        });
        forged("nobody asked", |_, stored| {
            stored.events.push(("h0".into(), 5, "stray".into()));
        });
    }
}
