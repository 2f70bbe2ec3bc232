//! What settlement can do with a transaction of this library beyond what every resource offers.

use std::any::TypeId;

use crate::db::{Decision, GlobalId};
use crate::tx::failure::Error;

/// A transaction as a part of an atomic commit over several databases.
#[rocket::async_trait]
pub(in crate::tx) trait DatabaseTransaction: Send {
    /// Returns the type of its database.
    fn database(&self) -> TypeId;

    /// Returns `false` if the transaction is known to have written nothing. Exact after `prepare`.
    fn may_have_written(&self) -> bool;

    /// Prepares the transaction under the name `id`.
    ///
    /// # Errors
    ///
    /// Nothing was committed. The transaction may be prepared, if the reply was lost.
    async fn prepare_transaction(&mut self, id: &GlobalId) -> Result<(), Error>;

    /// Commits, together with the decision to commit what other databases have prepared.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] if the decision must be queried. After any other error the decision was
    /// not written.
    async fn decide(&mut self, decision: &Decision) -> Result<(), Error>;

    /// Commits the prepared transaction.
    ///
    /// # Errors
    ///
    /// The transaction may still be prepared.
    async fn commit_prepared(&mut self) -> Result<(), Error>;
}
