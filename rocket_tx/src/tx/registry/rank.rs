//! The order of attachment, in which requests take databases.

use std::any::type_name;

use crate::db::{TransactionPool, TransactionalDatabase};
use crate::tx::failure::Error;

/// Returns the rank of `D`: its place in the order of attachment.
///
/// # Errors
///
/// [`Error::NotAttached`] if the pool is not attached to a service.
pub fn rank_of<D: TransactionalDatabase>(pool: &D::Pool) -> Result<usize, Error> {
    let attachment = pool.attachment().get();
    let attachment = attachment.ok_or(Error::NotAttached(type_name::<D>()))?;
    Ok(attachment.rank)
}
