//! The order in which the fairings of a service run, read out of Rocket's `Debug`.

use std::sync::OnceLock;

use rocket::{Orbit, Phase, Rocket};

use crate::db::AttachedDatabases;

/// `Settlement`, which sees requests, as Rocket lists it.
pub(in crate::tx) const OF_REQUESTS: &str = "Settlement";

/// Its half that sees responses.
pub(in crate::tx) const OF_RESPONSES: &str = "Settlement of responses";

/// What was found out about the order of fairings. Managed by `Settlement`.
#[derive(Default)]
pub(in crate::tx) struct FairingOrder {
    runs_later: OnceLock<Option<String>>,
    knows_clients: OnceLock<bool>,
}

impl FairingOrder {
    /// Whether a response fairing runs after the settlement. Says so in the log, once.
    pub(in crate::tx) fn settles_too_early<P: Phase>(&self, rocket: &Rocket<P>) -> bool {
        let later = self.runs_later.get_or_init(|| {
            let later = what_runs_later(rocket);
            if let Some(later) = &later {
                tracing::error!("{later}");
            }
            later
        });
        later.is_some()
    }

    /// Whether the address of each client was noted before any other fairing could change it. Says
    /// in the log, once, why not.
    ///
    /// Rocket runs request fairings in the order in which they were attached. The first one of this
    /// library, a database or `Settlement`, notes the address.
    pub(in crate::tx) fn knows_clients(&self, rocket: &Rocket<Orbit>) -> bool {
        *self.knows_clients.get_or_init(|| knows_clients(rocket))
    }
}

fn knows_clients(rocket: &Rocket<Orbit>) -> bool {
    let Some(fairings) = fairings(&format!("{rocket:?}"), "request") else {
        tracing::warn!(
            "this version of Rocket does not show its fairings, one of which may change the \
             addresses of clients: the connection of a client that takes nothing of a body which \
             holds a `Read` is not closed"
        );
        return false;
    };
    let attached = rocket.state::<AttachedDatabases>();
    let is_ours =
        |name: &String| name == OF_REQUESTS || attached.is_some_and(|attached| attached.has(name));
    let earlier: Vec<String> = fairings
        .iter()
        .take_while(|name| !is_ours(name))
        .map(|name| format!("`{name}`"))
        .collect();
    if !earlier.is_empty() {
        tracing::warn!(
            "the request fairing {} runs before those of `rocket_tx`, and could change the \
             addresses of clients: the connection of a client that takes nothing of a body which \
             holds a `Read` is not closed; attach the databases, or `Settlement`, first",
            earlier.join(", ")
        );
    }
    earlier.is_empty()
}

/// Why responses are not settled last, in words for the log.
fn what_runs_later<P: Phase>(rocket: &Rocket<P>) -> Option<String> {
    // It is shown there alone.
    let Some(fairings) = fairings(&format!("{rocket:?}"), "response") else {
        tracing::warn!(
            "this version of Rocket does not show its fairings: take care that none which changes \
             responses is attached by a stage that another stage attached"
        );
        return None;
    };
    let ours = fairings.iter().rposition(|name| name == OF_RESPONSES)?;
    let later: Vec<String> = fairings[ours + 1..]
        .iter()
        .map(|name| format!("`{name}`"))
        .collect();
    (!later.is_empty()).then(|| {
        format!(
            "the response fairing {} would run after `Settlement`, and could change what clients are \
             told of transactions; attach it in the launch code, or in a stage that the launch code \
             attaches",
            later.join(", ")
        )
    })
}

/// The names of the fairings of one kind in the order in which they run, out of Rocket's `Debug`.
fn fairings(debug: &str, wanted: &str) -> Option<Vec<String>> {
    let (_, mut rest) = debug.split_once("fairings: Fairings { ")?;
    for kind in ["launch", "liftoff", "request", "response"] {
        let list = rest.strip_prefix(kind)?.strip_prefix(": [")?;
        let found;
        (found, rest) = names(list)?;
        if kind == wanted {
            return Some(found);
        }
        rest = rest.strip_prefix(", ")?;
    }
    None
}

/// The strings in a list, and what comes after its end.
fn names(list: &str) -> Option<(Vec<String>, &str)> {
    let mut names = Vec::new();
    let mut name: Option<String> = None;
    let mut characters = list.char_indices();
    while let Some((index, character)) = characters.next() {
        match (&mut name, character) {
            (None, ']') => return Some((names, &list[index + 1..])),
            (None, '"') => name = Some(String::new()),
            (None, _) => {}
            (Some(_), '"') => names.extend(name.take()),
            (Some(name), '\\') => name.extend(characters.next().map(|(_, escaped)| escaped)),
            (Some(name), other) => name.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use rocket::fairing::AdHoc;

    use super::{fairings, names};

    #[test]
    fn names_are_read_whatever_is_in_them() {
        let list =
            r#"Info { name: "a \"]\" b", kind: Kind(8) }, Info { name: "c", kind: Kind(8) }], x"#;
        let (names, rest) = names(list).unwrap();
        assert_eq!(names, ["a \"]\" b", "c"]);
        assert_eq!(rest, ", x");
    }

    #[test]
    fn rocket_shows_its_fairings() {
        let rocket = rocket::build().attach(AdHoc::on_response("ours", |_, _| Box::pin(async {})));
        let rocket = format!("{rocket:?}");
        let shown = fairings(&rocket, "response").unwrap();
        assert_eq!(shown, ["Shield", "ours"]);
        assert_eq!(fairings(&rocket, "request").unwrap(), [""; 0]);
        assert_eq!(fairings("Rocket", "response"), None);
    }
}
