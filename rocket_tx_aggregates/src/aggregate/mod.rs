//! Event-sourced aggregates: events are stored, and the state follows from them.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `entity` | [`Entity`]: id, version and new events, the part that every aggregate has |
//! | `event` | [`Event`], [`EventRecord`]: one thing that happened, and its older versions |
//! | `stream` | [`History`], [`Append`], [`HeldLease`]: what is read of a stream, added to it, and the lease on it |
//! | `definition` | [`Aggregate`] and the macro [`aggregate!`](crate::aggregate!) that implements it |
//! | `repository` | [`AsyncRepository`], [`AsyncAggregateRepository`]: load, change, commit |
//! | `queued` | [`QueuedRepository`]: with a lock on what is loaded |
//! | `store` | [`SqlEventStore`]: events, snapshots and read models in one transaction |
//! | `rows`, `by_url` | the rows of events and snapshots |
//! | `sql/` | the statements: those of both backends, and a folder for each |
//! | `memory` | [`InMemoryEventStore`]: the same, for unit tests |
//! | `projection` | [`Projection`]: a read model that is written with the events |
//! | `request` | [`Aggregates`]: the guard, a repository that belongs to a request |
//! | `order` | the keys that a request holds, in all databases |
//! | `leases` | the leases of a request, and what it has staged |
//! | `resource` | both of them, as the resource that is settled with the request |
//! | `initializer` | [`init`]: the fairing that makes the tables and sweeps the leases |
//!
//! # In a handler
//!
//! ```
//! use rocket_tx_aggregates::aggregate::{Aggregate, Aggregates, Entity, Event};
//! use rocket_tx::db::SqlitePool;
//! use rocket_tx::rocket_db_pools::{self, Database};
//! use rocket_tx::Error;
//! use rocket_tx_aggregates::aggregate;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Database)]
//! #[database("main")]
//! struct Main(SqlitePool);
//!
//! #[derive(Debug, Clone, Default, Serialize, Deserialize)]
//! struct Account {
//!     #[serde(skip)]
//!     entity: Entity,
//!     balance: i64,
//! }
//!
//! #[derive(Serialize, Deserialize)]
//! struct Deposited { amount: i64 }
//!
//! impl Event<Account> for Deposited {
//!     const NAME: &'static str = "deposited";
//!     fn apply(self, account: &mut Account) { account.balance += self.amount }
//! }
//!
//! aggregate!(Account as "account", entity, [Deposited]);
//!
//! #[rocket::post("/accounts/<id>/deposit/<amount>")]
//! async fn deposit(id: &str, amount: i64, accounts: Aggregates<Main, Account>) -> Result<(), Error> {
//!     let mut account = accounts.get(id).await?.ok_or(Error::NotFound)?;
//!     account.record(Deposited { amount })?;
//!     accounts.commit(&mut account).await?;
//!     Ok(())
//! }
//! ```
//!
//! The event is stored in the request's own transaction, if the response is a success. Until then
//! no other process writes this account: `get` has its lease.

mod by_url;
mod definition;
mod entity;
mod error;
mod event;
mod initializer;
mod leases;
mod memory;
mod order;
mod projection;
mod queued;
mod repository;
mod request;
mod resource;
mod rows;
mod store;
mod stream;

pub use definition::Aggregate;
pub use entity::Entity;
pub use error::Error;
pub use event::{Event, EventRecord, Metadata, ReplayError};
pub use initializer::{Initializer, Leases, LoadObserver, init};
pub use memory::InMemoryEventStore;
pub use projection::Projection;
pub use queued::{Queueable, QueuedRepository};
pub use repository::{AsyncAggregateRepository, AsyncRepository, AsyncUnlockableRepository};
pub use request::{Aggregates, RequestRepository};
pub use rows::{AggregateDatabase, AggregatePool, EventRows};
pub use store::{EventStore, SqlEventStore};
pub use stream::{Append, HeldLease, History, Snapshot};

#[doc(hidden)]
pub use event::replay_as;
