//! The runtime in which test databases are created and dropped.
//!
//! A test has a runtime of its own, which ends with the test. The connections that tests share, and
//! the locks of this process, must outlive it.

use std::future::Future;
use std::sync::LazyLock;
#[cfg(feature = "postgres")]
use std::sync::mpsc;
#[cfg(feature = "postgres")]
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// The name of the threads.
const THREAD: &str = "rocket_tx-testing";

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(THREAD)
        .enable_all()
        .build()
        .expect("a test process can start two threads")
});

/// Runs `work` to its end. If the returned future is dropped, `work` continues.
pub(super) async fn run<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match RUNTIME.spawn(work).await {
        Ok(done) => done,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

/// Runs `work` and blocks the thread meanwhile, for `Drop`. Returns `false` if `work` has not ended
/// within a minute; it then continues.
///
/// A thread of the workshop is not blocked, because `work` may need it. `work` then runs later.
#[cfg(feature = "postgres")]
pub(super) fn run_blocking(work: impl Future<Output = ()> + Send + 'static) -> bool {
    const LIMIT: Duration = Duration::from_secs(60);

    let (done, ended) = mpsc::channel();
    RUNTIME.spawn(async move {
        work.await;
        let _nobody_waits = done.send(());
    });
    if std::thread::current().name() == Some(THREAD) {
        return true;
    }
    ended.recv_timeout(LIMIT).is_ok()
}
