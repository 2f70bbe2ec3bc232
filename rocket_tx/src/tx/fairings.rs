//! Checks the order in which the fairings of a service run. The order is parsed from Rocket's
//! `Debug` output.

use std::sync::OnceLock;

use rocket::{Orbit, Phase, Rocket};

use crate::db::AttachedDatabases;

/// The name of `Settlement` in Rocket's list of request fairings.
pub(in crate::tx) const REQUEST_FAIRING: &str = "Settlement";

/// The name of the response half of `Settlement` in Rocket's list of response fairings.
pub(in crate::tx) const RESPONSE_FAIRING: &str = "Settlement of responses";

/// The results of the checks of the order of fairings. Put into Rocket's managed state by
/// `Settlement`.
#[derive(Default)]
pub(in crate::tx) struct FairingOrder {
    /// `Some(message)` if a response fairing runs after the settlement.
    runs_later: OnceLock<Option<String>>,
    /// `true` if the address of each client is certain.
    knows_clients: OnceLock<bool>,
}

impl FairingOrder {
    /// Whether a response fairing runs after the settlement. If so, this is logged once.
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

    /// Whether the address of each client is recorded before any other fairing can change it. If
    /// not, the reason is logged once.
    ///
    /// Rocket runs request fairings in the order in which they were attached. The first request
    /// fairing of this library, of a database or of `Settlement`, records the address.
    pub(in crate::tx) fn knows_clients(&self, rocket: &Rocket<Orbit>) -> bool {
        *self.knows_clients.get_or_init(|| knows_clients(rocket))
    }
}

fn knows_clients(rocket: &Rocket<Orbit>) -> bool {
    let Some(fairings) = fairings(&format!("{rocket:?}"), "request") else {
        tracing::warn!(
            "cannot check the order of request fairings, because this version of Rocket does not \
             list them; one of them may change the addresses of clients, so a client that stops \
             reading a body which holds a `Read` will not be disconnected"
        );
        return false;
    };
    let attached = rocket.state::<AttachedDatabases>();
    let is_ours = |name: &String| {
        name == REQUEST_FAIRING || attached.is_some_and(|attached| attached.has(name))
    };
    let earlier: Vec<String> = fairings
        .iter()
        .take_while(|name| !is_ours(name))
        .map(|name| format!("`{name}`"))
        .collect();
    if !earlier.is_empty() {
        tracing::warn!(
            "the request fairing {} runs before those of `rocket_tx`, and may change the \
             addresses of clients, so a client that stops reading a body which holds a `Read` \
             will not be disconnected; attach the databases, or `Settlement`, first",
            earlier.join(", ")
        );
    }
    earlier.is_empty()
}

/// Returns a log message if a response fairing runs after the settlement.
fn what_runs_later<P: Phase>(rocket: &Rocket<P>) -> Option<String> {
    // Rocket has no other interface that lists its fairings.
    let Some(fairings) = fairings(&format!("{rocket:?}"), "response") else {
        tracing::warn!(
            "cannot check the order of response fairings, because this version of Rocket does not \
             list them; attach fairings that change responses in the launch code, or in a stage \
             that the launch code attaches"
        );
        return None;
    };
    let ours = fairings.iter().rposition(|name| name == RESPONSE_FAIRING)?;
    let later: Vec<String> = fairings[ours + 1..]
        .iter()
        .map(|name| format!("`{name}`"))
        .collect();
    (!later.is_empty()).then(|| {
        format!(
            "the response fairing {} would run after `Settlement`, and could change a response \
             that is already settled; attach it in the launch code, or in a stage that the launch \
             code attaches",
            later.join(", ")
        )
    })
}

/// Returns the names of the fairings of the kind `wanted` in the order in which they run. `debug`
/// is Rocket's `Debug` output.
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

/// Returns the quoted strings in a list, and the text after the end of the list.
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
    fn names_with_quotes_and_brackets_are_parsed() {
        let list =
            r#"Info { name: "a \"]\" b", kind: Kind(8) }, Info { name: "c", kind: Kind(8) }], x"#;
        let (names, rest) = names(list).unwrap();
        assert_eq!(names, ["a \"]\" b", "c"]);
        assert_eq!(rest, ", x");
    }

    #[test]
    fn the_debug_output_of_rocket_lists_its_fairings() {
        let rocket = rocket::build().attach(AdHoc::on_response("ours", |_, _| Box::pin(async {})));
        let rocket = format!("{rocket:?}");
        let shown = fairings(&rocket, "response").unwrap();
        assert_eq!(shown, ["Shield", "ours"]);
        assert_eq!(fairings(&rocket, "request").unwrap(), [""; 0]);
        assert_eq!(fairings("Rocket", "response"), None);
    }
}
