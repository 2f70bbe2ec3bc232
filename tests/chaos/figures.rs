//! Compares both databases with what the clients were told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::plan::Event;
use super::{Atomic, Pair};
use crate::history::checker::{Response, times};

/// One request for a todo, and its response.
#[derive(Debug)]
pub struct Request {
    /// The number of the event that happened meanwhile.
    pub event: usize,
    pub title: String,
    /// `None` if the connection ended without a response.
    pub response: Option<Response>,
}

/// The titles of the requests with a row, once for each row.
#[derive(Debug, Default)]
pub struct Stored {
    pub main: Vec<String>,
    pub audit: Vec<String>,
}

/// The result of a comparison. Requests are named by their titles.
#[derive(Debug, Default)]
pub struct Figures {
    pub requests: usize,
    pub acknowledged: usize,
    pub rolled_back: usize,
    /// Requests whose response said `unknown` or `partial`, or that got no response.
    pub in_doubt: usize,
    /// Stored in one database and not in the other, with the number of the event.
    pub half_done: Vec<(usize, String)>,
    /// How many responses said so.
    pub told_partial: usize,
    /// Acknowledged, but not stored in both databases.
    pub lost: Vec<String>,
    /// Reported as rolled back, but stored.
    pub untrue: Vec<String>,
    /// Stored more than once in a database, or never requested.
    pub surplus: Vec<String>,
    /// Transactions that are still prepared.
    pub prepared: Vec<String>,
}

fn counted(titles: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for title in titles {
        *counts.entry(&**title).or_default() += 1;
    }
    counts
}

/// Compares all requests with what is stored. `prepared` lists the transactions that are still
/// prepared.
pub fn compare(requests: &[Request], stored: &Stored, prepared: Vec<String>) -> Figures {
    let (main, audit) = (counted(&stored.main), counted(&stored.audit));
    let mut figures = Figures {
        requests: requests.len(),
        prepared,
        ..Figures::default()
    };
    for request in requests {
        let rows = |of: &BTreeMap<&str, usize>| of.get(&*request.title).copied().unwrap_or(0);
        let (in_main, in_audit) = (rows(&main), rows(&audit));
        let description = || format!("{in_main} in main, {in_audit} in audit: {request:?}");
        let response = request.response.as_ref();
        let is_success = response.is_some_and(|it| (200..300).contains(&it.status));
        let is_partial = response.is_some_and(|it| it.outcome.as_deref() == Some("partial"));
        match times(response) {
            _ if is_success => figures.acknowledged += 1,
            Some(1) => figures.acknowledged += 1,
            Some(_) => figures.rolled_back += 1,
            None => figures.in_doubt += 1,
        }
        figures.told_partial += usize::from(is_partial);
        if (is_success || times(response) == Some(1)) && (in_main == 0 || in_audit == 0) {
            figures.lost.push(description());
        }
        if !is_success && times(response) == Some(0) && in_main + in_audit > 0 {
            figures.untrue.push(description());
        }
        if (in_main == 0) != (in_audit == 0) {
            figures.half_done.push((request.event, description()));
        }
        if in_main > 1 || in_audit > 1 {
            figures.surplus.push(description());
        }
    }
    let requested: BTreeSet<&str> = requests.iter().map(|it| &*it.title).collect();
    let never_requested = main.keys().chain(audit.keys());
    let never_requested = never_requested.filter(|title| !requested.contains(*title));
    let described = never_requested.map(|title| format!("never requested: {title}"));
    figures.surplus.extend(described);
    figures
}

impl Figures {
    /// Lists what must not be.
    pub fn errors(&self, atomic: Atomic) -> Vec<String> {
        let all = |error: &str, of: &[String]| -> Vec<String> {
            of.iter().map(|it| format!("{error}: {it}")).collect()
        };
        let mut errors = all("acknowledged and lost", &self.lost);
        errors.extend(all("reported as rolled back, but stored", &self.untrue));
        errors.extend(all("too much is stored", &self.surplus));
        errors.extend(all("left prepared", &self.prepared));
        if atomic == Atomic::Yes {
            let half_done = self.half_done.iter();
            errors.extend(half_done.map(|(event, it)| format!("half-done, event {event}: {it}")));
        }
        errors
    }
}

