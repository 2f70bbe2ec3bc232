//! Launches of services that a test defines itself, in the test's process.

use std::io;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use rocket::error::ErrorKind;
use rocket::fairing::AdHoc;
use rocket::tokio::sync::oneshot;
use rocket::tokio::task::JoinHandle;
use rocket::{Build, Ignite, Rocket, Shutdown};
use tracing::instrument::WithSubscriber;
use tracing::{Dispatch, Subscriber};

use super::Http;

/// A service on a real socket.
pub struct Launched {
    pub http: Http,
    shutdown: Shutdown,
    running: JoinHandle<Result<Rocket<Ignite>, rocket::Error>>,
}

impl Launched {
    pub async fn new(rocket: Rocket<Build>) -> Self {
        let (ready, launched) = oneshot::channel();
        let rocket = rocket.attach(AdHoc::on_liftoff("Ready", |rocket| {
            Box::pin(async move {
                let sent = ready.send((rocket.config().port, rocket.shutdown()));
                assert!(sent.is_ok());
            })
        }));
        let running = rocket::tokio::spawn(rocket.launch());
        let Ok((port, shutdown)) = launched.await else {
            panic!("the launch failed: {:?}", running.await);
        };
        Self {
            http: Http::new(port),
            shutdown,
            running,
        }
    }

    /// Shuts the service down. The launch must return without an error.
    pub async fn close(self) {
        self.shutdown.notify();
        self.running.await.unwrap().unwrap();
    }
}

/// Asserts that a launch is refused, and returns its log.
///
/// The refusal must come from a fairing or a guard, not from Rocket itself.
pub async fn refused(rocket: Rocket<Build>) -> String {
    let (result, log) = logged(rocket.ignite()).await;
    match result {
        Ok(_) => panic!("the launch was not refused:\n{log}"),
        Err(error) => match error.kind() {
            ErrorKind::FailedFairings(_) | ErrorKind::SentinelAborts(_) => log,
            kind => panic!("refused for another reason: {kind}\n{log}"),
        },
    }
}

/// Returns the result of `work` and its log, without the logs of tasks that `work` spawns.
pub async fn logged<T>(work: impl Future<Output = T>) -> (T, String) {
    let log = Log::default();
    let result = work.with_subscriber(log.subscriber()).await;
    (result, log.text())
}

/// Returns what this thread logs while `work` runs, in any task.
pub fn logged_here(work: impl FnOnce()) -> String {
    let log = Log::default();
    tracing::subscriber::with_default(log.subscriber(), work);
    log.text()
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn subscriber(&self) -> impl Subscriber + use<> {
        /// A second subscriber, which must exist all the time. While a process has only one
        /// subscriber, `tracing` decides permanently, for all threads, whether a log statement is
        /// enabled. It takes that decision from the subscriber of the thread that reaches the
        /// statement first. This can be the thread of another test, which has no subscriber.
        static SECOND: LazyLock<Dispatch> = LazyLock::new(|| {
            Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish())
        });

        LazyLock::force(&SECOND);
        let writer = self.clone();
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
