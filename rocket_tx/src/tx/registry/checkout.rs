//! Checking a request's transaction out of its registry. The transaction is begun on first use.

use std::any::TypeId;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::OwnedMutexGuard;
use tracing::Instrument;

use super::mode::Mode;
use super::open_transaction::{AnySlot, OpenTransaction, Slot, checkout};
use super::outstanding::{DatabaseEntry, Entry, Outstanding, State};
use super::rank::rank_of;
use crate::db::{
    Access, BeginOptions, Isolation, Transaction, TransactionPool, TransactionalDatabase,
};
use crate::tx::failure::Error;
use crate::tx::monitor::LiveFlags;

/// A transaction that is checked out by one guard. Dropping it checks the transaction in.
pub(in crate::tx) struct CheckedOut<D: TransactionalDatabase> {
    pub(in crate::tx) open: OwnedMutexGuard<Option<OpenTransaction<D>>>,
    pub(in crate::tx) flags: LiveFlags,
}

impl Outstanding {
    /// Checks out the transaction of `D`, and begins it if there is none.
    pub(in crate::tx) async fn begin<D: TransactionalDatabase, M: Mode>(
        self: &Arc<Self>,
        pool: &D::Pool,
        guard: &'static str,
    ) -> Result<CheckedOut<D>, Error> {
        if let Some(open) = self.current::<D, M>() {
            return open;
        }
        let _turn = self.acquire_in_turn().await;
        self.begin_in_turn::<D, M>(pool, guard).await
    }

    /// Begins like [`begin`](Self::begin), for a caller that already has the request's [`Turn`].
    ///
    /// [`Turn`]: super::outstanding::Turn
    pub(super) async fn begin_in_turn<D: TransactionalDatabase, M: Mode>(
        self: &Arc<Self>,
        pool: &D::Pool,
        guard: &'static str,
    ) -> Result<CheckedOut<D>, Error> {
        // Resources may require transactions of databases that are attached before this one. Those
        // begin first, so that the order of attachment is kept.
        if let Some(attachment) = pool.attachment().get() {
            self.begin_required(attachment.rank).await?;
        }
        let (beginning, options) = match self.checkout_or_reserve::<D, M>(pool, guard)? {
            Reservation::Open(checked_out) => return Ok(checked_out),
            Reservation::New(beginning, options) => (beginning, options),
        };
        beginning.finish(self.open::<D>(pool, options).await?)
    }

    /// Begins a transaction of `D` that is not in the registry yet.
    pub(in crate::tx) async fn open<D: TransactionalDatabase>(
        &self,
        pool: &D::Pool,
        options: BeginOptions,
    ) -> Result<Transaction<<D::Pool as TransactionPool>::Session>, Error> {
        let options = BeginOptions {
            wait: options.wait.first_of_request(),
            ..options
        };
        let span = tracing::debug_span!("begin", database = D::NAME);
        let started = Instant::now();
        let mut transaction = match pool.open(options).instrument(span).await {
            Err(sqlx::Error::PoolTimedOut) if !options.wait.queues() => {
                return Err(Error::OutOfOrder(D::NAME));
            }
            transaction => transaction?,
        };
        transaction.hold_for_request();
        let waited = started.elapsed();
        self.observers
            .notify(|observer| observer.began(self.request, D::NAME, waited));
        if options.access == Access::ReadWrite {
            let steps = self.state.lock().steps.clone();
            if let Err(error) = steps.run::<D>(&mut transaction).await {
                self.refused_by_step(&error);
                return Err(error);
            }
        }
        Ok(transaction)
    }

    /// Checks out the transaction of `D`, if there is one.
    pub(in crate::tx) fn current<D: TransactionalDatabase, M: Mode>(
        &self,
    ) -> Option<Result<CheckedOut<D>, Error>> {
        let state = self.state.lock();
        if let Err(error) = state.check_attempt() {
            return Some(Err(error));
        }
        state.open::<D, M>()
    }

