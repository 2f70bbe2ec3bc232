//! The fairing that attaches a database.
//!
//! `D::init()` of rocket_db_pools works too. But it does not give the pool the name of the
//! database, so its launch errors cannot name the database. The errors of this fairing do.

use std::any::{TypeId, type_name};
use std::fmt::Display;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use rocket::fairing::{self, Fairing, Info, Kind};
use rocket::{Build, Data, Orbit, Phase, Request, Rocket};
use rocket_db_pools::{Database, Pool};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

#[cfg(feature = "testing")]
use super::OwnDatabases;
use super::config_source::configuration;
#[cfg(feature = "postgres")]
use super::health::Health;
use super::{
    Advice, Arrival, AtomicDatabase, AtomicHandle, Attachment, Identity, Migrations, PoolError,
    TransactionPool, TransactionalDatabase,
};

/// Returns a fairing that attaches the database `D`: it opens and migrates the database at launch.
/// At shutdown it waits for the requests in flight and then closes the database.
///
/// A request that uses several databases should take them in the order of attachment. While it
/// holds a connection of a database, it does not wait for one that was attached earlier: if no
/// connection is free there, the request fails at once.
///
/// ```no_run
/// use rocket_tx::db::{self, UrlPool};
/// use rocket_tx::rocket_db_pools::{self, Database};
/// use rocket_tx::Settlement;
///
/// #[derive(Database)]
/// #[database("main")]
/// struct Main(UrlPool);
///
/// let rocket = rocket::build()
///     .attach(db::init::<Main>())
///     .attach(Settlement::new());
/// ```
///
/// The launch fails if the database cannot be opened or migrated, or if it is already attached
/// under another name. The log names the database, the setting and the cause.
pub fn init<D: TransactionalDatabase>() -> Initializer<D> {
    Initializer {
        migrations: Migrations::new(),
        database: PhantomData,
    }
}

/// The fairing that [`init`] returns.
pub struct Initializer<D> {
    migrations: Migrations,
    database: PhantomData<fn() -> D>,
}

impl<D> Initializer<D> {
    /// Runs `migrations` at launch: those of the backend that the URL selects.
    pub fn migrations(mut self, migrations: Migrations) -> Self {
        self.migrations = migrations;
        self
    }
}

#[rocket::async_trait]
impl<D: TransactionalDatabase> Fairing for Initializer<D> {
    fn info(&self) -> Info {
        Info {
            name: D::NAME,
            kind: Kind::Ignite | Kind::Request | Kind::Shutdown,
        }
    }

    async fn on_ignite(&self, rocket: Rocket<Build>) -> fairing::Result {
        let (rocket, attached) = AttachedDatabases::of(rocket);
        let pool = match self.open(&rocket, &attached).await {
            Ok(pool) => pool,
            Err(refused) => {
                #[cfg(feature = "testing")]
                if let Some(own) = rocket.state::<OwnDatabases>() {
                    own.refuse(&refused);
                }
                tracing::error!("{refused}");
                return Err(rocket);
            }
        };
        Ok(rocket.manage(D::from(pool)))
    }

    async fn on_request(&self, request: &mut Request<'_>, _: &mut Data<'_>) {
        Arrival::note(request);
    }

    async fn on_shutdown(&self, rocket: &Rocket<Orbit>) {
        if let Some(database) = rocket.state::<D>() {
            database.close().await;
        }
    }
}

impl<D: TransactionalDatabase> Initializer<D> {
    /// Opens the pool, attaches it and migrates its database. If that fails, returns the message
    /// for the log.
    async fn open(
        &self,
        rocket: &Rocket<Build>,
        attached: &AttachedDatabases,
    ) -> Result<D::Pool, String> {
        let refused = |error: PoolError| refusal::<D>(&error);
        if attached.contains::<D>() {
            return Err(attached_twice::<D>());
        }
        let configuration = configuration::<D>(rocket).map_err(refused)?;
        let identity = D::Pool::identity_before_opening(&configuration);
        if let Some(other) = identity.and_then(|identity| attached.name_of(&identity)) {
            return Err(same_database::<D>(other));
        }
        #[cfg(feature = "testing")]
        let configuration = match rocket.state::<OwnDatabases>() {
            Some(own) => own
                .create::<D>(configuration, &self.migrations)
                .await
                .map_err(|error| refusal::<D>(&error))?,
            None => configuration,
        };
        let span = tracing::info_span!("open", database = D::NAME);
        let opening = D::Pool::init(&configuration).instrument(span);
        let pool = opening.await.map_err(refused)?;
        // Attach before migrating: if the URL leads to a database that is already attached, these
        // migrations must not run in it.
        attached
            .attach::<D, _>(rocket, &pool)
            .map_err(same_database::<D>)?;
        if let Some(lack) = self.migrations.lack(pool.backend()) {
            tracing::warn!(database = D::NAME, "{lack}");
        }
        pool.migrate(&self.migrations).await.map_err(refused)?;
        Ok(pool)
    }
}

