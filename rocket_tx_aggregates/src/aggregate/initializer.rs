//! The fairing that creates the tables, and deletes the expired leases of crashed processes.

use std::any::type_name;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use rocket::fairing::{self, Fairing, Info, Kind};
use rocket::figment::Figment;
use rocket::{Build, Orbit, Request, Rocket, tokio};
use rocket_tx::db::ConfigDuration;
use rocket_tx::extend::setting;
use serde::de::DeserializeOwned;

use super::definition::Aggregate;
use super::projection::{Projection, Projections};
use super::rows::AggregateDatabase;
use super::store::{ConnectionOf, SqlEventStore};
use crate::lock::{LEAST_TTL, LeaseLockManager, LeasePool};

/// Observes the loads of a request, for example to inject faults.
///
/// The observer is called after a request has loaded aggregates with their leases. A connection
/// that was acquired only for the load has been returned by then. The request waits for the
/// observer, and keeps the leases during this wait.
#[rocket::async_trait]
pub trait LoadObserver: Send + Sync {
    /// Called for each stream of the load in turn, also if it has no events.
    async fn loaded(&self, stream: &str);
}

type Observers = dyn Fn(&Request<'_>) -> Option<Box<dyn LoadObserver>> + Send + Sync;

/// The state that all requests share.
pub(super) struct Shared<D: AggregateDatabase> {
    pub(super) store: SqlEventStore<D::Pool>,
    pub(super) locks: LeaseLockManager<<D::Pool as LeasePool>::Leases>,
    sweep_interval: Duration,
    observers: Option<Arc<Observers>>,
}

impl<D: AggregateDatabase> Shared<D> {
    pub(super) fn observer_of(&self, request: &Request<'_>) -> Option<Box<dyn LoadObserver>> {
        self.observers.as_ref().and_then(|observe| observe(request))
    }
}

/// The leases in the database `D`. Dereferences to [`LeaseLockManager`], which lists leases and
/// frees single ones.
///
/// The fairing of [`init`] manages it as Rocket state: a handler takes it as `&State<Leases<D>>`.
pub struct Leases<D: AggregateDatabase>(Arc<Shared<D>>);

impl<D: AggregateDatabase> Deref for Leases<D> {
    type Target = LeaseLockManager<<D::Pool as LeasePool>::Leases>;

    fn deref(&self) -> &Self::Target {
        &self.0.locks
    }
}

/// Returns the fairing that keeps aggregates in the database `D`. Attach it after the database.
///
/// At launch it creates the tables of events, snapshots and leases. While the service runs, it
/// deletes expired leases that crashed processes have left.
///
/// ```no_run
/// use rocket_tx_aggregates::aggregate;
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
///     .attach(aggregate::init::<Main>())
///     .attach(Settlement::new());
/// ```
///
/// It reads these keys from `Rocket.toml`:
///
/// | key | default | meaning |
/// | --- | --- | --- |
/// | `lease_ttl` | `"30s"` | lifetime of a lease without renewal, at least 100 ms; others wait that long after a crash |
/// | `lease_retry_interval` | `"50ms"` | polling interval for a contended lease (±50 % jitter) |
/// | `lease_max_wait` | `"5s"` | how long one call waits for all its leases together; then 503 |
/// | `lease_max_connections` | `4` | Postgres: the most connections for lease statements |
/// | `lease_owner_id` | address, port and process id | a label for operators |
/// | `lease_renewal_cap` | `"10m"` | the longest time for which a lease is renewed |
/// | `lease_sweep_interval` | `"1m"` | how often expired leases are deleted |
/// | `snapshot_interval` | `100` | the number of events between snapshots; 0 means no snapshots |
pub fn init<D: AggregateDatabase>() -> Initializer<D> {
    Initializer {
        projections: Projections::default(),
        observers: None,
    }
}

/// The fairing that [`init`] returns.
pub struct Initializer<D: AggregateDatabase> {
    projections: Projections<ConnectionOf<D::Pool>>,
    observers: Option<Arc<Observers>>,
}

impl<D: AggregateDatabase> Initializer<D> {
    /// Adds a projection, which writes a read model in the transactions that store events of `A`.
    pub fn projection<A: Aggregate>(
        mut self,
        projection: impl Projection<A, ConnectionOf<D::Pool>>,
    ) -> Self {
        self.projections = self.projections.with::<A, _>(projection);
        self
    }

    /// Observes the loads of requests. `observe` is called when a request takes an
    /// [`Aggregates`](super::Aggregates) guard. If it returns `None`, the loads of that guard are
    /// not observed.
    pub fn observe_loads<F>(mut self, observe: F) -> Self
    where
        F: Fn(&Request<'_>) -> Option<Box<dyn LoadObserver>> + Send + Sync + 'static,
    {
        self.observers = Some(Arc::new(observe));
        self
    }

    async fn start(&self, rocket: &Rocket<Build>) -> Result<Shared<D>, String> {
        let database = rocket.state::<D>().ok_or_else(|| {
            format!(
                "the database is not open; see its own error above in the log, or attach `rocket_tx::db::init::<{}>()` before `aggregate::init`",
                type_name::<D>()
            )
        })?;
        if rocket.state::<Leases<D>>().is_some() {
            return Err(format!(
                "the launch code attaches `aggregate::init::<{}>()` twice; remove one of the two lines",
                type_name::<D>()
            ));
        }
        let config = Config::read(rocket.figment())?;
        let store = SqlEventStore::new(&**database)
            .with_snapshot_every(config.snapshot_interval)
            .with_projections(self.projections.clone());
        let locks = LeaseLockManager::over(database.leases())
            .with_lease_ttl(config.ttl)
            .with_retry_interval(config.retry_interval)
            .with_max_wait(Some(config.max_wait))
            .with_max_connections(config.max_connections)
            .with_owner_id(config.owner)
            .with_renewal_cap(config.renewal_cap);
        store.migrate().await.map_err(|error| error.to_string())?;
        locks.migrate().await.map_err(|error| error.to_string())?;
        Ok(Shared {
            store,
            locks,
            sweep_interval: config.sweep_interval,
            observers: self.observers.clone(),
        })
    }
}

#[rocket::async_trait]
impl<D: AggregateDatabase> Fairing for Initializer<D> {
    fn info(&self) -> Info {
        Info {
            name: "Aggregates",
            kind: Kind::Ignite | Kind::Liftoff,
        }
    }

    async fn on_ignite(&self, rocket: Rocket<Build>) -> fairing::Result {
        match self.start(&rocket).await {
            Ok(shared) => {
                let shared = Arc::new(shared);
                Ok(rocket.manage(Leases(Arc::clone(&shared))).manage(shared))
            }
            Err(error) => {
                let name = D::NAME;
                tracing::error!("cannot set up aggregates in database `{name}`: {error}");
                Err(rocket)
            }
        }
    }

    async fn on_liftoff(&self, rocket: &Rocket<Orbit>) {
        if let Some(shared) = rocket.state::<Arc<Shared<D>>>() {
            tokio::spawn(sweep(Arc::clone(shared), rocket.shutdown()));
        }
    }
}

/// Deletes expired leases at every sweep interval, until shutdown. A failed sweep is retried at the
/// next interval.
async fn sweep<D: AggregateDatabase>(shared: Arc<Shared<D>>, mut shutdown: rocket::Shutdown) {
    loop {
        // The jitter keeps processes from sweeping all at once.
        let pause = shared.sweep_interval.mul_f64(0.5 + fastrand::f64());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = &mut shutdown => return,
        }
        match shared.locks.sweep_expired().await {
            Ok(0) => {}
            Ok(swept) => tracing::info!(database = D::NAME, swept, "expired leases were deleted"),
            Err(error) => {
                tracing::debug!(database = D::NAME, %error, "a sweep failed; retrying later")
            }
        }
    }
}

/// Settings from `Rocket.toml`.
struct Config {
    ttl: Duration,
    retry_interval: Duration,
    max_wait: Duration,
    max_connections: u32,
    owner: String,
    renewal_cap: Duration,
    sweep_interval: Duration,
    snapshot_interval: u64,
}

impl Config {
    fn read(figment: &Figment) -> Result<Self, String> {
        let at_least = |key: &str, default: Duration, least: Duration| {
            let duration = read(figment, key)?.map_or(default, |ConfigDuration(duration)| duration);
            match duration >= least {
                true => Ok(duration),
                false => Err(format!(
                    "`{key}`: {duration:?} is too short; set at least {least:?} in Rocket.toml or the environment"
                )),
            }
        };
        let second = Duration::from_secs(1);
        let milli = Duration::from_millis(1);
        Ok(Self {
            ttl: at_least("lease_ttl", second * 30, LEAST_TTL)?,
            retry_interval: at_least("lease_retry_interval", milli * 50, milli)?,
            max_wait: at_least("lease_max_wait", second * 5, Duration::ZERO)?,
            max_connections: match read(figment, "lease_max_connections")? {
                Some(0) => {
                    return Err(
                        "`lease_max_connections`: 0 connections can take no lease; set at \
                                least 1 in Rocket.toml or the environment"
                            .to_owned(),
                    );
                }
                Some(number) => number,
                None => 4,
            },
            owner: match read(figment, "lease_owner_id")? {
                Some(owner) => owner,
                None => owner(figment),
            },
            renewal_cap: at_least("lease_renewal_cap", second * 600, Duration::ZERO)?,
            sweep_interval: at_least("lease_sweep_interval", second * 60, milli * 100)?,
            snapshot_interval: read(figment, "snapshot_interval")?.unwrap_or(100),
        })
    }
}

fn read<T: DeserializeOwned>(figment: &Figment, key: &str) -> Result<Option<T>, String> {
    setting(figment, key)
        .map_err(|error| format!("`{key}`: {error}; correct it in Rocket.toml or the environment"))
}

/// The default owner id: address, port and process id, by which operators find the process.
fn owner(figment: &Figment) -> String {
    let address: String = figment
        .extract_inner("address")
        .unwrap_or_else(|_| "127.0.0.1".into());
    let port: u16 = figment.extract_inner("port").unwrap_or_default();
    format!("{address}:{port} pid {}", std::process::id())
}
