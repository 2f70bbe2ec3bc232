//! The fairing that a service attaches, and what it was told.

use std::sync::Arc;

use rocket::fairing::{self, Fairing, Info, Kind};
use rocket::{Build, Data, Orbit, Request, Rocket};

use super::coming_last::ComesLast;
use super::settings::{Durations, Settings, Veto, VetoContext};
use crate::db::{Arrival, AttachedDatabases};
use crate::tx::context::{InFlight, RequestContext};
use crate::tx::fairings::{FairingOrder, OF_REQUESTS};
use crate::tx::monitor::{Live, Monitor, Observer, Observers, watch_slow};
use crate::tx::panics;

/// The fairing that settles every request: below 400 commits, 400 and above rolls back, and what
/// [`Reason`](crate::tx::Reason) lists comes first.
///
/// It runs after all other response fairings, wherever in the launch code it stands: after those of
/// the launch code, of its stages ([`AdHoc::on_ignite`](rocket::fairing::AdHoc::on_ignite) and the
/// like), and of three generations of stages below them. A service where a response fairing would
/// still come later does not launch, and is told which one it is. Attach it once.
///
/// ```
/// use rocket::http::Method;
/// use rocket_tx::Settlement;
///
/// // A GET never commits, whatever it answers.
/// let settlement = Settlement::new().veto(|vetoed| vetoed.method == Method::Get);
/// ```
///
/// It reads from `Rocket.toml`: `settle_timeout`, the bound on settling one request, rollback and
/// releases included; the default is `"10s"`, or a second less than Rocket waits at shutdown
/// (`shutdown.grace` and `shutdown.mercy`) if that is shorter. And `slow_transaction` (default `"1s"`), past which what is outstanding is warned about,
/// while it is. And `read_idle_timeout` (default `"30s"`, at least `"100ms"`), after which the
/// connection of a client is closed that takes nothing of a body which holds a [`Read`](crate::tx::Read).
///
/// It installs a panic hook, before the one that the process has, so that a panic rolls back even
/// where a catcher answers it with a success.
#[derive(Default)]
pub struct Settlement {
    veto: Option<Veto>,
    observers: Vec<Arc<dyn Observer>>,
}

impl Settlement {
    /// Settles by the rules alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rolls back, and leaves the response as it is, where `veto` says true. A veto that panics
    /// counts as true.
    pub fn veto<F>(mut self, veto: F) -> Self
    where
        F: Fn(&VetoContext<'_, '_>) -> bool + Send + Sync + 'static,
    {
        self.veto = Some(Arc::new(veto));
        self
    }

    /// Tells `observer` of every step. May be called more than once.
    pub fn observer<O: Observer>(mut self, observer: O) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }
}

#[rocket::async_trait]
impl Fairing for Settlement {
    fn info(&self) -> Info {
        Info {
            name: OF_REQUESTS,
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
            // Where no guard of ours stands in a handler's signature, nothing was asked before.
            if settings.order.settles_too_early(rocket) {
                rocket.shutdown().notify();
            }
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
