//! Request-scoped transactions for Rocket that tell the truth: a response that says success means
//! committed. The README is the guide; [`tx`] and [`db`] say what each room holds.
#![forbid(unsafe_code)]
#[cfg(feature = "app")]
#[doc(hidden)]
pub mod app;
pub mod db;
pub mod tx;
pub use tx::{
    Begin, Commit, Error, Observer, Outstanding, Problem, Read, RequestId, Resource, Rollback,
    Settlement, Tx, problem_catchers,
};
pub use {rocket_db_pools, sqlx};
