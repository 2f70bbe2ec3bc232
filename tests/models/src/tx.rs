//! The registry of one request, which is the list of what is outstanding. Several tasks use it at
//! the same time, also while the request is settled and after that.

pub mod registry;
mod stand_ins;

pub use registry::{Outstanding, ReadWrite, Serializable};
use stand_ins::{failure, monitor, panics, request_id, verdict};

use std::sync::Arc;

use rocket_db_pools::Database;
use shuttle::future::yield_now;
use shuttle::rand::{Rng, thread_rng};

use crate::db::pools::{First, Pool, Second, Transactions};
use crate::{dropped_after, with_all_schedulers};
use failure::Error;

fn registry() -> Arc<Outstanding> {
    let (live, observers) = (monitor::Live, monitor::Observers);
    Arc::new(Outstanding::new(request_id::RequestId, live, observers))
}

/// Does what a guard does: begins or checks out the transaction, writes, and checks it in.
async fn work<D: Database<Pool = Pool>>(
    outstanding: &Arc<Outstanding>,
    pool: &Pool,
    keep: bool,
) -> Result<(), Error> {
    let begun = outstanding.begin::<D, ReadWrite>(pool, "guard").await;
    let mut checked_out = begun?;
    let transaction = checked_out.open.as_mut().map(|open| open.transaction());
    let Some(transaction) = transaction else {
        panic!("a guard has checked out no transaction");
    };
    transaction.write();
    yield_now().await;
    if keep {
        // A task that outlives its request keeps the guard.
        tokio::spawn(async move {
            yield_now().await;
            if let Some(open) = checked_out.open.as_mut() {
                open.transaction().write();
            }
        });
    }
    Ok(())
}

/// Does what settlement does: closes the registry, collects the transactions, condemns those that a
/// guard still holds, and commits if no guard holds any. Returns how many were collected, and how
/// many were held.
async fn settle(outstanding: &Arc<Outstanding>) -> (usize, usize) {
    let mut closed = outstanding.close();
    closed.collect();
    let leaked = closed.held().count();
    let mut resources = closed.resources;
    if leaked == 0 {
        let opened = outstanding.open_required(closed.unopened).await;
        resources.extend(opened.unwrap_or_else(|error| panic!("{error:?}")));
        for resource in &mut resources {
            resource
                .commit()
                .await
                .unwrap_or_else(|error| panic!("{error:?}"));
        }
    }
    (resources.len(), leaked)
}

/// Three tasks of one request run while it is settled. One may keep its guard, and one may be
/// abandoned.
async fn settled_while_tasks_run() {
    let transactions = Transactions::default();
    let (first, second) = (Pool::new(0, &transactions), Pool::new(1, &transactions));
    let outstanding = registry();
    let mut tasks = Vec::new();
    for number in 0..3 {
        let outstanding = Arc::clone(&outstanding);
        let (first, second) = (first.clone(), second.clone());
        let (keep, times) = {
            let mut random = thread_rng();
            (number == 0 && random.gen_bool(0.5), random.gen_range(0..6))
        };
        tasks.push(tokio::spawn(async move {
            let done = async {
                match number {
                    0 => work::<First>(&outstanding, &first, keep).await,
                    1 => {
                        work::<First>(&outstanding, &first, false).await?;
                        work::<Second>(&outstanding, &second, false).await
                    }
                    _ => work::<Second>(&outstanding, &second, false).await,
                }
            };
            let limit = (number == 2).then_some(times);
            match dropped_after(limit, done).await {
                None | Some(Ok(())) => {}
                Some(Err(Error::CheckedOut(_) | Error::Settled | Error::OutOfOrder(_))) => {}
                Some(Err(error)) => panic!("{error:?}"),
            }
        }));
    }
    yield_now().await;
    let (taken, leaked) = settle(&outstanding).await;
    // The registry accepts nothing more, and no guard has a transaction that was committed.
    let late = work::<First>(&outstanding, &first, false).await;
    assert!(matches!(late, Err(Error::Settled)), "{late:?}");
    let mut late = outstanding.close();
    late.collect();
    assert!(late.resources.is_empty() && late.held().count() == 0);
    for task in tasks {
        task.await.unwrap_or_else(|error| panic!("{error}"));
    }
    let committed = if leaked == 0 { taken } else { 0 };
    transactions
        .wait_until_all_have_ended(committed, leaked == 0)
        .await;
}

