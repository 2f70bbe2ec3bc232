//! Shared test code: real databases, real sockets, real processes.
//!
//! | file | contents |
//! | --- | --- |
//! | `browser` | a real browser, for tests of the pages |
//! | `cluster` | a Postgres cluster for one test; it can crash, fail over, and change its clock |
//! | `databases` | the databases of one test, by `rocket_tx::testing`, and functions that read what is stored |
//! | `dropping` | futures that are dropped before they complete |
//! | `http` | requests over a socket, and their responses |
//! | `stage` | a small service inside the test's process, for the promises of the library |
//! | `launch` | launches of services that a test defines itself, mostly launches that are refused |
//! | `lookup` | the guard of a library that reads |
//! | `stream` | server-sent events, read as they arrive |
//! | `pgbouncer` | the connection pooler, in front of a test's databases |
//! | `proxy` | a proxy that breaks the network, or a connection to Postgres at a chosen statement |
//! | `python` | third-party Python programs that exercise the service |
//! | `service` | the reference service as a separate process |

pub mod browser;
pub mod cluster;
pub mod databases;
pub mod dropping;
pub mod http;
pub mod launch;
pub mod lookup;
pub mod pgbouncer;
pub mod proxy;
pub mod python;
pub mod service;
pub mod stage;
pub mod stream;

use std::fmt::Debug;
use std::time::{Duration, Instant};

pub use browser::Browser;
pub use cluster::Cluster;
pub use databases::{Audit, Backend, Databases, In, Main, WRITES};
pub use dropping::dropped_after;
pub use http::{Http, HttpResponse};
pub use pgbouncer::{Mode, PgBouncer};
pub use proxy::{Break, Newcomers, Proxy};
pub use service::{Service, Starting};
pub use stage::Stage;
pub use stream::Events;

/// Makes a test of each behaviour on each backend, in the modules `sqlite` and `postgres`.
macro_rules! on_each_backend {
    ($($behaviour:ident),+ $(,)?) => {
        mod sqlite {
            use crate::support::Backend;

            $(
                #[rocket::async_test]
                async fn $behaviour() {
                    super::$behaviour(Backend::Sqlite).await;
                }
            )+
        }

        mod postgres {
            use crate::support::Backend;

            $(
                #[rocket::async_test]
                async fn $behaviour() {
                    super::$behaviour(Backend::Postgres).await;
                }
            )+
        }
    };
}

/// Waits until `holds` returns `true`. Fails after a minute, which is enough on a busy machine.
pub async fn eventually(condition: &str, mut holds: impl AsyncFnMut() -> bool) {
    eventually_or(condition, &mut (), async |()| holds().await).await;
}

/// Like [`eventually`], with another limit than a minute.
pub async fn eventually_within(
    longest: Duration,
    condition: &str,
    mut holds: impl AsyncFnMut() -> bool,
) {
    until(longest, condition, &mut (), async |()| holds().await).await;
}

/// Like [`eventually`]. `holds` can write to `last`, which the message of a failure shows.
pub async fn eventually_or<T: Debug>(
    condition: &str,
    last: &mut T,
    holds: impl AsyncFnMut(&mut T) -> bool,
) {
    until(Duration::from_secs(60), condition, last, holds).await;
}

async fn until<T: Debug>(
    longest: Duration,
    condition: &str,
    last: &mut T,
    mut holds: impl AsyncFnMut(&mut T) -> bool,
) {
    let started = Instant::now();
    while !holds(last).await {
        assert!(
            started.elapsed() < longest,
            "not in {longest:?}: {condition}; last value: {last:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
