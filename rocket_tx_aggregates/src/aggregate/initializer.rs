//! The fairing that makes the tables, and sweeps what crashed processes have left.

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
use crate::lock::{LeaseLockManager, LeasePool};

/// Called when a request has loaded aggregates with their leases, and holds no connection. The
/// request waits until it returns, with the leases held.
#[rocket::async_trait]
pub trait LoadObserver: Send + Sync {
    /// The stream of one of them.
    async fn loaded(&self, stream: &str);
}

type Observers = dyn Fn(&Request<'_>) -> Option<Box<dyn LoadObserver>> + Send + Sync;

/// Shared by all requests.
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

/// The leases in the database `D`: a list of them, and a way to free one. Managed by [`init`]'s
/// fairing: ask for it as `&State<Leases<D>>`. It derefs to [`LeaseLockManager`].
pub struct Leases<D: AggregateDatabase>(Arc<Shared<D>>);

impl<D: AggregateDatabase> Deref for Leases<D> {
    type Target = LeaseLockManager<<D::Pool as LeasePool>::Leases>;

    fn deref(&self) -> &Self::Target {
        &self.0.locks
    }
}

/// Keeps aggregates in the database `D`: makes the tables of events, snapshots and leases, and
/// sweeps leases that crashed processes have left. Attach it after the database.
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
/// It reads from `Rocket.toml`, with these defaults:
///
/// | key | default | |
/// | --- | --- | --- |
/// | `lease_ttl` | `"30s"` | how long a lease lasts without renewal: how long others wait after a crash |
/// | `lease_retry_interval` | `"50ms"` | polling interval for a contended lease (±50 % jitter) |
/// | `lease_max_wait` | `"5s"` | how long a request waits for leases, all of one call together; then 503 |
/// | `lease_owner_id` | address, port and process id | a label for operators |
/// | `lease_renewal_cap` | `"10m"` | how long a lease is renewed at most |
/// | `lease_sweep_interval` | `"1m"` | how often expired leases are deleted |
/// | `snapshot_interval` | `100` | a snapshot every so many events; 0 is never |
pub fn init<D: AggregateDatabase>() -> Initializer<D> {
    Initializer {
        projections: Projections::default(),
        observers: None,
    }
}

/// The fairing that [`init`] makes.
pub struct Initializer<D: AggregateDatabase> {
    projections: Projections<ConnectionOf<D::Pool>>,
    observers: Option<Arc<Observers>>,
}

impl<D: AggregateDatabase> Initializer<D> {
    /// Writes a read model in the transactions that store events of `A`.
    pub fn projection<A: Aggregate>(
        mut self,
        projection: impl Projection<A, ConnectionOf<D::Pool>>,
    ) -> Self {
        self.projections = self.projections.with::<A, _>(projection);
        self
    }

    /// Observes the loads of a request. `observe` is called when its guard is made; `None` observes
    /// nothing.
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
                "its database is not attached; see above why it could not be, or attach `rocket_tx::db::init::<{}>()` before it",
                type_name::<D>()
            )
        })?;
        let config = Config::read(rocket.figment())?;
        let store = SqlEventStore::new(&**database)
            .with_snapshot_every(config.snapshot_interval)
            .with_projections(self.projections.clone());
        let locks = LeaseLockManager::over(database.leases())
            .with_lease_ttl(config.ttl)
            .with_retry_interval(config.retry_interval)
            .with_max_wait(Some(config.max_wait))
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
                tracing::error!("cannot keep aggregates in database `{name}`: {error}");
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

/// Until shutdown. What fails is tried again at the next turn.
async fn sweep<D: AggregateDatabase>(shared: Arc<Shared<D>>, mut shutdown: rocket::Shutdown) {
    loop {
        // Not all processes at once.
        let pause = shared.sweep_interval.mul_f64(0.5 + fastrand::f64());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = &mut shutdown => return,
        }
        match shared.locks.sweep_expired().await {
            Ok(0) => {}
            Ok(swept) => tracing::info!(database = D::NAME, swept, "expired leases were deleted"),
            Err(error) => tracing::debug!(database = D::NAME, %error, "nothing was swept"),
        }
    }
}

/// Settings from `Rocket.toml`.
struct Config {
    ttl: Duration,
    retry_interval: Duration,
    max_wait: Duration,
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
                    "`{key}`: {duration:?} is too short; at least {least:?}; correct it in Rocket.toml or the environment"
                )),
            }
        };
        let second = Duration::from_secs(1);
        let milli = Duration::from_millis(1);
        Ok(Self {
            ttl: at_least("lease_ttl", second * 30, milli * 100)?,
            retry_interval: at_least("lease_retry_interval", milli * 50, milli)?,
            max_wait: at_least("lease_max_wait", second * 5, Duration::ZERO)?,
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

/// Where operators find the process.
fn owner(figment: &Figment) -> String {
    let address: String = figment
        .extract_inner("address")
        .unwrap_or_else(|_| "127.0.0.1".into());
    let port: u16 = figment.extract_inner("port").unwrap_or_default();
    format!("{address}:{port} pid {}", std::process::id())
}
