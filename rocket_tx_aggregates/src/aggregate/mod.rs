//! Event-sourced aggregates: the events are stored, and the state is computed from them.
//!
//! | file | contents |
//! | --- | --- |
//! | `entity` | [`Entity`]: the id, version and new events that every aggregate has |
//! | `event` | [`Event`], [`EventRecord`]: a kind of event, and an event as it is stored |
//! | `stream` | [`History`], [`Append`], [`HeldLease`]: content of a stream, new events, lease |
//! | `definition` | [`Aggregate`] and the macro [`aggregate!`](crate::aggregate!) that implements it |
//! | `repository` | [`AsyncRepository`], [`AsyncAggregateRepository`]: load, change, commit |
//! | `queued` | [`QueuedRepository`]: a repository that locks each aggregate it loads |
//! | `store` | [`SqlEventStore`]: events, snapshots and read models in one transaction |
//! | `rows`, `by_url` | the rows of events and snapshots, for each backend and by URL |
//! | `sql/` | the SQL statements: those shared by both backends, and a folder for each backend |
//! | `memory` | [`InMemoryEventStore`]: events and snapshots in memory, for unit tests |
//! | `projection` | [`Projection`], [`Change`]: a read model that is written in the transaction of the events |
//! | `request` | [`Aggregates`]: the request guard, a repository that belongs to one request |
//! | `order` | the keys that a request has leased, in all databases |
//! | `leases` | the leases and the staged events of a request |
//! | `resource` | the resource that stores those events and releases those leases at settlement |
//! | `testing` | tests of aggregates without a database |
//! | `initializer` | [`init`]: the fairing that creates the tables and deletes expired leases |
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
//! If the response is a success, the request's own transaction stores the event. Until then no
//! other process writes this account, because `get` has taken its lease.

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
#[cfg(feature = "testing")]
pub mod testing;

pub use definition::Aggregate;
pub use entity::Entity;
pub use error::AggregateError;
pub use event::{Event, EventRecord, ListedEvent, Metadata, ReplayError};
pub use initializer::{Initializer, Leases, LoadObserver, init};
pub use memory::InMemoryEventStore;
pub use projection::{Change, Projection};
pub use queued::{Queueable, QueuedRepository};
pub use repository::{AsyncAggregateRepository, AsyncRepository, AsyncUnlockableRepository};
pub use request::{Aggregates, RequestRepository};
pub use rows::{AggregateDatabase, AggregatePool, EventRows};
pub use store::{EventStore, SqlEventStore};
pub use stream::{Append, HeldLease, History, Snapshot};

#[doc(hidden)]
pub use event::replay_as;
