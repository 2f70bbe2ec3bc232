//! Launches of a test's own making, in the test's process.

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
                let is_heard = ready.send((rocket.config().port, rocket.shutdown()));
                assert!(is_heard.is_ok());
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

    /// Shuts down in order; the launch must end well.
    pub async fn close(self) {
        self.shutdown.notify();
        self.running.await.unwrap().unwrap();
    }
}

/// A rocket that must not fly: what it says about why.
///
/// It must be a fairing or a guard that refuses, not Rocket itself.
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

/// What `work` logs, itself and not in tasks of its own.
pub async fn logged<T>(work: impl Future<Output = T>) -> (T, String) {
    let log = Log::default();
    let result = work.with_subscriber(log.subscriber()).await;
    (result, log.text())
}

/// What this thread logs meanwhile, in whatever task.
pub fn logged_here(work: impl FnOnce()) -> String {
    let log = Log::default();
    tracing::subscriber::with_default(log.subscriber(), work);
    log.text()
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn subscriber(&self) -> impl Subscriber + use<> {
        /// While a process has one subscriber alone, `tracing` asks the subscriber of the thread
        /// that meets a line first, for all threads and for good: that of another test, which has
        /// none.
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
    fn write(&mut self, said: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(said);
        Ok(said.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
