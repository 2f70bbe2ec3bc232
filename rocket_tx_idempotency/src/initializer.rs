//! The fairing that creates the table, and deletes expired rows.

use std::any::type_name;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use rocket::fairing::{self, Fairing, Info, Kind};
use rocket::futures::future::BoxFuture;
use rocket::http::Status;
use rocket::{Build, Orbit, Request, Rocket, tokio};
use rocket_tx::db::{self, BeginOptions, Migrations, TransactionPool};
use sqlx::migrate;

use crate::in_flight::InFlight;
use crate::rows::{KeyDatabase, KeyRows};

type Caller =
    dyn for<'a, 'r> Fn(&'a Request<'r>) -> BoxFuture<'a, Result<String, Status>> + Send + Sync;

/// The settings of all requests.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) expiry: Duration,
    pub(crate) max_body: usize,
    pub(crate) twin_wait: Duration,
    pub(crate) is_required: bool,
    sweep_interval: Duration,
    callers: Callers,
}

/// Whose keys a request uses.
#[derive(Clone)]
enum Callers {
    /// The launch code does not say it. As `Shared`, with a warning.
    Unsaid,
    /// All clients use the same keys.
    Shared,
    /// Each caller has separate keys. The hook names the caller of a request.
    Named(Arc<Caller>),
}

impl Settings {
    /// Returns an error for a duration that cannot be meant.
    fn check(&self) -> Result<(), String> {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        const MILLI: Duration = Duration::from_millis(1);

        for (name, duration, least, longest) in [
            ("expiry", self.expiry, MILLI, 3_650 * DAY),
            ("twin_wait", self.twin_wait, Duration::ZERO, DAY),
            ("sweep_interval", self.sweep_interval, 10 * MILLI, DAY),
        ] {
            if duration < least || duration > longest {
                return Err(format!(
                    "`{name}` is {duration:?}; set a duration from {least:?} to {longest:?}"
                ));
            }
        }
        Ok(())
    }
}

/// The state that all requests share.
pub(crate) struct Shared<D> {
    pub(crate) settings: Settings,
    pub(crate) in_flight: Arc<InFlight>,
    database: PhantomData<fn() -> D>,
}

impl<D> Shared<D> {
    /// Returns the caller of a request; an empty text in a service without a hook for callers.
    pub(crate) async fn caller_of(&self, request: &Request<'_>) -> Result<String, Status> {
        match &self.settings.callers {
            Callers::Named(caller) => caller(request).await,
            Callers::Unsaid | Callers::Shared => Ok(String::new()),
        }
    }
}

/// Returns the fairing that keeps keys in the database `D`. Attach it after the database.
///
/// At launch it creates the table `idempotency_keys`. While the service runs, it deletes expired
/// rows. Routes accept keys if they are wrapped by [`idempotent`](crate::idempotent).
///
/// Say whose keys they are, by [`caller`](Initializer::caller) or by
/// [`shared_keys`](Initializer::shared_keys). Otherwise the launch logs a warning.
///
/// ```no_run
/// use std::time::Duration;
///
/// use rocket_tx::Settlement;
/// use rocket_tx::db::{self, UrlPool};
/// use rocket_tx::rocket_db_pools::{self, Database};
/// use rocket_tx_idempotency as idempotency;
///
/// #[derive(Database)]
/// #[database("main")]
/// struct Main(UrlPool);
///
/// let rocket = rocket::build()
///     .attach(db::init::<Main>())
///     .attach(idempotency::init::<Main>().shared_keys().expiry(Duration::from_secs(3_600)))
///     .attach(Settlement::new());
/// ```
pub fn init<D: KeyDatabase>() -> Initializer<D> {
    Initializer {
        settings: Settings {
            expiry: Duration::from_secs(24 * 60 * 60),
            max_body: 64 * 1024,
            twin_wait: Duration::from_secs(1),
            is_required: false,
            sweep_interval: Duration::from_secs(60),
            callers: Callers::Unsaid,
        },
        database: PhantomData,
    }
}

/// The fairing that [`init`] returns.
pub struct Initializer<D: KeyDatabase> {
    settings: Settings,
    database: PhantomData<fn() -> D>,
}

