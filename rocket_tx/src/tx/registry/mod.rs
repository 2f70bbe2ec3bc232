//! What a request has begun and not yet settled.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `outstanding` | [`Outstanding`]: the registry of one request |
//! | `slot` | its place in the request |
//! | `checkout` | checking a transaction out of it, begun on first use |
//! | `open_transaction` | an open transaction, as the resource that it is |
//! | `rank` | the order in which requests take databases |
//! | `require` | transactions that a resource will need, begun as late as may be |
//! | `mode` | isolation and access, as part of a guard's type |
//! | `resource` | [`Resource`] and [`SettleContext`]: how anything else joins |
//! | `settle_context` | the transactions of a request, as a resource may use them: [`BorrowedTransaction`], [`AfterRollback`] |
//! | `hooks` | work for after the commit, and for after the rollback |
//! | `joining` | what a handler asks of it: join, doom, leave work for afterwards |
//! | `closed` | what it hands over to be settled |
//!
//! No other room sees the state of a registry. Settlement closes it, and gets plain data.

mod checkout;
mod closed;
mod hooks;
mod joining;
mod mode;
mod open_transaction;
mod outstanding;
mod rank;
mod require;
mod resource;
mod settle_context;
mod slot;

pub(in crate::tx) use checkout::CheckedOut;
pub(in crate::tx) use closed::{Closed, HeldTransaction};
pub use hooks::HookOutput;
pub use mode::{Mode, ReadOnly, ReadWrite, RepeatableRead, Serializable};
pub(in crate::tx) use open_transaction::{ConnectionOf, OpenTransaction};
pub use outstanding::{Outstanding, Turn};
pub use rank::rank_of;
pub use resource::{Phase, Resource, SettleContext};
pub use settle_context::{AfterRollback, BorrowedTransaction};
