//! The contents of a registry after it was closed.

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
    /// The request had something outstanding, or tried to, or was doomed.
    pub(in crate::tx) used: bool,
    /// The request has used a guard by which something can become outstanding.
    pub(in crate::tx) wanted: bool,
    pub(in crate::tx) doom: Option<(Status, Cow<'static, str>)>,
    pub(in crate::tx) choice: Option<Choice>,
    /// The problem of the first guard of this library that failed.
    pub(in crate::tx) failure: Option<Problem>,
    pub(in crate::tx) hooks: Hooks,
    /// Transactions that resources [require](Outstanding::require) and that have not been begun.
    pub(in crate::tx) unopened: Vec<Unopened>,
    /// The resources that were [collected](Self::collect), in joining order.
    pub(in crate::tx) resources: Vec<Box<dyn Resource>>,
    /// The entries of joined resources in the live list.
    pub(in crate::tx) live_entries: Vec<LiveEntry>,
    entries: Vec<Entry>,
}

impl Outstanding {
    /// Closes the registry, so that nothing can join any more, and returns its contents. `Read`s
    /// stay registered: the body of the response may still use them. So do the steps of
    /// transactions: the settlement may begin some.
    pub(in crate::tx) fn close(&self) -> Closed {
        let mut state = self.state.lock();
        let closed = State {
            reading: state.reading.clone(),
            steps: state.steps.clone(),
            closed: true,
            ..State::default()
        };
        Closed::of(std::mem::replace(&mut *state, closed))
    }
}

impl Closed {
    fn of(mut state: State) -> Self {
        if let Some(attempting) = state.attempting.take() {
            // A spawned task runs the attempts. What the current one has done until now is not
            // complete.
            let database = attempting.database;
            let reason = "The work of this request had not ended when the response was ready. Nothing was changed.";
            tracing::error!(
                database,
                "the response was ready while `retrying` was running; await it in the handler"
            );
            state.used = true;
            (state.doom).get_or_insert((Status::InternalServerError, reason.into()));
        }
        Self {
            unopened: state.unopened(),
            used: state.used,
            wanted: state.wanted,
            doom: state.doom,
            choice: state.choice,
            failure: state.failure,
            hooks: state.hooks,
            resources: Vec::new(),
            live_entries: Vec::new(),
            entries: state.entries,
        }
    }

    /// Returns the transactions that have been open for longer than `limit`, except those that a
    /// warning was already logged about. The caller must log a warning about the returned ones.
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

    /// Moves everything that no guard holds to `resources`. The rest remains, as
    /// [`held`](Self::held).
    pub(in crate::tx) fn collect(&mut self) {
        for entry in std::mem::take(&mut self.entries) {
            match entry {
                Entry::Resource(resource, live_entry) => {
                    self.resources.push(resource);
                    self.live_entries.push(live_entry);
                }
                Entry::Database(entry) => match entry.slot.take() {
                    SlotContent::Resource(resource) => self.resources.push(resource),
                    SlotContent::Nothing => {}
                    SlotContent::CheckedOut => self.entries.push(Entry::Database(entry)),
                },
            }
        }
    }

    /// Returns the transactions that a guard still holds. Call [`collect`](Self::collect) before.
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

/// A transaction that was open for longer than the limit.
pub(in crate::tx) struct SlowTransaction {
    pub(in crate::tx) database: &'static str,
    pub(in crate::tx) guard: &'static str,
    pub(in crate::tx) age: Duration,
}

/// A transaction that a guard still holds although its request has ended.
pub(in crate::tx) struct HeldTransaction<'a>(&'a DatabaseEntry);

impl<'a> HeldTransaction<'a> {
    pub(in crate::tx) fn database(&self) -> &'static str {
        self.0.name
    }

    pub(in crate::tx) fn guard(&self) -> &'static str {
        self.0.guard
    }

    /// Marks the transaction as condemned in the live list: it can never commit.
    pub(in crate::tx) fn condemn(&self) {
        if let Some(flags) = &self.0.flags {
            flags.condemn();
        }
    }

    /// Returns the handle that ends the transaction from outside. `None` if the transaction was
    /// still being begun: then its guard fails, because the registry is closed.
    pub(in crate::tx) fn ending(&self) -> Option<&'a Ending> {
        self.0.ending.as_ref()
    }
}
