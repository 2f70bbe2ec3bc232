//! Advice to developers: warnings about code that works in a quiet test, and fails under load.

use std::collections::HashSet;

use parking_lot::Mutex;
use rocket::{Config, Phase, Rocket};

/// The warnings that were logged. In profiles other than `debug`, nothing is logged.
#[derive(Debug, Default)]
pub(crate) struct Advice(Option<Mutex<HashSet<(Topic, String)>>>);

/// The subject of a warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Topic {
    /// A transaction was open while the client sent the body.
    Body,
    /// A database was taken after one that is attached later.
    Order,
}

impl Advice {
    pub(crate) fn of<P: Phase>(rocket: &Rocket<P>) -> Self {
        let is_debug = rocket.figment().profile() == Config::DEBUG_PROFILE;
        Self(is_debug.then(Mutex::default))
    }

    /// Whether warnings are logged at all.
    pub(crate) fn is_given(&self) -> bool {
        self.0.is_some()
    }

    /// Returns `true` for the first call with this topic and route, if warnings are logged.
    pub(crate) fn is_first(&self, topic: Topic, route: &str) -> bool {
        let first = |given: &Mutex<HashSet<_>>| given.lock().insert((topic, route.to_owned()));
        self.0.as_ref().is_some_and(first)
    }
}
