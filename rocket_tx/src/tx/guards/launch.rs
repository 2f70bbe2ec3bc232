//! The check at launch that a service has everything that guards need. If a line is missing in the
//! launch code, the log names it.

use std::any::type_name;
use std::sync::Arc;

use rocket::{Ignite, Phase, Request, Rocket};

use crate::db::{AttachedDatabases, TransactionPool, TransactionalDatabase, same_database};
use crate::tx::failure::Error;
use crate::tx::fairings::FairingOrder;

/// Returns `true`, to stop the launch, if the service has no `Settlement` or if a response fairing
/// would run after `Settlement`. Logs the reason and what to change.
pub(super) fn refuse_without_settlement<P: Phase>(rocket: &Rocket<P>) -> bool {
    match rocket.state::<Arc<FairingOrder>>() {
        Some(order) => order.settles_too_early(rocket),
        None => {
            tracing::error!("{}", Error::NoSettlement);
            true
        }
    }
}

/// Returns the attached database `D`. For guards of other libraries.
///
/// # Errors
///
/// [`Error::NotAttached`] if `D` is not attached.
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

/// Returns `true`, to stop the launch, if the service cannot serve guards of `D`. Logs what is
/// missing or wrong.
pub(super) fn check_launch<D: TransactionalDatabase>(rocket: &Rocket<Ignite>) -> bool {
    let mut unfit = refuse_without_settlement(rocket);
    match (rocket.state::<D>(), rocket.state::<AttachedDatabases>()) {
        (None, _) => {
            tracing::error!("{}", Error::NotAttached(type_name::<D>()));
            unfit = true;
        }
        // A database that was attached by rocket_db_pools' own initializer gets its rank, its place
        // in the order of attachment, here.
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
