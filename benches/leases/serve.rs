//! The main function of a process that runs cases.
//!
//! | command | reply |
//! | --- | --- |
//! | `tasks N distinct`, `tasks N one` | runs N tasks for a second, each with a key of its own or all with the same; the number of pairs, and the microseconds that the longest took |
//! | `hold` | takes a key; an empty line |
//! | `release` | the time just before the key was released, in microseconds |
//! | `wait` | waits for the key; the time at which it had it. Releases it again |

use std::io::BufRead;
use std::time::{Duration, Instant, SystemTime};

const SLICE: Duration = Duration::from_secs(1);

/// A kind of lock. `connect` is called once, on the runtime.
pub trait Locks: Sized + Sync + 'static {
    type Held;

    fn connect(&mut self) -> impl Future<Output = ()> + Send;
    /// `task` is the number of the calling task.
    fn acquire(&self, task: usize, key: &str) -> impl Future<Output = Self::Held> + Send;
    fn release(&self, task: usize, held: Self::Held) -> impl Future<Output = ()> + Send;
}

/// Runs the commands from the standard input until it is closed.
pub fn serve<L: Locks<Held: Send> + Send>(mut locks: L) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(locks.connect());
    let locks: &'static L = Box::leak(Box::new(locks));
    let mut held = None;
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        match &line.split(' ').collect::<Vec<_>>()[..] {
            ["tasks", number, keys] => {
                let number = number.parse().unwrap();
                let (pairs, longest) = runtime.block_on(tasks(locks, number, *keys == "one"));
                println!("{pairs} {}", longest.as_micros());
            }
            ["hold"] => {
                held = Some(runtime.block_on(locks.acquire(0, "handed over")));
                println!();
            }
            ["release"] => {
                let held = held.take().unwrap();
                let released = now();
                // In a task, so that no step waits for this thread.
                let release = runtime.spawn(locks.release(0, held));
                runtime.block_on(release).unwrap();
                println!("{released}");
            }
            ["wait"] => {
                let waiting = runtime.spawn(async {
                    let held = locks.acquire(0, "handed over").await;
                    let taken = now();
                    locks.release(0, held).await;
                    taken
                });
                println!("{}", runtime.block_on(waiting).unwrap());
            }
            _ => panic!("unknown command: {line}"),
        }
    }
}

fn now() -> u128 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_micros()
}

async fn tasks<L: Locks<Held: Send> + Send>(
    locks: &'static L,
    number: usize,
    is_one_key: bool,
) -> (u64, Duration) {
    let until = Instant::now() + SLICE;
    let task = |task| async move {
        let key = match is_one_key {
            true => "key".to_owned(),
            false => format!("key {task}"),
        };
        let (mut pairs, mut longest) = (0, Duration::ZERO);
        while Instant::now() < until {
            let started = Instant::now();
            let held = locks.acquire(task, &key).await;
            locks.release(task, held).await;
            pairs += 1;
            longest = longest.max(started.elapsed());
        }
        (pairs, longest)
    };
    let running: Vec<_> = (0..number)
        .map(|number| tokio::spawn(task(number)))
        .collect();
    let (mut pairs, mut longest) = (0, Duration::ZERO);
    for task in running {
        let (more, longer) = task.await.unwrap();
        pairs += more;
        longest = longest.max(longer);
    }
    (pairs, longest)
}
