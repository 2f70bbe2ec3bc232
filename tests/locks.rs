//! Locks by key: in memory, and leases in a database that several processes share.
//!
//! Each manager has its own gates (the in-process queues in front of the leases). Two managers with
//! separate pools therefore behave like two processes.

mod cancelled;
mod fencing;
mod hand_over;
mod leases;
mod memory;
mod network;
mod one_statement;
mod several;

use std::time::Duration;

use rocket::figment::Figment;
use rocket_db_pools::Pool;
use rocket_tx::db::UrlPool;
use rocket_tx_aggregates::lock::{LeaseRow, UrlLockManager};

use crate::support::{Backend, Databases, eventually};

/// A database with the table of leases, and a manager on it.
pub struct Leases {
    databases: Databases,
    pub manager: UrlLockManager,
}

impl Leases {
    pub async fn new(backend: Backend) -> Self {
        let databases = Databases::new(backend).await;
        let manager = manager(&databases).await;
        manager.migrate().await.unwrap();
        Self { databases, manager }
    }

    /// Returns a separate manager, as another process would have.
    pub async fn another(&self) -> UrlLockManager {
        manager(&self.databases).await
    }

    pub async fn rows(&self) -> Vec<LeaseRow> {
        self.manager.leases().await.unwrap()
    }

    /// Waits until no row and no gate is left.
    pub async fn everything_is_free(&self) {
        eventually("every lease is released", async || {
            self.rows().await.is_empty()
        })
        .await;
        eventually("no gate is left", async || self.manager.keys() == 0).await;
    }
}

async fn manager(databases: &Databases) -> UrlLockManager {
    manager_on(&databases.main).await
}

/// Returns a manager with its own pool on this URL.
async fn manager_on(url: &str) -> UrlLockManager {
    let figment = Figment::from(("url", url))
        .merge(("max_connections", 4))
        .merge(("connect_timeout", 5));
    let pool = UrlPool::init(&figment).await.unwrap();
    UrlLockManager::new(&pool).with_retry_interval(Duration::from_millis(20))
}
