//! Transactions that a resource will need at settlement. They are begun as late as possible.

use std::any::{TypeId, type_name};
use std::marker::PhantomData;
use std::sync::Arc;

use rocket::futures::future::BoxFuture;
use rocket_db_pools::Database;

use super::mode::{Mode, ReadWrite};
use super::open_transaction::OpenTransaction;
use super::outstanding::{DeferredBegin, Outstanding, RequiredTransaction, State};
use super::rank::rank_of;
use super::resource::Resource;
use crate::db::{Access, BeginOptions, TransactionalDatabase, WaitPolicy};
use crate::tx::failure::Error;

/// How a required transaction of `D` is begun.
struct Required<D: Database> {
    pool: D::Pool,
    database: PhantomData<fn() -> D>,
}

impl<D: TransactionalDatabase> DeferredBegin for Required<D> {
    fn begin<'a>(&'a self, outstanding: &'a Arc<Outstanding>) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async {
            let guard = type_name::<Required<D>>();
            let begun = outstanding
                .begin_in_turn::<D, ReadWrite>(&self.pool, guard)
                .await;
            begun.map(drop)
        })
    }

    fn open<'a>(
        &'a self,
        outstanding: &'a Outstanding,
        wait: WaitPolicy,
    ) -> BoxFuture<'a, Result<Box<dyn Resource>, Error>> {
        Box::pin(async move {
            let options = BeginOptions {
                isolation: ReadWrite::ISOLATION,
                access: ReadWrite::ACCESS,
                wait,
            };
            let transaction = outstanding.open::<D>(&self.pool, options).await?;
            let guard = type_name::<Required<D>>();
            let live = (outstanding.live).enter(outstanding.request, None, D::NAME.into(), guard);
            let open: Box<dyn Resource> = Box::new(OpenTransaction::<D>::new(transaction, live));
            Ok(open)
        })
    }
}

impl Outstanding {
    /// Declares that a [`Resource`] will write through
    /// [`context.transaction::<D>()`](crate::tx::SettleContext::transaction). This library then
    /// begins that transaction.
    ///
    /// The transaction begins as late as possible: when the request is settled. It begins earlier
    /// if the request begins a transaction of a database that is attached after `D`, so that the
    /// order is kept. If the request is rolled back first, the transaction never begins.
    ///
    /// # Errors
    ///
    /// [`Error::Settled`] after the verdict. [`Error::Weaker`] if the request has a transaction of
    /// `D` that only reads. [`Error::NotAttached`] if `D` is not attached. [`Error::Retrying`]
    /// beside the attempts of [`retrying`](crate::Begin::retrying).
    pub fn require<D: TransactionalDatabase>(&self, pool: &D::Pool) -> Result<(), Error> {
        let rank = rank_of::<D>(pool)?;
        let mut state = self.state.lock();
        if state.closed {
            return Err(Error::Settled);
        }
        state.check_attempt()?;
        let key = TypeId::of::<D>();
        // A transaction that is still being begun does not count: its BEGIN may fail.
        let begun = state
            .databases()
            .find(|entry| entry.database == key && entry.flags.is_some());
        match begun.map(|entry| entry.access) {
            Some(Access::ReadWrite) => return Ok(()),
            Some(Access::ReadOnly) => return Err(Error::Weaker(D::NAME)),
            None => {}
        }
        if !state.required.iter().any(|known| known.database == key) {
            state.required.push(RequiredTransaction {
                database: key,
                rank,
                how: Arc::new(Required::<D> {
                    pool: pool.clone(),
                    database: PhantomData,
                }),
            });
        }
        Ok(())
    }

    /// Begins the required transactions of databases ranked below `rank`. On error, they remain
    /// required.
    pub(super) async fn begin_required(self: &Arc<Self>, rank: usize) -> Result<(), Error> {
        loop {
            let next = {
                let mut state = self.state.lock();
                state.remove_begun_requirements();
                let next = state.required.first();
                next.filter(|required| required.rank < rank)
                    .map(|required| Arc::clone(&required.how))
            };
            match next {
                Some(how) => how.begin(self).await?,
                None => return Ok(()),
            }
        }
    }

    /// Begins the required transactions that have not been begun, for the settlement.
    pub(in crate::tx) async fn open_required(
        &self,
        unopened: Vec<Unopened>,
    ) -> Result<Vec<Box<dyn Resource>>, Error> {
        let mut opened = Vec::new();
        for Unopened(required, wait) in unopened {
            opened.push(required.how.open(self, wait).await?);
        }
        Ok(opened)
    }
}

/// A required transaction that has not been begun, and whether it may wait for a connection.
pub(in crate::tx) struct Unopened(RequiredTransaction, WaitPolicy);

impl State {
    /// Whether a resource requires a transaction of this database.
    pub(super) fn is_required(&self, database: TypeId) -> bool {
        let mut required = self.required.iter();
        required.any(|required| required.database == database)
    }

    /// Removes the requirements whose transactions have been begun. Sorts the others in order of
    /// attachment.
    fn remove_begun_requirements(&mut self) {
        if self.required.is_empty() {
            return;
        }
        let begun: Vec<TypeId> = self
            .databases()
            .filter(|entry| entry.flags.is_some())
            .map(|entry| entry.database)
            .collect();
        self.required
            .retain(|required| !begun.contains(&required.database));
        self.required.sort_by_key(|required| required.rank);
    }

    /// Returns the required transactions that have not been begun when the request is settled.
    pub(super) fn unopened(&mut self) -> Vec<Unopened> {
        self.remove_begun_requirements();
        let required = std::mem::take(&mut self.required);
        let with_wait = |required: RequiredTransaction| {
            let wait = self.wait_policy(required.rank);
            Unopened(required, wait)
        };
        required.into_iter().map(with_wait).collect()
    }
}
