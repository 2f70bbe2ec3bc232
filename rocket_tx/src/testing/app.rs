//! A service that was launched for one test.

use std::fmt::Write;
use std::ops::Deref;
use std::time::Duration;

use rocket::local::asynchronous::Client;
use tokio::time::timeout;

use super::databases::{Databases, Reader};
use crate::db::{Access, TransactionPool, TransactionalDatabase, WaitPolicy};
use crate::tx::Live;

/// A service that was launched for one test. Dereferences to Rocket's local [`Client`].
///
/// Dropping it ends the service and drops its databases. The thread is blocked meanwhile, for some
/// milliseconds.
pub struct App {
    // Dropped first: it has connections to the databases.
    client: Client,
    databases: Databases,
}

impl App {
    pub(super) fn new(client: Client, databases: Databases) -> Self {
        Self { client, databases }
    }

    /// Returns the database `D` of this test, as `&State<D>` in a handler.
    ///
    /// # Panics
    ///
    /// If the service does not attach `D`.
    pub fn database<D: TransactionalDatabase>(&self) -> &D {
        let database = self.client.rocket().state::<D>();
        database.unwrap_or_else(|| panic!("{}", not_attached::<D>()))
    }

    /// Returns the URL of the database `D` of this test, for a client of your own.
    ///
    /// # Panics
    ///
    /// If the service does not attach `D`.
    pub fn url<D: TransactionalDatabase>(&self) -> String {
        self.databases.url::<D>()
    }

    /// Returns a connection to the database `D` that only reads. There is no transaction: each
    /// query sees the latest commits.
    ///
    /// It is a connection of the service's pool. Drop it before more than `max_connections` are in
    /// use.
    ///
    /// # Panics
    ///
    /// If the service does not attach `D`, or no connection is free.
    pub async fn read<D: TransactionalDatabase>(&self) -> Reader<D> {
        let pool = &**self.database::<D>();
        match pool.session(Access::ReadOnly, WaitPolicy::QUEUE).await {
            Ok(session) => Reader(session),
            Err(error) => panic!(
                "no connection to the database `{}` is free: {error}; drop a `Reader`, or raise `max_connections`",
                D::NAME
            ),
        }
    }

    /// Runs one or more statements in the database `D` and commits them, for example to prepare
    /// rows for a test. It uses a connection of its own.
    ///
    /// # Panics
    ///
    /// If the service does not attach `D`, or a statement fails. The statements before it may
    /// be committed on SQLite; on Postgres nothing is.
    pub async fn execute<D: TransactionalDatabase>(&self, sql: &str) {
        self.databases.execute::<D>(sql).await;
    }

    /// Waits until all hooks that are due have ended: those that
    /// [`after_commit`](crate::Outstanding::after_commit) and
    /// [`after_rollback`](crate::Outstanding::after_rollback) have added in requests that were
    /// dispatched. Hooks of one request run in the order in which they were added.
    ///
    /// # Panics
    ///
    /// If a hook is still running after ten seconds, or the service has no
    /// [`Settlement`](crate::Settlement).
    pub async fn hooks_have_run(&self) {
        const LIMIT: Duration = Duration::from_secs(10);

        let live = self.live();
        if timeout(LIMIT, live.hooks_have_run()).await.is_err() {
            panic!(
                "hooks of {} requests are still running after {LIMIT:?}; find what they wait for",
                live.running_hooks()
            );
        }
    }

    /// Asserts that every request has settled everything that it had begun, and that no prepared
    /// transaction is in doubt.
    ///
    /// # Panics
    ///
    /// If something is outstanding. The message lists each transaction and each other resource,
    /// with its request. A panic also occurs if the service has no
    /// [`Settlement`](crate::Settlement).
    pub fn assert_nothing_outstanding(&self) {
        let mut list = String::new();
        let live = self.live();
        for one in live.transactions() {
            let state = match (one.condemned, one.checked_out) {
                (true, _) => {
                    "its request has ended, but a guard still holds it, for example in a spawned task"
                }
                (false, true) => "a guard holds it",
                (false, false) => "its request has not been settled",
            };
            let route = one.route.as_deref().unwrap_or("a route without a name");
            let (resource, guard, request) = (&one.resource, &one.guard, &one.request);
            let _infallible = write!(
                list,
                "\n- `{resource}`, begun by `{guard}` in `{route}` {} ms ago: {state} (request {request})",
                one.age_ms
            );
        }
        for one in live.in_doubt() {
            let (name, database) = (&one.name, &one.database);
            let _infallible = write!(
                list,
                "\n- the prepared transaction `{name}` in `{database}` is in doubt"
            );
        }
        assert!(list.is_empty(), "something is outstanding:{list}");
    }

    fn live(&self) -> &Live {
        let live = self.client.rocket().state::<Live>();
        live.expect("the service has no Settlement; add `.attach(rocket_tx::Settlement::new())`")
    }
}

pub(super) fn not_attached<D: TransactionalDatabase>() -> String {
    let database = std::any::type_name::<D>();
    format!(
        "the service does not attach the database `{}`; add `.attach(rocket_tx::db::init::<{database}>())` to its launch code",
        D::NAME
    )
}

impl Deref for App {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // Ends the tasks of the service that run until its shutdown.
        self.client.rocket().shutdown().notify();
    }
}
