//! An open transaction as the registry holds it, and as a resource that is settled.

use std::borrow::Cow;
use std::sync::Arc;

use rocket::futures::future::BoxFuture;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::database::DatabaseTransaction;
use super::resource::{Phase, Resource, SettleContext};
use crate::db::{Durability, Transaction, TransactionPool, TransactionalDatabase};
use crate::tx::failure::Error;
use crate::tx::monitor::LiveEntry;

/// An open transaction of the database `D`, with its entry in the service's live list. Dropping it
/// rolls back and removes the entry.
pub(in crate::tx) struct OpenTransaction<D: TransactionalDatabase> {
    transaction: Transaction<<D::Pool as TransactionPool>::Session>,
    /// The wait that is left after COMMIT, until the commit is durable.
    durability: Durability,
    _live: LiveEntry,
}

/// The place of a transaction that guards check out. Empty while the transaction is being begun,
/// and after it was taken for settlement.
pub(super) type Slot<D> = Arc<Mutex<Option<OpenTransaction<D>>>>;

impl<D: TransactionalDatabase> OpenTransaction<D> {
    pub(in crate::tx) fn new(
        transaction: Transaction<<D::Pool as TransactionPool>::Session>,
        live: LiveEntry,
    ) -> Self {
        Self {
            transaction,
            durability: Durability::reached(),
            _live: live,
        }
    }

    pub(in crate::tx) fn transaction(
        &mut self,
    ) -> &mut Transaction<<D::Pool as TransactionPool>::Session> {
        &mut self.transaction
    }

    pub(super) fn as_transaction(&self) -> &Transaction<<D::Pool as TransactionPool>::Session> {
        &self.transaction
    }

    pub(super) fn set_durability(&mut self, durability: Durability) {
        self.durability = durability;
    }
}

#[rocket::async_trait]
impl<D: TransactionalDatabase> Resource for OpenTransaction<D> {
    fn name(&self) -> Cow<'_, str> {
        D::NAME.into()
    }

    fn phase(&self) -> Phase {
        Phase::Database
    }

    async fn prepare(&mut self, context: &mut SettleContext<'_>) -> Result<(), Error> {
        let prepared = match context.has_other_databases() {
            true => self.transaction.prepare_among_several().await,
            false => self.transaction.prepare().await,
        };
        prepared.map_err(|error| Error::of_commit(error, D::NAME))
    }

    fn as_database(&mut self) -> Option<&mut dyn DatabaseTransaction> {
        Some(self)
    }

    async fn commit(&mut self) -> Result<(), Error> {
        let committed = self.transaction.commit_without_waiting().await;
        self.durability = committed.map_err(|error| Error::of_commit(error, D::NAME))?;
        Ok(())
    }

    fn durability(&mut self) -> Durability {
        std::mem::replace(&mut self.durability, Durability::reached())
    }

    async fn rollback(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
        self.transaction.rollback().await.map_err(Error::from)
    }
}

/// A [`Slot`] without the type of its database.
pub(super) trait AnySlot: Send + Sync {
    /// Takes the transaction out of the slot, unless a guard holds it.
    fn take(&self) -> SlotContent;

    /// Returns an error if it is already certain that the transaction cannot commit, because of a
    /// conflict. Does nothing if a guard holds the transaction.
    fn detect_conflict(&self) -> BoxFuture<'_, sqlx::Result<()>>;

    /// Marks the transaction so that it is rolled back by closing its connection. Does nothing if a
    /// guard holds the transaction: then settlement condemns it, so that it can never commit.
    fn abandon(&self);
}

/// The result of [`AnySlot::take`].
pub(super) enum SlotContent {
    /// The transaction was checked in.
    Resource(Box<dyn Resource>),
    /// There is no transaction: BEGIN failed or was abandoned.
    Nothing,
    /// A guard holds the transaction, or it is being begun.
    CheckedOut,
}

impl<D: TransactionalDatabase> AnySlot for Mutex<Option<OpenTransaction<D>>> {
    fn take(&self) -> SlotContent {
        match self.try_lock().map(|mut open| open.take()) {
            Ok(Some(open)) => SlotContent::Resource(Box::new(open)),
            Ok(None) => SlotContent::Nothing,
            Err(_) => SlotContent::CheckedOut,
        }
    }

    fn detect_conflict(&self) -> BoxFuture<'_, sqlx::Result<()>> {
        Box::pin(async {
            match self.try_lock() {
                Ok(mut open) => match open.as_mut() {
                    Some(open) => open.transaction.detect_conflict().await,
                    None => Ok(()),
                },
                Err(_) => Ok(()),
            }
        })
    }

    fn abandon(&self) {
        if let Ok(mut open) = self.try_lock()
            && let Some(open) = open.as_mut()
        {
            open.transaction.abandon();
        }
    }
}

/// Locks a slot for one guard.
///
/// # Errors
///
/// [`Error::CheckedOut`] if the slot is already locked.
pub(super) fn checkout<D: TransactionalDatabase>(
    slot: &Slot<D>,
) -> Result<OwnedMutexGuard<Option<OpenTransaction<D>>>, Error> {
    Arc::clone(slot)
        .try_lock_owned()
        .map_err(|_| Error::CheckedOut(D::NAME))
}
