//! Transactions of tokio-postgres that are committed or rolled back with their request.
//!
//! Everything about the ledger's tables is in [`init`]. The rest can be copied as it is.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::tokio_postgres::error::{Error as PostgresError, Severity, SqlState};
use deadpool_postgres::tokio_postgres::{Config, NoTls};
use deadpool_postgres::{
    Client, ClientWrapper, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts,
};
use rocket::fairing::{AdHoc, Fairing};
use rocket::http::Status;
use rocket::outcome::try_outcome;
use rocket::request::{FromRequest, Outcome, Request};
use rocket::tokio::sync::{Mutex, MutexGuard, OwnedMappedMutexGuard, OwnedMutexGuard};
use rocket::{Ignite, Rocket, Sentinel, error};
use rocket_tx::extend::guard_failed;
use rocket_tx::tx::{Phase, SettleContext};
use rocket_tx::{Error, Outstanding, Resource};

/// The name in the log and in error messages.
const NAME: &str = "ledger";

/// How long a request waits for a connection.
const WAIT: Duration = Duration::from_secs(5);

const TABLES: &str = "\
    CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS charges (
        account TEXT NOT NULL
            CONSTRAINT account_exists REFERENCES accounts DEFERRABLE INITIALLY DEFERRED,
        cents BIGINT NOT NULL
    );
    INSERT INTO accounts VALUES ('ann') ON CONFLICT DO NOTHING;";

/// Opens the pool at launch, for the server at `ledger_url`, and creates the tables.
pub fn init() -> impl Fairing {
    AdHoc::try_on_ignite(NAME, async |rocket| match open(&rocket).await {
        Ok(pool) => Ok(rocket.manage(pool)),
        Err(cause) => {
            error!("the ledger cannot be opened: {cause}");
            Err(rocket)
        }
    })
}

async fn open(rocket: &Rocket<rocket::Build>) -> Result<Pool, Box<dyn std::error::Error>> {
    let url: String = rocket.figment().extract_inner("ledger_url")?;
    let manager = Manager::from_config(
        url.parse::<Config>()?,
        NoTls, // or `tokio-postgres-rustls`
        ManagerConfig {
            // The next request sees no setting and no temporary table of this one.
            recycling_method: RecyclingMethod::Clean,
        },
    );
    let pool = Pool::builder(manager)
        .runtime(Runtime::Tokio1)
        .timeouts(Timeouts {
            wait: Some(WAIT),
            create: Some(WAIT),
            recycle: Some(WAIT),
        })
        .build()?;
    pool.get().await?.batch_execute(TABLES).await?;
    Ok(pool)
}

/// The guard of handlers that write to the ledger.
pub struct Ledger<'r> {
    pool: &'r Pool,
    outstanding: &'r Outstanding,
}

impl Ledger<'_> {
    /// Begins a transaction, which settlement commits or rolls back.
    ///
    /// Begin it before transactions of rocket_tx: this request could hold what the other one waits
    /// for. Therefore a request that has begun one of those gets a connection at once, or a 503.
    pub async fn begin(self) -> Result<Transaction, Error> {
        let wait = match self.outstanding.holds_a_connection() {
            true => Duration::ZERO,
            false => WAIT,
        };
        let timeouts = Timeouts {
            wait: Some(wait),
            ..self.pool.timeouts()
        };
        let client = self.pool.timeout_get(&timeouts).await.map_err(|cause| {
            error!("no connection to the ledger: {cause}");
            Error::refused(Status::ServiceUnavailable, "The ledger cannot be reached.")
        })?;
        let slot = Arc::new(Mutex::new(Slot(Some(client))));
        let lock = OwnedMutexGuard::try_map(Arc::clone(&slot).lock_owned().await, Slot::get);
        let transaction = Transaction(lock.map_err(|_| Error::Settled)?);
        transaction.batch_execute("BEGIN").await.map_err(failed)?;
        self.outstanding.join(Joined(slot))?;
        Ok(transaction)
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Ledger<'r> {
    type Error = Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
        let outstanding = try_outcome!(request.guard::<&Outstanding>().await);
        match request.rocket().state() {
            Some(pool) => Outcome::Success(Self { pool, outstanding }),
            None => guard_failed(
                request,
                Error::NotSetUp("the ledger is not attached".into()),
            ),
        }
    }
}

impl Sentinel for Ledger<'_> {
    fn abort(rocket: &Rocket<Ignite>) -> bool {
        <&Outstanding>::abort(rocket) || rocket.state::<Pool>().is_none()
    }
}