impl<D: KeyDatabase> Initializer<D> {
    /// Sets the hook that names the caller of a request. Two callers may use the same key without
    /// knowing of each other. The name is stored only as part of a hash.
    ///
    /// Without a hook, all clients share their keys, see [`shared_keys`](Self::shared_keys).
    ///
    /// The hook runs before the guards of the handler, also for a response that is sent again. So a
    /// service whose handlers authenticate clients by a guard must use the guard here. If the hook
    /// returns an error, the request is refused with this status, and a catcher makes the response.
    /// The hook runs only for requests with a key. It must not begin a transaction of `D`, but it
    /// may read.
    ///
    /// ```no_run
    /// # use rocket::http::Status;
    /// # use rocket::request::{FromRequest, Outcome, Request};
    /// # use rocket_tx::db::UrlPool;
    /// # use rocket_tx::rocket_db_pools::{self, Database};
    /// # #[derive(Database)] #[database("main")] struct Main(UrlPool);
    /// # struct User { id: String }
    /// # #[rocket::async_trait]
    /// # impl<'r> FromRequest<'r> for User {
    /// #     type Error = ();
    /// #     async fn from_request(_: &'r Request<'_>) -> Outcome<Self, ()> {
    /// #         Outcome::Error((Status::Unauthorized, ()))
    /// #     }
    /// # }
    /// let keys = rocket_tx_idempotency::init::<Main>().caller(|request| {
    ///     Box::pin(async move {
    ///         match request.guard::<User>().await {
    ///             Outcome::Success(user) => Ok(user.id),
    ///             Outcome::Error((status, ())) | Outcome::Forward(status) => Err(status),
    ///         }
    ///     })
    /// });
    /// ```
    pub fn caller<F>(mut self, caller: F) -> Self
    where
        F: for<'a, 'r> Fn(&'a Request<'r>) -> BoxFuture<'a, Result<String, Status>>
            + Send
            + Sync
            + 'static,
    {
        self.settings.callers = Callers::Named(Arc::new(caller));
        self
    }

    /// Says that all clients share their keys: a client that knows the key, the path and the content
    /// of another client's request receives the response to it. That is acceptable if keys are
    /// random, or if all clients may read everything anyway. The other choice is a hook for the
    /// [`caller`](Self::caller).
    ///
    /// This is also the default, but then the launch logs a warning. It takes back a hook that was
    /// set before.
    pub fn shared_keys(mut self) -> Self {
        self.settings.callers = Callers::Shared;
        self
    }

    /// Sets how long a response can be sent again, by the clock of the database. The default is 24
    /// hours. After that, the same key is a new request. At least 1 ms, at most ten years: other
    /// values fail the launch.
    pub fn expiry(mut self, expiry: Duration) -> Self {
        self.settings.expiry = expiry;
        self
    }

    /// Sets the size, in bytes, of the largest body that is stored. The default is 64 KiB. The
    /// repetition of a request whose response was larger, or a stream, is answered with a 409 that
    /// has the status and the `Location` of the response.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.settings.max_body = bytes;
        self
    }

    /// Sets how long a request waits for an earlier one with the same key that is still being
    /// served. The default is 1 s. After that it is refused with a 409 and `Retry-After`.
    ///
    /// For a request of this process, it waits without a connection. For one of another process, it
    /// waits in its own transaction: on Postgres for this long, on SQLite for `busy_timeout`, which
    /// ends in a 503. At most a day: a longer wait fails the launch.
    pub fn twin_wait(mut self, wait: Duration) -> Self {
        self.settings.twin_wait = wait;
        self
    }

    /// Requires a key for all [`idempotent`](crate::idempotent) routes, as
    /// [`required`](crate::required) does for single ones.
    pub fn required(mut self) -> Self {
        self.settings.is_required = true;
        self
    }

    /// Sets how often expired rows are deleted. The default is 60 s, ±50 %. At least 10 ms, at most
    /// a day: other values fail the launch.
    pub fn sweep_interval(mut self, interval: Duration) -> Self {
        self.settings.sweep_interval = interval;
        self
    }

    async fn start(&self, rocket: &Rocket<Build>) -> Result<Shared<D>, String> {
        let database = rocket.state::<D>().ok_or_else(|| {
            format!(
                "the database is not open; see its own error above in the log, or attach `rocket_tx::db::init::<{}>()` before `rocket_tx_idempotency::init`",
                type_name::<D>()
            )
        })?;
        if rocket.state::<Arc<Shared<D>>>().is_some() {
            return Err(
                "`rocket_tx_idempotency::init` is attached twice for this database; remove one"
                    .into(),
            );
        }
        self.settings.check()?;
        if let Callers::Unsaid = self.settings.callers {
            tracing::warn!(
                database = D::NAME,
                "all clients share their idempotency keys: a client that knows the key and the \
                 content of another client's request receives its response; name the caller of a \
                 request by `rocket_tx_idempotency::init::<{}>().caller(..)`, or add \
                 `.shared_keys()` if this is meant",
                type_name::<D>()
            );
        }
        migrate(&**database)
            .await
            .map_err(|error| error.to_string())?;
        Ok(Shared {
            settings: self.settings.clone(),
            in_flight: Arc::default(),
            database: PhantomData,
        })
    }
}

