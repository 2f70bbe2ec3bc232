//! For libraries that are built on this one: aggregates, an outbox, a store of idempotency keys.
//!
//! What they join to a request is a [`Resource`](crate::Resource). Beyond it they need what handlers
//! need not:
//!
//! | of a request | |
//! | --- | --- |
//! | [`Outstanding::of`](crate::Outstanding::of) | its registry |
//! | [`mark_used`](crate::Outstanding::mark_used), [`mark_wanted`](crate::Outstanding::mark_wanted) | its response tells the outcome |
//! | [`acquire_in_turn`](crate::Outstanding::acquire_in_turn), [`holds_a_connection`](crate::Outstanding::holds_a_connection) | waiting without a deadlock |
//! | [`open_mode`](crate::Outstanding::open_mode), [`cap_isolation`](crate::Outstanding::cap_isolation) | how strict its transactions are |
//! | [`Tx::current_in`](crate::Tx::current_in), [`Begin::in_request`](crate::Begin::in_request), [`Read::in_request`](crate::Read::in_request) | its transactions and reads |
//! | [`attached`], [`rank_of`], [`guard_failed`] | guards of their own |
//!
//! And of a database: sessions of their own beside those of requests ([`Sessions`], by
//! [`PostgresPool::settings`](crate::db::PostgresPool::settings); [`OneShotWriter`], by
//! [`SqlitePool::writer`](crate::db::SqlitePool::writer)), what an error means ([`ErrorClass`]), a
//! pool's place in its service ([`Attachment`](crate::db::Attachment)), and the configuration ([`setting`]).

pub use crate::db::{ErrorClass, setting};
#[cfg(feature = "postgres")]
pub use crate::db::{Limits, Liveness, OnReturn, Sessions, Settings};
#[cfg(feature = "sqlite")]
pub use crate::db::{OneShotWriter, is_sqlite_busy};
pub use crate::tx::{Turn, attached, guard_failed, rank_of};
