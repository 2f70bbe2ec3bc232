//! A stand-in for sqlx. Its connections record what their users leave behind, so that scenarios can
//! check that an acquired connection has no open transaction and nothing of its last user.

use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;

use parking_lot::Mutex;
use shuttle::future::yield_now;

pub use sqlx_errors::{Error, Result};

/// The state of a connection, as its user and the server change it.
#[derive(Default)]
pub struct State {
    /// The number of the user that last used it, until it is cleaned.
    pub left: Option<usize>,
    pub in_transaction: bool,
    /// The number of users at this moment; never more than one.
    pub users: usize,
}

/// Counts the connections to one server.
#[derive(Clone, Default)]
pub struct Server(pub Arc<Mutex<Counts>>);

#[derive(Default)]
pub struct Counts {
    /// Connections opened so far.
    pub opened: usize,
    /// Connections that are open now.
    pub open: usize,
    /// The highest number of connections that were open at once.
    pub most: usize,
}

/// A connection to either backend.
pub struct Socket {
    pub server: Server,
    pub state: State,
}

impl Socket {
    fn open(server: &Server) -> Self {
        let mut counts = server.0.lock();
        counts.opened += 1;
        counts.open += 1;
        counts.most = counts.most.max(counts.open);
        Self {
            server: server.clone(),
            state: State::default(),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.server.0.lock().open -= 1;
    }
}

pub trait ConnectOptions {
    type Connection;
    fn connect(&self) -> impl Future<Output = Result<Self::Connection>> + Send;
}

pub trait Connection: Sized {
    fn ping(&mut self) -> impl Future<Output = Result<()>> + Send;
    fn close(self) -> impl Future<Output = Result<()>> + Send;
}

pub trait Executor {
    fn execute(self, sql: &str) -> impl Future<Output = Result<()>> + Send;
}

pub trait Database {
    type TransactionManager;
}

pub mod transaction {
    pub trait TransactionManager {
        type Connection;
        fn get_transaction_depth(connection: &Self::Connection) -> usize;
    }
}

pub mod postgres {
    use super::{ConnectOptions, Connection, Result, Server, Socket, yield_now};

    pub struct PgConnection(pub Socket);

    pub struct PgConnectOptions(pub Server);

    impl ConnectOptions for PgConnectOptions {
        type Connection = PgConnection;

        async fn connect(&self) -> Result<PgConnection> {
            yield_now().await;
            Ok(PgConnection(Socket::open(&self.0)))
        }
    }

    impl PgConnection {
        pub fn cached_statements_size(&self) -> usize {
            0
        }

        pub async fn clear_cached_statements(&mut self) -> Result<()> {
            Ok(())
        }
    }

    impl Connection for PgConnection {
        async fn ping(&mut self) -> Result<()> {
            yield_now().await;
            Ok(())
        }

        async fn close(self) -> Result<()> {
            yield_now().await;
            Ok(())
        }
    }
}

pub struct Postgres;
pub struct PostgresManager;

impl Database for Postgres {
    type TransactionManager = PostgresManager;
}

impl transaction::TransactionManager for PostgresManager {
    type Connection = postgres::PgConnection;

    fn get_transaction_depth(connection: &postgres::PgConnection) -> usize {
        usize::from(connection.0.state.in_transaction)
    }
}

pub struct Sqlite;
pub struct SqliteManager;

impl Database for Sqlite {
    type TransactionManager = SqliteManager;
}

impl transaction::TransactionManager for SqliteManager {
    type Connection = sqlite::SqliteConnection;

    fn get_transaction_depth(connection: &sqlite::SqliteConnection) -> usize {
        usize::from(connection.socket.state.in_transaction)
    }
}

pub mod sqlite {
    use super::{ConnectOptions, Connection, Executor, Result, Server, Socket, yield_now};

    pub struct SqliteConnection {
        pub socket: Socket,
        /// The thread of the connection rolls back before it runs the next command.
        pub rollback_queued: bool,
    }

    pub struct SqliteConnectOptions(pub Server);

    impl ConnectOptions for SqliteConnectOptions {
        type Connection = SqliteConnection;

        async fn connect(&self) -> Result<SqliteConnection> {
            yield_now().await;
            Ok(SqliteConnection {
                socket: Socket::open(&self.0),
                rollback_queued: false,
            })
        }
    }

    impl Connection for SqliteConnection {
        /// A queued rollback runs before the ping.
        async fn ping(&mut self) -> Result<()> {
            yield_now().await;
            if std::mem::take(&mut self.rollback_queued) {
                self.socket.state.in_transaction = false;
            }
            Ok(())
        }

        async fn close(self) -> Result<()> {
            yield_now().await;
            Ok(())
        }
    }

    impl Executor for &mut SqliteConnection {
        async fn execute(self, _: &str) -> Result<()> {
            yield_now().await;
            Ok(())
        }
    }
}

pub struct QueryScalar;

pub fn query_scalar(_: &str) -> QueryScalar {
    QueryScalar
}

impl QueryScalar {
    pub async fn fetch_one<T: FromStr>(self, _: &mut sqlite::SqliteConnection) -> Result<T> {
        "ok".parse().map_err(|_| Error::WorkerCrashed)
    }
}
