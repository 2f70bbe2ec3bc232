//! x
#![forbid(unsafe_code)]
#[cfg(feature = "app")]
#[doc(hidden)]
pub mod app;
pub mod db;
pub mod tx;
pub use {rocket_db_pools, sqlx};
pub use tx::{
    Begin, Commit, Error, Observer, Outstanding, Problem, Read, RequestId, Resource, Rollback,
    Settlement, Tx, problem_catchers,
};
