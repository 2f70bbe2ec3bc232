//! The gate: the queue of one process in front of a lease.

#[path = "../../../rocket_tx_aggregates/src/lock/gate.rs"]
mod gate;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use shuttle::future::yield_now;
use shuttle::rand::{Rng, thread_rng};

use crate::{dropped_after, with_all_schedulers};
use gate::{Gate, Grace};

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
                gate.mark_released(true, true, Instant::now());
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

/// After the process gave way, several tasks check whether to yield. Exactly one of them yields.
async fn yields_once() {
    const SECOND: Duration = Duration::from_secs(1);

    let gate = Arc::new(Gate::new(Grace {
        first: SECOND,
        longest: SECOND,
    }));
    let now = Instant::now();
    assert!(gate.mark_released(true, true, now));
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let gate = Arc::clone(&gate);
        tasks.push(tokio::spawn(async move {
            yield_now().await;
            usize::from(gate.yields_until(now).is_some())
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

/// Tasks queue and release, and one of them may leave the queue. Afterwards the queue counts as
/// empty, so the next release gives way to the process that waits.
async fn an_empty_queue_gives_way() {
    let gate = Arc::new(Gate::default());
    let mut tasks = Vec::new();
    for number in 0..3 {
        let gate = Arc::clone(&gate);
        tasks.push(tokio::spawn(async move {
            let times = (number == 0).then(|| thread_rng().gen_range(0..3));
            if let Some(_pass) = dropped_after(times, gate.enter()).await {
                yield_now().await;
                let now = Instant::now();
                let wakes = gate.should_give_way(now);
                gate.mark_released(true, wakes, now);
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let now = Instant::now();
    assert!(gate.should_give_way(now), "the queue counts as busy");
}

pub fn a_gate_without_a_queue_gives_way() {
    with_all_schedulers(an_empty_queue_gives_way);
}