pub fn a_registry_is_settled_while_its_tasks_run() {
    with_all_schedulers(settled_while_tasks_run);
}

/// Tasks of one request share one transaction of each database. A task that is abandoned while it
/// begins leaves the registry unchanged. The settlement comes after all tasks.
async fn one_transaction_per_database() {
    let transactions = Transactions::default();
    let (first, second) = (Pool::new(0, &transactions), Pool::new(1, &transactions));
    let outstanding = registry();
    let mut tasks = Vec::new();
    let times = thread_rng().gen_range(0..4);
    for number in 0..3 {
        let outstanding = Arc::clone(&outstanding);
        let (first, second) = (first.clone(), second.clone());
        tasks.push(tokio::spawn(async move {
            match number {
                0 => {
                    let abandoned = work::<Second>(&outstanding, &second, false);
                    let done = dropped_after(Some(times), abandoned).await;
                    done.unwrap_or(Ok(()))
                }
                1 => {
                    let required = outstanding.require::<First>(&first);
                    required?;
                    work::<Second>(&outstanding, &second, false).await
                }
                _ => work::<First>(&outstanding, &first, false).await,
            }
        }));
    }
    for task in tasks {
        match task.await.unwrap_or_else(|error| panic!("{error}")) {
            Ok(()) | Err(Error::CheckedOut(_) | Error::OutOfOrder(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    // No task holds a transaction, so each can be checked out.
    let second = work::<Second>(&outstanding, &second, false).await;
    second.unwrap_or_else(|error| panic!("{error:?}"));
    let first = work::<First>(&outstanding, &first, false).await;
    first.unwrap_or_else(|error| panic!("{error:?}"));
    let (taken, leaked) = settle(&outstanding).await;
    assert_eq!(leaked, 0);
    assert_eq!(taken, 2);
    transactions.wait_until_all_have_ended(taken, true).await;
}

pub fn tasks_of_a_request_share_one_transaction_per_database() {
    with_all_schedulers(one_transaction_per_database);
}

/// Requests use two databases with one connection each. One request uses them in the opposite
/// order.
async fn opposite_orders() {
    let transactions = Transactions::default();
    let (first, second) = (Pool::new(0, &transactions), Pool::new(1, &transactions));
    let mut tasks = Vec::new();
    for number in 0..3 {
        let (first, second) = (first.clone(), second.clone());
        tasks.push(tokio::spawn(async move {
            let outstanding = registry();
            let one = match number {
                0 => work::<Second>(&outstanding, &second, false).await,
                _ => work::<First>(&outstanding, &first, false).await,
            };
            assert!(
                one.is_ok(),
                "a request that holds nothing waits and does not fail: {one:?}"
            );
            let other = match number {
                0 => work::<First>(&outstanding, &first, false).await,
                _ => work::<Second>(&outstanding, &second, false).await,
            };
            match other {
                Ok(()) => {}
                Err(Error::OutOfOrder(_)) if number == 0 => {}
                Err(error) => panic!("{error:?}"),
            }
            settle(&outstanding).await.0
        }));
    }
    let mut taken = 0;
    for task in tasks {
        taken += task.await.unwrap_or_else(|error| panic!("{error}"));
    }
    transactions.wait_until_all_have_ended(taken, true).await;
}

pub fn requests_with_opposite_orders_do_not_deadlock() {
    with_all_schedulers(opposite_orders);
}
