//! What a request has begun and not yet settled.
//!
//! | file | contents |
//! | --- | --- |
//! | `outstanding` | [`Outstanding`]: the registry of one request |
//! | `slot` | the registry's place in Rocket's request-local cache |
//! | `checkout` | checking a transaction out of the registry; the transaction is begun on first use |
//! | `open_transaction` | an open transaction as a [`Resource`] |
//! | `database`, `participation` | an open transaction as a part of an atomic commit over several databases |
//! | `rank` | the place of a database in the order of attachment, in which requests take databases |
//! | `require` | transactions that a resource will need, begun as late as possible |
//! | `mode` | isolation and access, as part of a guard's type |
//! | `resource` | [`Resource`]: the trait of everything that can join; [`SettleContext`] |
//! | `settle_context` | access of resources to the request's transactions: [`BorrowedTransaction`], [`AfterRollback`] |
//! | `begin_step` | [`BeginStep`]: runs at the beginning of a transaction that writes |
//! | `response_plan` | what is to be done with the response: read it, or send a stored one instead |
//! | `extending` | the methods for other libraries: steps of transactions, and the final response |
//! | `attempts` | undoing what a failed attempt of [`Begin::retrying`](crate::tx::Begin::retrying) has begun |
//! | `attempting` | whether such attempts are running, and whether the current code belongs to them |
//! | `hooks` | work for after the commit, after the rollback, and after the settlement |
//! | `joining` | the methods for handlers: join, doom, hooks |
//! | `closed` | the contents of a registry, handed over to be settled |
//!
//! No other module sees the state of a registry. Settlement closes the registry and receives its
//! contents as plain data.

mod attempting;
mod attempts;
mod begin_step;
mod checkout;
mod closed;
mod database;
mod extending;
mod hooks;
mod joining;
mod mode;
mod open_transaction;
mod outstanding;
mod participation;
mod rank;
mod require;
mod resource;
mod response_plan;
mod settle_context;
mod slot;

pub use begin_step::BeginStep;
pub(in crate::tx) use checkout::CheckedOut;
pub(in crate::tx) use closed::{Closed, HeldTransaction};
pub use hooks::HookOutput;
pub(in crate::tx) use hooks::Hooks;
pub use mode::{Mode, ReadOnly, ReadWrite, RepeatableRead, Serializable};
pub(in crate::tx) use open_transaction::OpenTransaction;
pub use outstanding::{Outstanding, Turn};
pub use rank::rank_of;
pub use resource::{Phase, Resource, SettleContext};
pub use settle_context::{AfterRollback, BorrowedTransaction};
