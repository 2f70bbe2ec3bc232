//! An open transaction as the registry holds it, and as the resource that it is when settled.

use std::borrow::Cow;
use std::sync::Arc;

use rocket_db_pools::Database;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::error::Error;
use super::live::LiveEntry;
use super::resource::{Phase, Resource, Settling};
use crate::db::{Durability, Session, Transaction, TransactionPool};

/// The transaction of database `D`, with its line in the service's list of what is outstanding.
/// Dropping it rolls back and takes the line away.
pub(super) struct Lent<D>
where
    D: Database,
    D::Pool: TransactionPool,
{
    transaction: Transaction<<D::Pool as TransactionPool>::Session>,
    /// The rest of its COMMIT.
    durability: Durability,
    _live: LiveEntry,
}

/// What guards borrow: `None` while it is being begun, and after it was settled.
pub(super) type Cell<D> = Arc<Mutex<Option<Lent<D>>>>;

/// What a guard of `D` dereferences to.
pub(super) type ConnectionOf<D> =
    <<<D as Database>::Pool as TransactionPool>::Session as Session>::Connection;

impl<D> Lent<D>
where
    D: Database,
    D::Pool: TransactionPool,
{
    pub(super) fn new(
        transaction: Transaction<<D::Pool as TransactionPool>::Session>,
        live: LiveEntry,
    ) -> Self {
        Self {
            transaction,
            durability: Durability::reached(),
            _live: live,
        }
    }

    pub(super) fn transaction(
        &mut self,
    ) -> &mut Transaction<<D::Pool as TransactionPool>::Session> {
        &mut self.transaction
    }
}

#[rocket::async_trait]
impl<D> Resource for Lent<D>
where
    D: Database,
    D::Pool: TransactionPool,
{
    fn name(&self) -> Cow<'_, str> {
        D::NAME.into()
    }

    fn phase(&self) -> Phase {
        Phase::Database
    }

    async fn prepare(&mut self, _: &mut Settling<'_>) -> Result<(), Error> {
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

    async fn rollback(&mut self, _: &mut Settling<'_>) -> Result<(), Error> {
        self.transaction.rollback().await.map_err(Error::from)
    }
}

/// A [`Cell`] whose database the registry need not know.
pub(super) trait Loan: Send + Sync {
    /// Takes the transaction out for good, unless somebody holds it.
    fn take(&self) -> Taken;

    /// Has the transaction rolled back by closing its connection. One that somebody holds is
    /// condemned anyway.
    fn abandon(&self);
}

/// What was found in a loan.
pub(super) enum Taken {
    /// Checked in: here it is.
    Resource(Box<dyn Resource>),
    /// Nothing was begun.
    Nothing,
    /// A guard holds it.
    CheckedOut,
}

impl<D> Loan for Mutex<Option<Lent<D>>>
where
    D: Database,
    D::Pool: TransactionPool,
{
    fn take(&self) -> Taken {
        match self.try_lock().map(|mut lent| lent.take()) {
            Ok(Some(lent)) => Taken::Resource(Box::new(lent)),
            Ok(None) => Taken::Nothing,
            Err(_) => Taken::CheckedOut,
        }
    }

    fn abandon(&self) {
        if let Ok(mut lent) = self.try_lock()
            && let Some(lent) = lent.as_mut()
        {
            lent.transaction.abandon();
        }
    }
}

/// Locks a cell, if nobody else has.
pub(super) fn checkout<D>(cell: &Cell<D>) -> Result<OwnedMutexGuard<Option<Lent<D>>>, Error>
where
    D: Database,
    D::Pool: TransactionPool,
{
    Arc::clone(cell)
        .try_lock_owned()
        .map_err(|_| Error::CheckedOut(D::NAME))
}
