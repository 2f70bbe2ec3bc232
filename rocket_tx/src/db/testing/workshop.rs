//! The runtime in which test databases are created and dropped.
//!
//! A test has a runtime of its own, which ends with the test. The connections that tests share, and
//! the locks of this process, must outlive it.

use std::future::Future;
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("rocket_tx-testing")
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
pub(super) fn run_blocking(work: impl Future<Output = ()> + Send + 'static) -> bool {
    const LIMIT: Duration = Duration::from_secs(60);

    let (done, ended) = mpsc::channel();
    RUNTIME.spawn(async move {
        work.await;
        let _nobody_waits = done.send(());
    });
    ended.recv_timeout(LIMIT).is_ok()
}
