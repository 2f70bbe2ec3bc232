//! How an open transaction takes part in an atomic commit over several databases.

use std::any::TypeId;

use super::database::DatabaseTransaction;
use super::open_transaction::OpenTransaction;
use crate::db::{Decided, Decision, GlobalId, TransactionalDatabase};
use crate::tx::failure::Error;

#[rocket::async_trait]
impl<D: TransactionalDatabase> DatabaseTransaction for OpenTransaction<D> {
    fn database(&self) -> TypeId {
        TypeId::of::<D>()
    }

    fn may_have_written(&self) -> bool {
        self.as_transaction().may_have_written()
    }

    async fn prepare_transaction(&mut self, id: &GlobalId) -> Result<(), Error> {
        let prepared = self.transaction().prepare_transaction(id).await;
        prepared.map_err(|error| Error::of_commit(error, D::NAME))
    }

    async fn decide(&mut self, decision: &Decision) -> Result<(), Error> {
        let decided = self.transaction().decide(decision).await;
        let durability = decided.map_err(|error| Error::of_commit(error, D::NAME))?;
        self.set_durability(durability);
        Ok(())
    }

    async fn commit_prepared(&mut self) -> Result<(), Error> {
        let transaction = self.transaction();
        match transaction.prepared() {
            Some(id) => Ok(transaction.finish(&id, Decided::Commit).await?),
            None => Ok(()),
        }
    }
}
