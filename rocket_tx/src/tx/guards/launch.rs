//! What a service must have so that guards work; checked at launch, with the line that is missing.

use std::any::type_name;
use std::sync::Arc;

use rocket::{Ignite, Phase, Request, Rocket};

use crate::db::{AttachedDatabases, TransactionPool, TransactionalDatabase, same_database};
use crate::tx::failure::Error;
use crate::tx::fairings::FairingOrder;

/// The service has no `Settlement`, or one that cannot keep its word: says so, with the line that is
/// missing.
pub(super) fn refuse_without_settlement<P: Phase>(rocket: &Rocket<P>) -> bool {
    match rocket.state::<Arc<FairingOrder>>() {
        Some(order) => order.settles_too_early(rocket),
        None => {
            tracing::error!("{}", Error::NoSettlement);
            true
        }
    }
}

/// The database of a guard, as it was attached. For guards of other libraries.
///
/// # Errors
///
/// [`Error::NotAttached`] if it was not.
pub fn attached<'r, D: TransactionalDatabase>(request: &'r Request<'_>) -> Result<&'r D, Error> {
    let rocket = request.rocket();
    let database = rocket.state::<D>();
    let database = database.ok_or(Error::NotAttached(type_name::<D>()))?;
    if database.attachment().get().is_none()
        && let Some(attached) = rocket.state::<AttachedDatabases>()
        && let Err(other) = attached.attach::<D, _>(rocket, database)
    {
        tracing::error!("{}", same_database::<D>(other));
    }
    Ok(database)
}

/// The service cannot serve guards of `D`: says what is missing, or what is wrong.
pub(super) fn check_launch<D: TransactionalDatabase>(rocket: &Rocket<Ignite>) -> bool {
    let mut unfit = refuse_without_settlement(rocket);
    match (rocket.state::<D>(), rocket.state::<AttachedDatabases>()) {
        (None, _) => {
            tracing::error!("{}", Error::NotAttached(type_name::<D>()));
            unfit = true;
        }
        // A database that was attached by rocket_db_pools' own initializer gets its place here.
        (Some(database), Some(attached)) => {
            if let Err(other) = attached.attach::<D, _>(rocket, database) {
                tracing::error!("{}", same_database::<D>(other));
                unfit = true;
            }
        }
        (Some(_), None) => {}
    }
    unfit
}
