//! An open transaction as the registry holds it, and as the resource that it is when settled.

use std::borrow::Cow;
use std::sync::Arc;

use rocket_db_pools::Database;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::resource::{Phase, Resource, SettleContext};
use crate::db::{Durability, Session, Transaction, TransactionPool, TransactionalDatabase};
use crate::tx::failure::Error;
use crate::tx::monitor::LiveEntry;

/// The transaction of database `D`, with its line in the service's list of what is outstanding.
/// Dropping it rolls back and takes the line away.
pub(in crate::tx) struct OpenTransaction<D: TransactionalDatabase> {
    transaction: Transaction<<D::Pool as TransactionPool>::Session>,
    /// The rest of its COMMIT.
    durability: Durability,
    _live: LiveEntry,
}

/// What guards borrow: `None` while it is being begun, and after it was settled.
pub(super) type Slot<D> = Arc<Mutex<Option<OpenTransaction<D>>>>;

/// What a guard of `D` dereferences to.
pub(in crate::tx) type ConnectionOf<D> =
    <<<D as Database>::Pool as TransactionPool>::Session as Session>::Connection;

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
}

#[rocket::async_trait]
impl<D: TransactionalDatabase> Resource for OpenTransaction<D> {
    fn name(&self) -> Cow<'_, str> {
        D::NAME.into()
    }

    fn phase(&self) -> Phase {
        Phase::Database
    }

    async fn prepare(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
        self.transaction
            .prepare()
            .await
            .map_err(|error| Error::of_commit(error, D::NAME))
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

/// A [`Slot`] whose database the registry need not know.
pub(super) trait AnySlot: Send + Sync {
    /// Takes the transaction out for good, unless somebody holds it.
    fn take(&self) -> SlotContent;

    /// Has the transaction rolled back by closing its connection. One that somebody holds is
    /// condemned anyway.
    fn abandon(&self);
}

/// What was found in a loan.
pub(super) enum SlotContent {
    /// Checked in: here it is.
    Resource(Box<dyn Resource>),
    /// Nothing was begun.
    Nothing,
    /// A guard holds it.
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

    fn abandon(&self) {
        if let Ok(mut open) = self.try_lock()
            && let Some(open) = open.as_mut()
        {
            open.transaction.abandon();
        }
    }
}

/// Locks a slot, if nobody else has.
pub(super) fn checkout<D: TransactionalDatabase>(
    slot: &Slot<D>,
) -> Result<OwnedMutexGuard<Option<OpenTransaction<D>>>, Error> {
    Arc::clone(slot)
        .try_lock_owned()
        .map_err(|_| Error::CheckedOut(D::NAME))
}
