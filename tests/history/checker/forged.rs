//! Tests of the checker with forged histories. It must detect each of them.

use rocket::serde::json::json;

use super::*;

fn entry(operation: Operation, status: u16, outcome: &str) -> Entry {
    let id = match &operation {
        Operation::Todo { title: id } | Operation::Rename { task: id, .. } => id.clone(),
        Operation::Share { title, .. } => format!("share {title}"),
        Operation::Create { stream } => format!("create {stream}"),
        Operation::Complete { stream } => format!("complete {stream}"),
    };
    let response = Response {
        status,
        outcome: Some(outcome.into()),
        request_id: Some(format!("id of {id}")),
        id: None,
    };
    Entry {
        operation,
        fault: "",
        response: Some(response),
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

/// A correct history: some requests are committed, some rolled back, and some have an unknown
/// outcome.
fn true_history() -> (Vec<Entry>, Stored) {
    let mut without_response = todo("lost, stored", 0, "");
    without_response.response = None;
    let stream = || "h0".to_owned();
    let history = vec![
        todo("a", 201, "committed"),
        todo("b", 201, "committed"),
        todo("undone", 502, "rolled-back"),
        todo("unknown", 500, "unknown"),
        without_response,
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

/// Forges the true history. The first detected contradiction must contain `expected`.
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
fn a_true_history_is_accepted() {
    let (history, stored) = true_history();
    assert_eq!(check(&history, &stored), [""; 0]);
    assert_eq!(summary(&history)["committed"], 7);
    assert_eq!(summary(&history)["no response"], 1);
}

#[test]
fn a_lost_row_is_detected() {
    forged("0 times in main", |_, stored| {
        stored.titles.retain(|it| it != "b")
    });
    forged("0 times in main", |_, stored| stored.shared.clear());
    forged("0 times in audit", |_, stored| {
        stored.audited.retain(|it| it != "id of b")
    });
}

#[test]
fn a_duplicate_row_is_detected() {
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
fn a_row_that_exists_after_a_rollback_is_detected() {
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
fn a_false_partial_outcome_is_detected() {
    forged("1 times in main, 1 in audit", |_, stored| {
        stored.audited.push("id of half".into());
    });
    forged("0 times in main, 0 in audit", |history, _| {
        history.push(rename("nothing", 500, "partial"));
    });
}

#[test]
fn a_stream_with_gaps_is_detected() {
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
fn a_lost_event_is_detected() {
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
fn a_success_without_a_commit_is_detected() {
    for outcome in ["rolled-back", "unknown"] {
        forged("a success", |history, _| {
            history.push(todo("new", 201, outcome));
        });
    }
    forged("an outcome", |history, _| {
        history.push(todo("new", 502, "maybe"))
    });
}

#[test]
fn a_failure_without_a_reason_is_detected() {
    forged("without a reason", |history, _| {
        history.push(todo("new", 500, "rolled-back"));
    });
    let (mut history, stored) = true_history();
    let mut failed = todo("new", 500, "rolled-back");
    failed.fault = "panic";
    history.push(failed);
    assert_eq!(check(&history, &stored), [""; 0]);
}

#[test]
fn data_that_no_client_requested_is_detected() {
    forged("no client requested this: todo stray", |_, stored| {
        stored.titles.push("stray".into())
    });
    forged("no client requested this: shared stray", |_, stored| {
        stored.shared.push("stray".into())
    });
    forged("no client requested this: renamed h0 stray", |_, stored| {
        stored.events.push(event(6, "renamed", "stray"));
    });
    forged("2 unknown request ids", |_, stored| {
        stored.audited.push("another's".into())
    });
}
