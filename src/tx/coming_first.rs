//! Whether a client's address was noted before any other fairing could change it.
//!
//! Rocket runs request fairings in the order in which they were attached. The first one of this
//! library, a database or `Settlement`, notes the address.

use rocket::{Orbit, Rocket};

use super::coming_last::fairings;
use super::settings::Settings;
use crate::db::Roster;

/// Whether the noted addresses can be relied on: who closes a connection must not mistake it. Says
/// in the log, once, why not.
pub(super) fn knows_clients(settings: &Settings, rocket: &Rocket<Orbit>) -> bool {
    *settings.knows_clients.get_or_init(|| {
        let Some(fairings) = fairings(&format!("{rocket:?}"), "request") else {
            tracing::warn!(
                "this version of Rocket does not show its fairings, one of which may change the \
                 addresses of clients: the connection of a client that takes nothing of a body which \
                 holds a `Read` is not closed"
            );
            return false;
        };
        let roster = rocket.state::<Roster>();
        let is_ours = |name: &String| {
            name == super::settlement::NAME || roster.is_some_and(|roster| roster.has(name))
        };
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
    })
}
