//! The real registry, but for what Rocket's requests are needed for.

#[path = "../../../../src/tx/registry/checkout.rs"]
mod checkout;
#[path = "../../../../src/tx/registry/closed.rs"]
mod closed;
#[path = "../../../../src/tx/registry/joining.rs"]
mod joining;
#[path = "../../../../src/tx/registry/mode.rs"]
mod mode;
#[path = "../../../../src/tx/registry/open_transaction.rs"]
mod open_transaction;
#[path = "../../../../src/tx/registry/outstanding.rs"]
mod outstanding;
#[path = "../../../../src/tx/registry/require.rs"]
mod require;

use super::stand_ins::{hooks, resource};

pub use mode::{ReadWrite, Serializable};
pub use outstanding::Outstanding;
