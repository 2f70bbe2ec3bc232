//! The writer of a SQLite file: stand-ins for the code that it calls, and scenarios.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shuttle::future::yield_now;
use shuttle::rand::{Rng, thread_rng};

use self::writer::{Writer, WriterFile};
use crate::db::WaitPolicy;
use crate::sqlite::SqliteConnectOptions;
use crate::{Server, dropped_after, with_all_schedulers};

#[path = "../../../../rocket_tx/src/db/sqlite/writer.rs"]
mod writer;

pub mod place {
    use std::io;

    pub struct Place;

    impl Place {
        pub fn check(&self) -> io::Result<()> {
            Ok(())
        }
    }
}

pub mod sync {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::place::Place;

    pub struct Wal;

    impl Wal {
        pub fn open(_: Arc<Place>, _: bool, _: Arc<AtomicBool>) -> io::Result<Self> {
            Ok(Self)
        }

        pub fn sync_leftovers(&self) -> io::Result<()> {
            Ok(())
        }

        pub fn has_failed(&self) -> bool {
            false
        }

        pub fn is_synced(&self) -> bool {
            true
        }

        pub fn rewrite(&self) -> io::Result<()> {
            Ok(())
        }
    }

    pub struct SharedSync;
    pub struct Synced;

    impl SharedSync {
        pub fn sync(&self, _: &Arc<Wal>) -> Synced {
            Synced
        }

        pub fn drop_after_sync(&self, connection: impl Send + 'static) {
            drop(connection);
        }
    }

    impl Synced {
        pub async fn wait(self) -> io::Result<()> {
            Ok(())
        }
    }
}

pub mod watch {
    use std::sync::Arc;

    use super::sync::Wal;
    use crate::sqlite::SqliteConnection;

    #[derive(PartialEq, Eq)]
    pub enum Found {
        Open,
    }

    pub struct Watch;

    impl Watch {
        pub fn new() -> Arc<Self> {
            Arc::new(Self)
        }

        pub async fn install(&self, _: &mut SqliteConnection) -> sqlx::Result<()> {
            Ok(())
        }

        pub fn mark_before_commit(&self, _: &Arc<Wal>) {}

        pub fn are_hooks_replaced(&self) -> bool {
            false
        }

        pub fn is_altered(&self) -> bool {
            false
        }

        pub fn found(&self) -> Found {
            Found::Open
        }
    }
}

pub mod writer_session {
    use super::writer::{Open, Turn};

    /// Models two properties of the real writer session: it holds the turn, which is the exclusive
    /// use of the writer, and it can close the connection when it is dropped.
    pub struct WriterSession {
        turn: Turn,
        pub close_on_drop: bool,
    }

    impl WriterSession {
        pub(super) fn new(turn: Turn) -> Self {
            let close_on_drop = false;
            Self {
                turn,
                close_on_drop,
            }
        }

        pub(super) fn open(&mut self) -> &mut Open {
            self.turn.as_mut().unwrap()
        }
    }

    impl Drop for WriterSession {
        fn drop(&mut self) {
            if self.close_on_drop {
                *self.turn = None;
            }
        }
    }
}

fn writer(server: &Server) -> Arc<Writer> {
    let file = WriterFile {
        options: SqliteConnectOptions(server.clone()),
        busy_timeout: Duration::from_secs(5),
        place: Arc::new(place::Place),
        sync: None,
        with_folder: false,
        in_doubt: Arc::default(),
    };
    Arc::new(Writer::new(file, Duration::from_secs(5)))
}

/// A request: waits for its turn, begins a transaction, and ends it in a way chosen at random.
/// Returns whether it had the writer.
async fn request(writer: &Writer, number: usize, users: &Mutex<Vec<usize>>) -> bool {
    let acquiring = async {
        match number {
            0 => writer.acquire(WaitPolicy::FAIL_FAST).await,
            _ => writer.acquire(WaitPolicy::QUEUE).await,
        }
    };
    let times = match number {
        1 => Some(thread_rng().gen_range(0..8)),
        _ => None,
    };
    let mut session = match dropped_after(times, acquiring).await {
        Some(Ok(session)) => session,
        Some(Err(sqlx::Error::PoolTimedOut)) if number == 0 => return false,
        Some(Err(sqlx::Error::PoolClosed)) | None => return false,
        Some(Err(error)) => panic!("{error}"),
    };
    users.lock().push(number);
    assert_eq!(users.lock().len(), 1, "two requests have the writer");
    let open = session.open();
    assert!(
        !open.connection().socket.state.in_transaction,
        "a transaction of the last user is open"
    );
    open.connection_mut().socket.state.in_transaction = true;
    yield_now().await;
    let how = thread_rng().gen_range(0..3);
    let connection = session.open().connection_mut();
    match how {
        // The transaction was settled.
        0 => connection.socket.state.in_transaction = false,
        // The transaction was dropped: a rollback is queued.
        1 => {
            connection.rollback_queued = true;
            session.open().rolls_back = true;
        }
        _ => session.close_on_drop = true,
    }
    users.lock().pop();
    true
}

async fn used_in_turn() {
    let server = Server::default();
    let writer = writer(&server);
    let users = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for number in 0..4 {
        let (writer, users) = (Arc::clone(&writer), Arc::clone(&users));
        let work = async move { request(&writer, number, &users).await };
        tasks.push(tokio::spawn(work));
    }
    let mut done = 0;
    for task in tasks {
        done += usize::from(task.await.unwrap());
    }
    assert!(done >= 2, "a waiting request did not get the writer");
    assert_eq!(server.0.lock().most, 1, "two writing connections are open");
    // However the other requests ended, the next one gets the writer.
    drop(writer.acquire(WaitPolicy::QUEUE).await.unwrap());
    writer.close().await;
    assert_eq!(server.0.lock().open, 0, "a connection is still open");
}

pub fn the_writer_has_one_user_at_a_time_and_no_open_transaction() {
    with_all_schedulers(used_in_turn);
}

async fn closed_under_load() {
    let server = Server::default();
    let writer = writer(&server);
    let users = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for number in 1..4 {
        let (writer, users) = (Arc::clone(&writer), Arc::clone(&users));
        let work = async move { request(&writer, number, &users).await };
        tasks.push(tokio::spawn(work));
    }
    writer.close().await;
    for task in tasks {
        task.await.unwrap();
    }
    let late = writer.acquire(WaitPolicy::QUEUE).await;
    assert!(matches!(late, Err(sqlx::Error::PoolClosed)));
    assert_eq!(server.0.lock().open, 0, "a connection is still open");
}

pub fn a_closed_writer_cannot_be_acquired() {
    with_all_schedulers(closed_under_load);
}
