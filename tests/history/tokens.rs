//! Checks the fencing tokens that `GET /leases` shows during a history: they increase for each key.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use rocket::serde::json::Value;

/// The uncertainty of an acquisition time, in microseconds. Times are truncated to milliseconds
/// twice, at the acquisition and at the query, and the clocks of the test and of the database do
/// not tick at the same moment.
const UNCERTAINTY: i64 = 3_000;

/// The fault `expire-lease` stores this name instead of the holder's. It acquires no lease.
const FORGED: &str = "expire-lease";

/// When a lease was acquired, in microseconds since the start of the history. Both bounds are
/// inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Acquired {
    earliest: i64,
    latest: i64,
}

/// Every lease that was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// All leases by key and fencing token. The string is the column `token`, which identifies the
    /// holder.
    leases: BTreeMap<(String, i64), (String, Acquired)>,
    found: Vec<String>,
    /// How many responses were recorded.
    pub polls: usize,
}

impl Seen {
    /// Records the leases in one response. The request was sent and the response received at these
    /// times since the start of the history.
    pub fn record(&mut self, rows: &[Value], sent: Duration, received: Duration) {
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap();
        self.polls += 1;
        for row in rows {
            let name = row["token"].as_str().unwrap();
            let age = row["age_ms"].as_i64().unwrap() * 1_000;
            let acquired = Acquired {
                earliest: micros(sent) - age - UNCERTAINTY,
                latest: micros(received) - age + UNCERTAINTY,
            };
            let key = row["key"].as_str().unwrap();
            let number = row["fencing_token"].as_i64().unwrap();
            if name != FORGED {
                self.lease(key, number, name, acquired);
            }
        }
    }

    fn lease(&mut self, key: &str, number: i64, name: &str, acquired: Acquired) {
        match self.leases.entry((key.to_owned(), number)) {
            Entry::Vacant(entry) => drop(entry.insert((name.to_owned(), acquired))),
            Entry::Occupied(mut entry) => {
                let (known, span) = entry.get_mut();
                if known != name {
                    self.found.push(format!(
                        "two leases of {key} have the fencing token {number}: {known} and {name}"
                    ));
                }
                span.earliest = span.earliest.max(acquired.earliest);
                span.latest = span.latest.min(acquired.latest);
            }
        }
    }

    /// Returns how many leases were seen.
    pub fn leases(&self) -> usize {
        self.leases.len()
    }

    /// Returns an error for each pair of leases of one key where the later lease does not have the
    /// greater fencing token.
    pub fn check(mut self) -> Vec<String> {
        /// Key, token and acquisition of the last acquired lease among those with smaller tokens.
        type Last<'a> = (&'a str, i64, Acquired);

        let mut last: Option<Last<'_>> = None;
        for ((key, number), (_, acquired)) in &self.leases {
            let lower = last.filter(|last| last.0 == key);
            if let Some((_, before, later)) = lower
                && later.earliest > acquired.latest
            {
                self.found.push(format!(
                    "a lease of {key} has the fencing token {before}, {later:?}, and an earlier one had {number}, {acquired:?}"
                ));
            }
            if lower.is_none_or(|lower| lower.2.earliest < acquired.earliest) {
                last = Some((key, *number, *acquired));
            }
        }
        self.found
    }
}

#[cfg(test)]
mod tests {
    use rocket::serde::json::json;

    use super::*;

    /// Records a response that took 2 ms, sent at `now` (ms). Each lease has key, name, fencing
    /// token and age in ms.
    fn record(seen: &mut Seen, now: u64, leases: &[(&str, &str, i64, i64)]) {
        let rows = leases.iter().map(|(key, name, number, age)| {
            json!({ "key": key, "token": name, "fencing_token": number, "age_ms": age })
        });
        let rows: Vec<Value> = rows.collect();
        let now = Duration::from_millis(now);
        seen.record(&rows, now, now + Duration::from_millis(2));
    }

    fn true_leases() -> Seen {
        let mut seen = Seen::default();
        record(&mut seen, 1_000, &[("a", "x", 5, 10), ("b", "y", 9, 900)]);
        record(&mut seen, 1_050, &[("a", "x", 5, 60)]);
        record(&mut seen, 1_055, &[("a", "expire-lease", 5, 65)]);
        record(&mut seen, 1_100, &[("a", "z", 8, 20), ("b", "w", 12, 1)]);
        seen
    }

    fn forged(expected: &str, now: u64, lease: (&str, &str, i64, i64)) {
        let mut seen = true_leases();
        record(&mut seen, now, &[lease]);
        let found = seen.check();
        let is_found = found.len() == 1 && found[0].contains(expected);
        assert!(is_found, "{expected}: {found:?}");
    }

    #[test]
    fn increasing_tokens_are_accepted() {
        let seen = true_leases();
        assert_eq!((seen.polls, seen.leases()), (4, 4));
        assert_eq!(seen.check(), [""; 0]);
    }

    /// A crash of the server may bring back the row of a lease that has ended. It is not a new
    /// lease.
    #[test]
    fn an_old_lease_that_reappears_is_accepted() {
        let mut seen = true_leases();
        record(&mut seen, 1_200, &[("a", "x", 5, 210)]);
        assert_eq!(seen.check(), [""; 0]);
    }

    #[test]
    fn leases_with_an_uncertain_order_are_accepted() {
        let mut seen = true_leases();
        record(&mut seen, 1_101, &[("a", "v", 7, 21)]);
        assert_eq!(seen.check(), [""; 0]);
    }

    #[test]
    fn a_later_lease_with_a_smaller_token_is_detected() {
        forged("an earlier one had 8", 1_200, ("a", "v", 7, 20));
        forged("an earlier one had 5", 1_200, ("a", "v", 4, 130));
        forged("an earlier one had 12", 1_200, ("b", "v", 10, 20));
    }

    #[test]
    fn a_token_that_is_issued_twice_is_detected() {
        forged("two leases", 1_200, ("a", "v", 8, 120));
    }
}
