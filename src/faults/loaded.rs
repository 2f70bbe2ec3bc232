//! Faults right after an aggregate was loaded. In this service the request then holds the lease of
//! the aggregate, but no connection.

use std::error::Error;
use std::time::Duration;

use rocket::Request;
use rocket::tokio::time::sleep;
use rocket_tx::db::{BeginOptions, TransactionPool, UrlPool};
use rocket_tx_aggregates::aggregate::LoadObserver;

use crate::databases::Main;

use super::parse::Fault;
use super::requested::admitted;
use super::sql;

/// Returns an observer that carries out the request's faults after an aggregate was loaded. Returns
/// `None` if the request has no such fault.
pub(crate) fn at_loaded(request: &Request<'_>) -> Option<Box<dyn LoadObserver>> {
    let faults = admitted(request).ok()?;
    let at_loaded = |fault: &Fault| match fault {
        Fault::DelayLoaded(time) => Some(AtLoaded::Delay(*time)),
        Fault::ExpireLease => {
            let main: &Main = request.rocket().state()?;
            Some(AtLoaded::Expire((**main).clone()))
        }
        _ => None,
    };
    let wanted: Vec<AtLoaded> = faults.iter().filter_map(at_loaded).collect();
    if wanted.is_empty() {
        return None;
    }
    Some(Box::new(LoadFaults(wanted)))
}

struct LoadFaults(Vec<AtLoaded>);

enum AtLoaded {
    Delay(Duration),
    Expire(UrlPool),
}

#[rocket::async_trait]
impl LoadObserver for LoadFaults {
    async fn loaded(&self, stream: &str) {
        for fault in &self.0 {
            match fault {
                AtLoaded::Delay(time) => sleep(*time).await,
                AtLoaded::Expire(pool) => {
                    if let Err(error) = expire(pool, stream).await {
                        tracing::warn!(%error, "cannot inject the fault `expire-lease`");
                    }
                }
            }
        }
    }
}

async fn expire(pool: &UrlPool, stream: &str) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut transaction = pool.open(BeginOptions::default()).await?;
    sql::hand_the_lease_over(transaction.connection(), stream).await?;
    transaction.commit().await?;
    Ok(())
}