fn refusal<D: Database>(error: &dyn Display) -> String {
    let name = D::NAME;
    format!("cannot attach database `{name}`: `databases.{name}`: {error}")
}

/// Returns the error message for the case that the launch code attaches `D` twice.
fn attached_twice<D: Database>() -> String {
    let database = type_name::<D>();
    format!(
        "the launch code attaches the database `{}` twice; remove one of the two lines \
         `.attach(rocket_tx::db::init::<{database}>())`",
        D::NAME
    )
}

/// Returns the error message for the case that `D` is the same database as `other`, which is
/// already attached.
pub(crate) fn same_database<D: Database>(other: &'static str) -> String {
    format!(
        "`databases.{}.url` leads to the same database as `databases.{other}.url`, and a request \
         that writes to both would wait for itself; give each of them a separate database",
        D::NAME
    )
}

/// An attached database.
struct Attached {
    database: TypeId,
    identity: Identity,
    /// The database as a part of atomic commits.
    atomic: Arc<AtomicHandle>,
}

/// The databases of a service, in the order of attachment, and the work that shutdown waits for.
#[derive(Clone, Default)]
pub(crate) struct AttachedDatabases {
    databases: Arc<Mutex<Vec<Attached>>>,
    pub(crate) in_flight: TaskTracker,
    advice: Arc<Advice>,
    /// How long the settlement of one request may take. Set by `Settlement`.
    pub(crate) settle_timeout: Arc<OnceLock<Duration>>,
}

impl AttachedDatabases {
    /// Returns the attached databases of a service. The first caller creates the list: `Settlement`
    /// or the fairing of a database.
    pub(crate) fn of(rocket: Rocket<Build>) -> (Rocket<Build>, Self) {
        if let Some(attached) = rocket.state::<Self>() {
            let attached = attached.clone();
            return (rocket, attached);
        }
        let attached = Self {
            advice: Arc::new(Advice::of(&rocket)),
            ..Self::default()
        };
        (rocket.manage(attached.clone()), attached)
    }

    /// Returns `true` if a database is attached under this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        let databases = self.databases.lock();
        databases.iter().any(|known| known.atomic.name == name)
    }

    /// Returns the attached databases as parts of atomic commits, in the order of attachment.
    pub(crate) fn atomic(&self) -> Vec<Arc<AtomicHandle>> {
        let databases = self.databases.lock();
        databases
            .iter()
            .map(|known| Arc::clone(&known.atomic))
            .collect()
    }

    fn contains<D: 'static>(&self) -> bool {
        let databases = self.databases.lock();
        databases
            .iter()
            .any(|known| known.database == TypeId::of::<D>())
    }

    /// Returns the name under which this database is already attached.
    fn name_of(&self, identity: &Identity) -> Option<&'static str> {
        name_of(&self.databases.lock(), identity)
    }

    /// Attaches `D` and gives `pool` its [`Attachment`]. Does nothing if `D` is already attached.
    ///
    /// # Errors
    ///
    /// The name under which the same database is already attached.
    pub(crate) fn attach<D: TransactionalDatabase, P: Phase>(
        &self,
        rocket: &Rocket<P>,
        pool: &D::Pool,
    ) -> Result<(), &'static str> {
        let mut databases = self.databases.lock();
        let key = TypeId::of::<D>();
        if databases.iter().any(|known| known.database == key) {
            return Ok(());
        }
        if let Some(name) = name_of(&databases, pool.identity()) {
            return Err(name);
        }
        pool.attachment().get_or_init(|| Attachment {
            name: D::NAME,
            rank: databases.len(),
            in_flight: self.in_flight.clone(),
            advice: Arc::clone(&self.advice),
            close_timeout: close_timeout(rocket),
            #[cfg(feature = "postgres")]
            settle_timeout: Arc::clone(&self.settle_timeout),
            #[cfg(feature = "postgres")]
            health: Arc::new(Health::new(D::NAME)),
            #[cfg(feature = "testing")]
            template: rocket
                .state::<OwnDatabases>()
                .and_then(|own| own.template_of::<D>()),
        });
        databases.push(Attached {
            database: key,
            identity: pool.identity().clone(),
            atomic: Arc::new(AtomicHandle::new(key, D::NAME, pool.clone())),
        });
        Ok(())
    }
}

fn name_of(databases: &[Attached], identity: &Identity) -> Option<&'static str> {
    let attached = databases.iter().find(|known| known.identity == *identity);
    attached.map(|known| known.atomic.name)
}

/// Returns the time that Rocket itself waits at shutdown for client connections to end.
fn close_timeout<P: Phase>(rocket: &Rocket<P>) -> Duration {
    let shutdown: rocket::config::Shutdown = rocket
        .figment()
        .extract_inner(rocket::Config::SHUTDOWN)
        .unwrap_or_default();
    Duration::from_secs(u64::from(shutdown.grace) + u64::from(shutdown.mercy))
}