    /// Checks out the transaction of `D`. If there is none, adds an entry for it to the registry.
    /// The caller then begins the transaction.
    fn checkout_or_reserve<D: TransactionalDatabase, M: Mode>(
        self: &Arc<Self>,
        pool: &D::Pool,
        guard: &'static str,
    ) -> Result<Reservation<D>, Error> {
        let mut state = self.state.lock();
        state.used = true;
        if state.closed {
            return Err(Error::Settled);
        }
        state.check_attempt()?;
        if let Some(open) = state.open::<D, M>() {
            return open.map(Reservation::Open);
        }
        if state.is_reading::<D>() {
            return Err(Error::SecondConnection(D::NAME));
        }
        let rank = rank_of::<D>(pool)?;
        let wait = state.wait_policy(rank);
        let database = TypeId::of::<D>();
        if let Some(reason) = state.cap(database)
            && M::ISOLATION > Isolation::Configured
        {
            let database = D::NAME;
            return Err(Error::Isolation { database, reason });
        }
        // A resource that requires this transaction will write through it, also if the guard only
        // reads.
        let access = match state.is_required(database) {
            true => Access::ReadWrite,
            false => M::ACCESS,
        };
        let slot: Slot<D> = Arc::default();
        let open = checkout(&slot)?;
        state.entries.push(Entry::Database(DatabaseEntry {
            database,
            name: D::NAME,
            guard,
            rank,
            isolation: M::ISOLATION,
            access,
            since: Instant::now(),
            slot: Arc::clone(&slot) as Arc<dyn AnySlot>,
            typed_slot: Box::new(slot),
            flags: None,
            ending: None,
        }));
        let options = BeginOptions {
            isolation: M::ISOLATION,
            access,
            wait,
        };
        let beginning = PendingBegin {
            outstanding: Arc::clone(self),
            guard,
            open: Some(open),
        };
        Ok(Reservation::New(beginning, options))
    }
}

impl State {
    /// Checks out the open transaction of `D`, if there is one. Fails if it is weaker than `M`
    /// requires.
    fn open<D: TransactionalDatabase, M: Mode>(&self) -> Option<Result<CheckedOut<D>, Error>> {
        let entry = self
            .databases()
            .find(|entry| entry.database == TypeId::of::<D>())?;
        let slot = entry.typed_slot.downcast_ref::<Slot<D>>()?;
        if M::ISOLATION > entry.isolation || M::ACCESS > entry.access {
            return Some(Err(Error::Weaker(D::NAME)));
        }
        // A transaction that is still being begun has no flags yet.
        let flags = entry.flags.clone().ok_or(Error::CheckedOut(D::NAME));
        Some(flags.and_then(|flags| {
            Ok(CheckedOut {
                open: checkout(slot)?,
                flags,
            })
        }))
    }
}

/// The result of `checkout_or_reserve`.
enum Reservation<D: TransactionalDatabase> {
    /// The transaction was open, and is checked out.
    Open(CheckedOut<D>),
    /// The caller must begin the transaction with these options.
    New(PendingBegin<D>, BeginOptions),
}

/// An entry of the registry whose transaction is being begun. If it is dropped unfinished, because
/// BEGIN failed or was abandoned, the entry is removed.
struct PendingBegin<D: TransactionalDatabase> {
    outstanding: Arc<Outstanding>,
    guard: &'static str,
    open: Option<OwnedMutexGuard<Option<OpenTransaction<D>>>>,
}

impl<D: TransactionalDatabase> PendingBegin<D> {
    /// Puts the begun `transaction` into the entry, and checks it out.
    fn finish(
        mut self,
        transaction: Transaction<<D::Pool as TransactionPool>::Session>,
    ) -> Result<CheckedOut<D>, Error> {
        let mut state = self.outstanding.state.lock();
        let database = TypeId::of::<D>();
        let route = state.route.clone();
        let entry = state.entries.iter_mut().find_map(|entry| match entry {
            Entry::Database(entry) if entry.database == database => Some(entry),
            _ => None,
        });
        // If the entry is gone, the request was settled meanwhile. The transaction is dropped here,
        // and so rolled back.
        let (Some(entry), Some(mut open)) = (entry, self.open.take()) else {
            return Err(Error::Settled);
        };
        let name = D::NAME.into();
        let live = self
            .outstanding
            .live
            .enter(self.outstanding.request, route, name, self.guard);
        let flags = live.flags();
        entry.flags = Some(flags.clone());
        entry.ending = Some(transaction.ending());
        *open = Some(OpenTransaction::new(transaction, live));
        Ok(CheckedOut { open, flags })
    }
}

impl<D: TransactionalDatabase> Drop for PendingBegin<D> {
    fn drop(&mut self) {
        if self.open.is_some() {
            let database = TypeId::of::<D>();
            self.outstanding.state.lock().entries.retain(
                |entry| !matches!(entry, Entry::Database(entry) if entry.database == database),
            );
        }
    }
}
