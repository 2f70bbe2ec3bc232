//! What a request had, once its registry is closed.

use std::borrow::Cow;
use std::time::Duration;

use rocket::http::Status;

use super::hooks::Hooks;
use super::open_transaction::SlotContent;
use super::outstanding::{DatabaseEntry, Entry, Outstanding, State};
use super::require::Unopened;
use super::resource::Resource;
use crate::db::Ending;
use crate::tx::failure::Problem;
use crate::tx::monitor::{LiveEntry, LiveFlags};
use crate::tx::verdict::Choice;

/// Everything that a request has begun, handed over to be settled.
pub(in crate::tx) struct Closed {
    /// Something was outstanding, or tried to be.
    pub(in crate::tx) used: bool,
    /// A guard was taken by which something can become outstanding.
    pub(in crate::tx) wanted: bool,
    pub(in crate::tx) doom: Option<(Status, Cow<'static, str>)>,
    pub(in crate::tx) choice: Option<Choice>,
    /// What the first guard of this library that failed had to say.
    pub(in crate::tx) failure: Option<Problem>,
    pub(in crate::tx) hooks: Hooks,
    /// What resources need and nobody has begun.
    pub(in crate::tx) unopened: Vec<Unopened>,
    /// What was [collected](Self::collect), in joining order.
    pub(in crate::tx) resources: Vec<Box<dyn Resource>>,
    /// Their lines in the list of what is live.
    pub(in crate::tx) lines: Vec<LiveEntry>,
    entries: Vec<Entry>,
}

impl Outstanding {
    /// Lets nothing join any more, and hands everything over. A `Read` stays with the request: the
    /// body of the response may go on with it.
    pub(in crate::tx) fn close(&self) -> Closed {
        let mut state = self.state.lock();
        let closed = State {
            reading: state.reading.clone(),
            closed: true,
            ..State::default()
        };
        Closed::of(std::mem::replace(&mut *state, closed))
    }
}

impl Closed {
    fn of(mut state: State) -> Self {
        Self {
            unopened: state.unopened(),
            used: state.used,
            wanted: state.wanted,
            doom: state.doom,
            choice: state.choice,
            failure: state.failure,
            hooks: state.hooks,
            resources: Vec::new(),
            lines: Vec::new(),
            entries: state.entries,
        }
    }

    /// The transactions that have been open for longer than `limit`, and that nobody has warned of.
    pub(in crate::tx) fn slower_than(
        &self,
        limit: Duration,
    ) -> impl Iterator<Item = SlowTransaction> {
        self.databases().filter_map(move |entry| {
            let age = entry.since.elapsed();
            let is_new = age > limit && entry.flags.as_ref().is_some_and(LiveFlags::warn);
            is_new.then_some(SlowTransaction {
                database: entry.name,
                guard: entry.guard,
                age,
            })
        })
    }

    /// Moves what no guard holds to `resources`. What stays is [held](Self::held).
    pub(in crate::tx) fn collect(&mut self) {
        for entry in std::mem::take(&mut self.entries) {
            match entry {
                Entry::Resource(resource, line) => {
                    self.resources.push(resource);
                    self.lines.push(line);
                }
                Entry::Database(entry) => match entry.slot.take() {
                    SlotContent::Resource(resource) => self.resources.push(resource),
                    SlotContent::Nothing => {}
                    SlotContent::CheckedOut => self.entries.push(Entry::Database(entry)),
                },
            }
        }
    }

    /// The transactions that a guard holds still.
    pub(in crate::tx) fn held(&self) -> impl Iterator<Item = HeldTransaction<'_>> {
        self.databases().map(HeldTransaction)
    }

    fn databases(&self) -> impl Iterator<Item = &DatabaseEntry> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Database(entry) => Some(entry),
            Entry::Resource(..) => None,
        })
    }
}

/// A transaction that was open for long.
pub(in crate::tx) struct SlowTransaction {
    pub(in crate::tx) database: &'static str,
    pub(in crate::tx) guard: &'static str,
    pub(in crate::tx) age: Duration,
}

/// A transaction that a guard holds although its request is over.
pub(in crate::tx) struct HeldTransaction<'a>(&'a DatabaseEntry);

impl<'a> HeldTransaction<'a> {
    pub(in crate::tx) fn database(&self) -> &'static str {
        self.0.name
    }

    pub(in crate::tx) fn guard(&self) -> &'static str {
        self.0.guard
    }

    /// Lists it as condemned: it can never commit.
    pub(in crate::tx) fn condemn(&self) {
        if let Some(flags) = &self.0.flags {
            flags.condemn();
        }
    }

    /// Ends it from outside. `None`: it is not begun, and will not be.
    pub(in crate::tx) fn ending(&self) -> Option<&'a Ending> {
        self.0.ending.as_ref()
    }
}
