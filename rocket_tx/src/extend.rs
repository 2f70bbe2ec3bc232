//! Interfaces for libraries that build on this one: aggregates, an outbox, a store of idempotency
//! keys.
//!
//! Such a library joins a [`Resource`](crate::Resource) to the request. It may also need functions
//! that handlers do not need.
//!
//! For a request:
//!
//! | item | purpose |
//! | --- | --- |
//! | [`Outstanding::of`](crate::Outstanding::of) | get the registry of a request |
//! | [`mark_used`](crate::Outstanding::mark_used) | make the response carry `Transaction-Outcome` |
//! | [`mark_wanted`](crate::Outstanding::mark_wanted) | the same, but only if the request panics; then no catcher can turn it into a success |
//! | [`acquire_in_turn`](crate::Outstanding::acquire_in_turn), [`holds_a_connection`](crate::Outstanding::holds_a_connection) | wait for a connection or a lease without a deadlock |
//! | [`open_mode`](crate::Outstanding::open_mode) | get the isolation and access of the open transaction |
//! | [`cap_isolation`](crate::Outstanding::cap_isolation) | forbid isolation above READ COMMITTED |
//! | [`on_begin`](crate::Outstanding::on_begin) | run a step at the beginning of a transaction that writes |
//! | [`capture_response`](crate::Outstanding::capture_response), [`SettleContext::response`](crate::tx::SettleContext::response) | read the final response before the commit |
//! | [`BorrowedTransaction::mark_written`](crate::tx::BorrowedTransaction::mark_written) | save the query whether the transaction has written |
//! | [`respond_with`](crate::Outstanding::respond_with), [`advise_repeat`](crate::Outstanding::advise_repeat) | send the stored response of an earlier request; tell clients to send theirs again |
//! | [`Tx::current_in`](crate::Tx::current_in), [`Begin::in_request`](crate::Begin::in_request), [`Read::in_request`](crate::Read::in_request) | use the request's transactions and reads outside a guard |
//! | [`Lookup`] | read on a connection that no handler gets; it is returned without a check |
//! | [`attached`] | get the database of a guard |
//! | [`rank_of`] | get the place of a database in the order of attachment |
//! | [`guard_failed`] | make a guard fail, and its request roll back |
//!
//! For a database:
//!
//! | item | purpose |
//! | --- | --- |
//! | [`Sessions`], with [`PostgresPool::settings`](crate::db::PostgresPool::settings) | Postgres sessions that are separate from those of requests |
//! | [`OneShotWriter`], from [`SqlitePool::writer`](crate::db::SqlitePool::writer) | write to SQLite outside the transactions of requests |
//! | [`ErrorClass`] | classify database errors |
//! | [`Attachment`](crate::db::Attachment) | the link from a pool to its service: the place in the order of attachment, and the closing at shutdown |
//! | [`setting`] | read a configuration value |
//!
//! A library that has code for each backend needs the backends of this crate, not features of its
//! own: another package of the service may enable more of them. A build script of a package that
//! depends on this one finds `DEP_ROCKET_TX_SQLITE` and `DEP_ROCKET_TX_POSTGRES` in its environment,
//! one for each backend that is enabled.

pub use crate::db::{ErrorClass, setting};
#[cfg(feature = "postgres")]
pub use crate::db::{Limits, Liveness, OnReturn, Sessions, Settings};
#[cfg(feature = "sqlite")]
pub use crate::db::{OneShotWriter, is_sqlite_busy};
pub use crate::tx::{Lookup, Turn, attached, guard_failed, rank_of};
