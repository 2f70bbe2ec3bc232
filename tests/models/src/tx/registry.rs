//! The real registry, without the parts that need a request of Rocket.

#[path = "../../../../rocket_tx/src/tx/registry/checkout.rs"]
mod checkout;
#[path = "../../../../rocket_tx/src/tx/registry/closed.rs"]
mod closed;
#[path = "../../../../rocket_tx/src/tx/registry/joining.rs"]
mod joining;
#[path = "../../../../rocket_tx/src/tx/registry/mode.rs"]
mod mode;
#[path = "../../../../rocket_tx/src/tx/registry/open_transaction.rs"]
mod open_transaction;
#[path = "../../../../rocket_tx/src/tx/registry/outstanding.rs"]
mod outstanding;
#[path = "../../../../rocket_tx/src/tx/registry/rank.rs"]
mod rank;
#[path = "../../../../rocket_tx/src/tx/registry/require.rs"]
mod require;

use super::stand_ins::{attempting, begin_step, database, hooks, resource, response_plan};

pub use mode::{ReadWrite, Serializable};
pub(super) use open_transaction::OpenTransaction;
pub use outstanding::Outstanding;
