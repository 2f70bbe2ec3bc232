//! The gate: the queue of one process in front of a lease.

#[path = "../../../rocket_tx_aggregates/src/lock/gate.rs"]
mod gate;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use shuttle::future::yield_now;
use shuttle::rand::{Rng, thread_rng};

use crate::{dropped_after, with_all_schedulers};
use gate::Gate;

/// Of four tasks, one tries to enter without waiting, one may be dropped while it waits, and two
/// wait.
async fn one_at_a_time() {
    let gate = Arc::new(Gate::default());
    let inside = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::new();
    for number in 0..4 {
        let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
        tasks.push(tokio::spawn(async move {
            let pass = match number {
                0 => gate.try_enter(),
                1 => dropped_after(Some(thread_rng().gen_range(0..3)), gate.enter()).await,
                _ => Some(gate.enter().await),
            };
            if let Some(_pass) = pass {
                assert_eq!(inside.fetch_add(1, SeqCst), 0, "two tasks are inside");
                yield_now().await;
                gate.mark_released(true);
                inside.fetch_sub(1, SeqCst);
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert!(gate.try_enter().is_some(), "a turn was lost");
}

pub fn the_gate_admits_one_task_at_a_time_and_loses_no_turn() {
    with_all_schedulers(one_at_a_time);
}

/// After enough turns, several tasks check whether to yield. Exactly one of them yields.
async fn yields_once() {
    let gate = Arc::new(Gate::default());
    for _ in 0..4 {
        gate.mark_released(true);
    }
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let gate = Arc::clone(&gate);
        tasks.push(tokio::spawn(async move {
            yield_now().await;
            usize::from(gate.should_yield())
        }));
    }
    let mut yielded = 0;
    for task in tasks {
        yielded += task.await.unwrap();
    }
    assert_eq!(yielded, 1);
}

pub fn the_gate_yields_to_another_process_once() {
    with_all_schedulers(yields_once);
}
