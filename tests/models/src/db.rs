//! Connections of the pools: who uses them, and in what state they are acquired. The scenarios are
//! in `sqlite` and `postgres`; this file has the types that they share.

pub mod pools;
pub mod postgres;
pub mod sqlite;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use pools::{
    Access, BeginOptions, CommitError, Durability, Ending, Isolation, Session, Transaction,
    TransactionPool, TransactionalDatabase,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitPolicy {
    queues: bool,
}

impl WaitPolicy {
    pub const QUEUE: Self = Self { queues: true };
    pub const FAIL_FAST: Self = Self { queues: false };

    pub fn first_of_request(self) -> Self {
        self
    }

    pub fn queues(self) -> bool {
        self.queues
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    Busy,
    Unreachable,
    Aborted,
    Other,
}

impl ErrorClass {
    pub fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::PoolTimedOut => Self::Busy,
            _ => Self::Other,
        }
    }
}

pub mod error_class {
    pub fn while_connecting(error: sqlx::Error) -> sqlx::Error {
        error
    }

    pub fn ends_session(_: &sqlx::Error) -> bool {
        false
    }

    pub fn is_lost(_: &sqlx::Error) -> bool {
        false
    }

    pub struct Retried;

    impl Retried {
        pub fn of(last: &sqlx::Error, _: std::time::Duration) -> String {
            last.to_string()
        }
    }
}

pub mod health {
    pub struct Health;

    impl Health {
        pub fn is_unreachable(&self, _: &sqlx::Error) {}
        pub fn is_reached(&self) {}
    }
}

#[derive(Clone, Copy)]
pub struct TransactionId;

pub struct Attachment {
    pub rank: usize,
    pub settle_timeout: Arc<OnceLock<Duration>>,
    pub health: health::Health,
}

impl Attachment {
    pub const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
}