/// Writes the figures, and for each kind of event how often it happened and how many requests were
/// half-done.
pub fn table(pair: &Pair, events: &[Event], happened: &[bool], figures: &Figures) -> String {
    let mut text = String::new();
    let count = |happens: bool| happened.iter().filter(|it| **it == happens).count();
    let mut line = |cells: [&str; 11]| {
        writeln!(
            text,
            "{:<22} {:>9} {:>13} {:>12} {:>9} {:>7} {:>7} {:>10} {:>5} {:>7} {:>9}",
            cells[0],
            cells[1],
            cells[2],
            cells[3],
            cells[4],
            cells[5],
            cells[6],
            cells[7],
            cells[8],
            cells[9],
            cells[10]
        )
        .unwrap();
    };
    line([
        "pair",
        "requests",
        "acknowledged",
        "rolled back",
        "in doubt",
        "events",
        "missed",
        "half-done",
        "lost",
        "untrue",
        "prepared",
    ]);
    line([
        pair.name,
        &figures.requests.to_string(),
        &figures.acknowledged.to_string(),
        &figures.rolled_back.to_string(),
        &figures.in_doubt.to_string(),
        &count(true).to_string(),
        &count(false).to_string(),
        &figures.half_done.len().to_string(),
        &figures.lost.len().to_string(),
        &figures.untrue.len().to_string(),
        &figures.prepared.len().to_string(),
    ]);
    writeln!(
        text,
        "responses that said `partial`: {}",
        figures.told_partial
    )
    .unwrap();

    let mut kinds = BTreeMap::<String, (usize, usize)>::new();
    for (number, event) in events.iter().enumerate().take(happened.len()) {
        let (times, half_done) = kinds.entry(event.kind.to_string()).or_default();
        *times += usize::from(happened[number]);
        *half_done += figures.half_done.iter().filter(|it| it.0 == number).count();
    }
    for (kind, (times, half_done)) in kinds {
        writeln!(
            text,
            "  {kind:<60} {times:>4} times, {half_done:>3} half-done"
        )
        .unwrap();
    }
    text
}

mod tests {
    use super::*;

    fn request(title: &str, response: Option<(u16, &str)>) -> Request {
        Request {
            event: 3,
            title: title.to_owned(),
            response: response.map(|(status, outcome)| Response {
                status,
                outcome: Some(outcome.to_owned()),
                request_id: None,
                id: None,
            }),
        }
    }

    /// Compares one request with rows in `main` and `audit`.
    fn one(response: Option<(u16, &str)>, in_main: usize, in_audit: usize) -> Figures {
        let rows = |count| vec!["one".to_owned(); count];
        let stored = Stored {
            main: rows(in_main),
            audit: rows(in_audit),
        };
        compare(&[request("one", response)], &stored, Vec::new())
    }

    #[test]
    fn a_truthful_run_has_no_errors() {
        for (response, rows) in [
            (Some((201, "committed")), 1),
            (Some((503, "rolled-back")), 0),
            (Some((500, "unknown")), 1),
            (Some((500, "unknown")), 0),
            (None, 1),
            (None, 0),
        ] {
            let figures = one(response, rows, rows);
            assert!(figures.errors(Atomic::Yes).is_empty(), "{figures:?}");
        }
    }

    #[test]
    fn a_missing_row_of_an_acknowledged_request_is_an_error() {
        for (in_main, in_audit) in [(0, 0), (1, 0), (0, 1)] {
            let figures = one(Some((201, "committed")), in_main, in_audit);
            assert_eq!(figures.lost.len(), 1);
            assert!(!figures.errors(Atomic::No).is_empty());
        }
        // A success without an outcome is a promise too.
        assert_eq!(one(Some((201, "unknown")), 0, 0).lost.len(), 1);
    }

    #[test]
    fn a_row_of_a_request_that_was_reported_as_rolled_back_is_an_error() {
        for (in_main, in_audit) in [(1, 1), (1, 0), (0, 1)] {
            let figures = one(Some((503, "rolled-back")), in_main, in_audit);
            assert_eq!(figures.untrue.len(), 1);
            assert!(!figures.errors(Atomic::No).is_empty());
        }
    }

    #[test]
    fn a_half_done_request_is_an_error_only_if_the_pair_is_atomic() {
        for response in [None, Some((500, "unknown")), Some((500, "partial"))] {
            for (in_main, in_audit) in [(1, 0), (0, 1)] {
                let figures = one(response, in_main, in_audit);
                assert_eq!(figures.half_done.len(), 1);
                assert!(figures.errors(Atomic::No).is_empty(), "{figures:?}");
                assert_eq!(figures.errors(Atomic::Yes).len(), 1, "{figures:?}");
            }
        }
    }

    #[test]
    fn more_rows_than_requests_are_an_error() {
        assert_eq!(one(None, 2, 1).errors(Atomic::No).len(), 1);
        let stored = Stored {
            main: vec!["other".to_owned()],
            audit: Vec::new(),
        };
        let figures = compare(&[], &stored, Vec::new());
        assert_eq!(
            figures.errors(Atomic::No),
            ["too much is stored: never requested: other"]
        );
    }

    #[test]
    fn a_transaction_that_is_left_prepared_is_an_error() {
        let figures = compare(&[], &Stored::default(), vec!["main: rtx".to_owned()]);
        assert_eq!(figures.errors(Atomic::No), ["left prepared: main: rtx"]);
    }
}