/// The open transaction, for the statements of a handler. Drop it before the handler returns.
///
/// It gives no `&mut` access to the client: `Client::transaction` would send BEGIN, and then COMMIT,
/// which ends this transaction too. For a savepoint, send `SAVEPOINT`.
pub struct Transaction(OwnedMappedMutexGuard<Slot, Client>);

impl Deref for Transaction {
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        &self.0
    }
}

/// The connection, until its transaction has ended.
///
/// A slot that is dropped with its connection closes it, and the server rolls back. Otherwise the
/// pool would give the open transaction to another request.
struct Slot(Option<Client>);

impl Slot {
    fn get(&mut self) -> Option<&mut Client> {
        self.0.as_mut()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Client::take(client));
        }
    }
}

/// The transaction, as settlement sees it.
struct Joined(Arc<Mutex<Slot>>);

impl Joined {
    /// Returns the slot, unless the handler's [`Transaction`] still exists.
    fn checked_in(&self) -> Result<MutexGuard<'_, Slot>, Error> {
        let slot = self.0.try_lock();
        slot.map_err(|_| Error::Leaked(vec![NAME.into()]))
    }
}

#[rocket::async_trait]
impl Resource for Joined {
    fn name(&self) -> Cow<'_, str> {
        NAME.into()
    }

    fn phase(&self) -> Phase {
        Phase::Database
    }

    async fn prepare(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
        // In an aborted transaction the server executes COMMIT as ROLLBACK, and tokio-postgres
        // reports a success. SAVEPOINT fails there, and also if the handler has ended the
        // transaction. The second statement checks deferred constraints.
        const PROOF: &str =
            "SAVEPOINT proof; SET CONSTRAINTS ALL IMMEDIATE; RELEASE SAVEPOINT proof";

        match &self.checked_in()?.0 {
            Some(client) => client.batch_execute(PROOF).await.map_err(failed),
            None => Ok(()),
        }
    }

    async fn commit(&mut self) -> Result<(), Error> {
        let mut slot = self.checked_in()?;
        if let Some(client) = &slot.0 {
            let committed = client.batch_execute("COMMIT").await;
            committed.map_err(not_committed)?;
        }
        drop(slot.0.take()); // back to the pool
        Ok(())
    }

    async fn rollback(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
        // Without a transaction, ROLLBACK is only a warning. With AND CHAIN it is an error: the
        // handler has ended the transaction.
        const ROLLBACK: &str = "ROLLBACK AND CHAIN; ROLLBACK";

        let mut slot = self.checked_in()?;
        if let Some(client) = &slot.0 {
            client.batch_execute(ROLLBACK).await.map_err(failed)?;
        }
        drop(slot.0.take());
        Ok(())
    }
}

/// Maps the error of a statement. Nothing of the transaction is committed.
pub fn failed(cause: PostgresError) -> Error {
    error!("the ledger: {cause:?}");
    let reply = cause.as_db_error();
    // After FATAL the server ends the session, as if the connection were lost.
    let Some(error) = reply.filter(|it| it.parsed_severity() == Some(Severity::Error)) else {
        return Error::refused(
            Status::ServiceUnavailable,
            "The connection to the ledger was lost. Nothing was changed; retry.",
        );
    };
    match error.code().code() {
        "25P01" => Error::Ended { undone: false }, // no_active_sql_transaction
        "25P02" => Error::Aborted,                 // in_failed_sql_transaction
        // serialization_failure, deadlock_detected, lock_not_available, query_canceled
        "40001" | "40P01" | "55P03" | "57014" => Error::refused(
            Status::ServiceUnavailable,
            "The ledger is busy. Nothing was changed; retry.",
        ),
        state if state.starts_with("23") => Error::refused(
            Status::Conflict,
            "The change violates a constraint of the ledger.",
        ),
        _ => Error::refused(
            Status::InternalServerError,
            "The ledger reported an error. Nothing was changed.",
        ),
    }
}

/// Maps the error of COMMIT. Only the server itself can say that nothing is committed. Without its
/// reply, or with one that a connection pooler may have sent, the outcome is unknown.
fn not_committed(cause: PostgresError) -> Error {
    let from_server = cause.as_db_error().is_some_and(|error| {
        error.parsed_severity() == Some(Severity::Error)
            && *error.code() != SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN
            && matches!(
                error.code().code().get(..2),
                Some("23" | "25" | "40" | "P0")
            )
    });
    match from_server {
        true => failed(cause),
        false => {
            error!("the ledger, at COMMIT: {cause:?}");
            Error::Unknown(vec![NAME.into()])
        }
    }
}
