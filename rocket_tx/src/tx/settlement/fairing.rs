//! The fairing that a service attaches.

use std::sync::Arc;

use rocket::fairing::{self, Fairing, Info, Kind};
use rocket::{Build, Data, Orbit, Request, Rocket};

use super::coming_last::ComesLast;
use super::settings::{Durations, Settings, Veto, VetoContext};
use crate::db::{Arrival, AttachedDatabases};
use crate::tx::context::{InFlight, RequestContext};
use crate::tx::fairings::{FairingOrder, REQUEST_FAIRING};
use crate::tx::monitor::{Live, Monitor, Observer, Observers, watch_slow};
use crate::tx::panics;

/// The fairing that settles every request.
///
/// A status below 400 commits, and a status of 400 or above rolls back, unless one of the other
/// [reasons](crate::tx::Reason) applies first.
///
/// Attach it once, anywhere in the launch code. It settles after all other response fairings have
/// run: those of the launch code, those of its stages
/// ([`AdHoc::on_ignite`](rocket::fairing::AdHoc::on_ignite) and the like), and those of three
/// levels of stages below them. If a response fairing would still run later, the service does not
/// launch, and the log names that fairing.
///
/// ```
/// use rocket::http::Method;
/// use rocket_tx::Settlement;
///
/// // A GET never commits, whatever its status is.
/// let settlement = Settlement::new().veto(|vetoed| vetoed.method == Method::Get);
/// ```
///
/// # Configuration
///
/// These settings are read from `Rocket.toml`:
///
/// - `settle_timeout` limits the settlement of one request, with all rollbacks and with the commits
///   of resources that are not databases. The default is `"10s"`, or one second less than Rocket
///   waits at shutdown (`shutdown.grace` and `shutdown.mercy` together) if that is shorter. The
///   default is never less than one second.
/// - `slow_transaction` (default `"1s"`): a warning is logged about each transaction or other
///   resource that is outstanding for longer. The warning does not wait for the settlement, so
///   requests that hang are reported too.
/// - `read_idle_timeout` (default `"30s"`, at least `"100ms"`): if a client reads nothing for that
///   long from a body that holds a [`Read`](crate::tx::Read), the client's connection is closed.
///
/// # Panics in handlers
///
/// `Settlement` installs a panic hook that runs before the existing hook of the process. With this
/// hook, a panic rolls the request back even if a catcher responds with a success.
#[derive(Default)]
pub struct Settlement {
    veto: Option<Veto>,
    observers: Vec<Arc<dyn Observer>>,
}

impl Settlement {
    /// Creates a settlement without a veto and without observers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rolls a request back, and keeps its response, if `veto` returns `true`. A veto that panics
    /// counts as `true`.
    pub fn veto<F>(mut self, veto: F) -> Self
    where
        F: Fn(&VetoContext<'_, '_>) -> bool + Send + Sync + 'static,
    {
        self.veto = Some(Arc::new(veto));
        self
    }

    /// Adds an observer, which is called at every step. A service may have several observers.
    pub fn observer<O: Observer>(mut self, observer: O) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }
}

#[rocket::async_trait]
impl Fairing for Settlement {
    fn info(&self) -> Info {
        Info {
            name: REQUEST_FAIRING,
            kind: Kind::Ignite | Kind::Liftoff | Kind::Request | Kind::Singleton,
        }
    }

    async fn on_ignite(&self, rocket: Rocket<Build>) -> fairing::Result {
        let durations = Durations::of(rocket.figment());
        let Durations {
            settle_timeout,
            slow_transaction,
            read_idle_timeout,
        } = match durations {
            Ok(durations) => durations,
            Err(error) => {
                tracing::error!("Settlement cannot start: {error}; correct it in Rocket.toml");
                return Err(rocket);
            }
        };
        panics::install();
        let (rocket, attached) = AttachedDatabases::of(rocket);
        attached.settle_timeout.get_or_init(|| settle_timeout);
        let live = Live::default();
        let observers = Observers::new(&self.observers);
        let monitor = Monitor {
            live: live.clone(),
            observers,
        };
        let order = Arc::new(FairingOrder::default());
        let settings = Settings {
            monitor: monitor.clone(),
            settle_timeout,
            slow_transaction,
            read_idle_timeout,
            veto: self.veto.clone(),
            in_flight: attached.in_flight.clone(),
            order: Arc::clone(&order),
        };
        let rocket = rocket.manage(InFlight(attached.in_flight)).manage(order);
        let rocket = rocket.manage(monitor).manage(settings).manage(live);
        Ok(rocket.attach(ComesLast::new()))
    }

    async fn on_liftoff(&self, rocket: &Rocket<Orbit>) {
        if let Some(settings) = rocket.state::<Settings>() {
            // If a handler takes a guard of this library, the guard has already checked this at
            // ignition. A service without such handlers is checked only here.
            if settings.order.settles_too_early(rocket) {
                rocket.shutdown().notify();
            }
            // Logs a warning now if the addresses of clients are not certain.
            settings.order.knows_clients(rocket);
            let live = settings.monitor.live.clone();
            let watch = watch_slow(live, settings.slow_transaction, rocket.shutdown());
            tokio::spawn(watch);
        }
    }

    async fn on_request(&self, request: &mut Request<'_>, _: &mut Data<'_>) {
        Arrival::note(request);
        RequestContext::enter(request);
    }
}
