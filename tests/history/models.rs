//! Checks that the list and the snapshots follow from the events.

use std::collections::BTreeMap;

use rocket::serde::json::{Value, json};

use super::checker::Event;

/// A row of `todo_list`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub id: String,
    pub user_id: String,
    pub task: String,
    pub completed: bool,
    pub version: usize,
}

/// A row of `aggregate_snapshots`.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub stream: String,
    /// The sequence number of the last event in the snapshot.
    pub sequence: usize,
    pub state: Value,
}

/// Computes the state after these events, in order, in the format of a snapshot. The service's own
/// code is not used here because it may be wrong.
fn fold<'a>(events: impl Iterator<Item = &'a Event>) -> Value {
    let mut state = json!({ "user_id": "", "task": "", "completed": false });
    for event in events {
        match event.name.as_str() {
            "created" => {
                state["user_id"] = event.payload["user_id"].clone();
                state["task"] = event.payload["task"].clone();
            }
            "renamed" => state["task"] = event.payload["task"].clone(),
            "completed" => state["completed"] = Value::Bool(true),
            _ => state["no such event"] = event.name.as_str().into(),
        }
    }
    state
}

/// Returns every contradiction between the events and the data that is derived from them.
pub fn check(events: &[Event], listed: &[Listed], snapshots: &[Snapshot]) -> Vec<String> {
    let mut found = Vec::new();
    let mut streams: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    for event in events {
        streams.entry(&event.stream).or_default().push(event);
    }
    for events in streams.values_mut() {
        events.sort_by_key(|event| event.sequence);
    }
    for (id, events) in &streams {
        let state = fold(events.iter().copied());
        let text = |name: &str| state[name].as_str().unwrap_or_default().to_owned();
        let expected = Listed {
            id: (*id).to_owned(),
            user_id: text("user_id"),
            task: text("task"),
            completed: state["completed"] == true,
            version: events.len(),
        };
        let entries: Vec<&Listed> = listed.iter().filter(|entry| entry.id == *id).collect();
        if entries != [&expected] {
            found.push(format!("the list has {entries:?} instead of {expected:?}"));
        }
    }
    let unexpected = listed.iter().filter(|it| !streams.contains_key(&*it.id));
    found.extend(unexpected.map(|entry| format!("listed without an event: {entry:?}")));
    for snapshot in snapshots {
        let events = streams.get(&*snapshot.stream);
        let events = events.into_iter().flatten().copied();
        let before: Vec<&Event> = events.take(snapshot.sequence).collect();
        let expected = fold(before.iter().copied());
        if before.len() != snapshot.sequence || snapshot.state != expected {
            found.push(format!("{snapshot:?} should be {expected}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(sequence: usize, name: &str, payload: Value) -> Event {
        Event {
            stream: "h0".into(),
            sequence,
            name: name.into(),
            payload,
        }
    }

    fn events() -> Vec<Event> {
        vec![
            event(1, "created", json!({ "user_id": "ann", "task": "first" })),
            event(2, "renamed", json!({ "task": "second" })),
            event(3, "completed", json!({})),
        ]
    }

    fn entry() -> Listed {
        Listed {
            id: "h0".into(),
            user_id: "ann".into(),
            task: "second".into(),
            completed: true,
            version: 3,
        }
    }

    fn snapshot() -> Snapshot {
        Snapshot {
            stream: "h0".into(),
            sequence: 2,
            state: json!({ "user_id": "ann", "task": "second", "completed": false }),
        }
    }

    /// Forges an entry of the list or a snapshot, which the checker must detect.
    fn forged(forge: impl FnOnce(&mut Vec<Listed>, &mut Snapshot), expected: &str) {
        let (mut listed, mut snapshot) = (vec![entry()], snapshot());
        forge(&mut listed, &mut snapshot);
        let found = check(&events(), &listed, &[snapshot]);
        let is_found = found.len() == 1 && found[0].contains(expected);
        assert!(is_found, "{expected}: {found:?}");
    }

    #[test]
    fn a_read_model_that_follows_from_the_events_is_accepted() {
        assert_eq!(check(&events(), &[entry()], &[snapshot()]), [""; 0]);
    }

    #[test]
    fn a_read_model_that_differs_from_the_events_is_detected() {
        forged(|listed, _| listed[0].task = "first".into(), "the list has");
        forged(|listed, _| listed[0].completed = false, "the list has");
        forged(|listed, _| listed[0].version = 2, "the list has");
        forged(|listed, _| listed[0].user_id = "bob".into(), "the list has");
    }

    #[test]
    fn a_missing_or_extra_entry_is_detected() {
        forged(|listed, _| listed.clear(), "the list has []");
        forged(|listed, _| listed.push(entry()), "the list has");
        forged(
            |listed, _| {
                listed.push(Listed {
                    id: "undone".into(),
                    ..entry()
                });
            },
            "without an event",
        );
    }

    #[test]
    fn a_snapshot_with_another_state_is_detected() {
        forged(|_, it| it.state["task"] = "first".into(), "should be");
        forged(|_, it| it.sequence = 1, "should be");
        forged(|_, it| it.sequence = 4, "should be");
        forged(|_, it| it.stream = "undone".into(), "should be");
    }
}
