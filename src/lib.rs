//! x
#![forbid(unsafe_code)]
pub mod db;
pub mod tx;
pub use {rocket_db_pools, sqlx};
pub use tx::{
    Begin, Commit, Error, Observer, Outstanding, Problem, Read, RequestId, Resource, Rollback,
    Settlement, Tx, problem_catchers,
};
