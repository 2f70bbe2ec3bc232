//! What all tests stand on: real databases, real sockets, real processes.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `browser` | a real browser, for what only that can show |
//! | `cluster` | a Postgres cluster of a test's own, which can crash, fail over and have its clock set |
//! | `databases` | databases of one test's own, and a look at what is really stored |
//! | `http` | requests over a socket, and their answers |
//! | `stage` | a small service inside the test's process, for what the library promises |
//! | `launch` | launches of a test's own making, above all those that are refused |
//! | `stream` | server-sent events, read as they come |
//! | `pgbouncer` | the connection pooler, in front of a test's databases |
//! | `proxy` | breaks the connection to Postgres at a chosen statement, or the network |
//! | `python` | somebody else's programs, to try the service with |
//! | `service` | the reference service as a process, for what only a process can show |

pub mod browser;
pub mod cluster;
pub mod databases;
pub mod http;
pub mod launch;
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
pub use databases::{Backend, Databases, In};
pub use http::{Http, HttpResponse};
pub use pgbouncer::{Mode, PgBouncer};
pub use proxy::{Break, Newcomers, Proxy};
pub use service::{Service, Starting};
pub use stage::{Audit, Main, Stage};
pub use stream::Events;

/// Makes a test of each behaviour on each backend, in modules that are named after them.
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

/// Waits until `happened`, and fails after a minute: what takes long on a busy machine is no failure.
pub async fn eventually(what: &str, mut happened: impl AsyncFnMut() -> bool) {
    eventually_or(what, &mut (), async |()| happened().await).await;
}

/// The same; a failure shows `last`, which `happened` is given to write to.
pub async fn eventually_or<T: Debug>(
    what: &str,
    last: &mut T,
    mut happened: impl AsyncFnMut(&mut T) -> bool,
) {
    const LONGEST: Duration = Duration::from_secs(60);

    let started = Instant::now();
    while !happened(last).await {
        assert!(
            started.elapsed() < LONGEST,
            "it did not happen in {LONGEST:?}: {what}; at last: {last:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