async fn migrate<P: TransactionPool>(pool: &P) -> Result<(), db::PoolError> {
    const TABLE: &str = "_idempotency_keys_migrations";

    let migrations = Migrations::new();
    #[cfg(sqlite)]
    let migrations = {
        let mut migrator = migrate!("migrations/sqlite");
        migrator.dangerous_set_table_name(TABLE);
        migrations.sqlite(migrator)
    };
    #[cfg(postgres)]
    let migrations = {
        let mut migrator = migrate!("migrations/postgres");
        migrator.dangerous_set_table_name(TABLE);
        migrations.postgres(migrator)
    };
    pool.migrate(&migrations).await
}

#[rocket::async_trait]
impl<D: KeyDatabase> Fairing for Initializer<D> {
    fn info(&self) -> Info {
        Info {
            name: "Idempotency keys",
            kind: Kind::Ignite | Kind::Liftoff,
        }
    }

    async fn on_ignite(&self, rocket: Rocket<Build>) -> fairing::Result {
        match self.start(&rocket).await {
            Ok(shared) => Ok(rocket.manage(Arc::new(shared))),
            Err(error) => {
                let name = D::NAME;
                tracing::error!("cannot set up idempotency keys in database `{name}`: {error}");
                Err(rocket)
            }
        }
    }

    async fn on_liftoff(&self, rocket: &Rocket<Orbit>) {
        if let Some(database) = rocket.state::<D>() {
            let pool = D::Pool::clone(database);
            let interval = self.settings.sweep_interval;
            tokio::spawn(sweep::<D>(pool, interval, rocket.shutdown()));
        }
    }
}

/// Deletes expired rows at every interval, until shutdown. A failed sweep is retried at the next
/// interval.
async fn sweep<D: KeyDatabase>(pool: D::Pool, interval: Duration, mut shutdown: rocket::Shutdown) {
    loop {
        // The jitter keeps processes from sweeping all at once.
        let pause = interval.mul_f64(0.5 + fastrand::f64());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = &mut shutdown => return,
        }
        match sweep_once::<D>(&pool).await {
            Ok(0) => {}
            Ok(swept) => tracing::info!(
                database = D::NAME,
                swept,
                "expired idempotency keys were deleted"
            ),
            Err(error) => {
                tracing::debug!(database = D::NAME, %error, "a sweep failed; retrying later");
            }
        }
    }
}

/// Deletes all rows that have expired, in small transactions, so that requests can write in between.
async fn sweep_once<D: KeyDatabase>(pool: &D::Pool) -> Result<u64, rocket_tx::Error> {
    const BATCH: u32 = 200;

    let mut all = 0;
    loop {
        let mut transaction = pool.open(BeginOptions::default()).await?;
        let swept = transaction.connection().sweep(BATCH).await?;
        let committed = transaction.commit().await;
        committed.map_err(|error| rocket_tx::Error::of_commit(error, D::NAME))?;
        all += swept;
        if swept < u64::from(BATCH) {
            return Ok(all);
        }
    }
}
