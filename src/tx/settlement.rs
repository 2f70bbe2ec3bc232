//! The fairing that a service attaches, and what it was told.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rocket::fairing::{self, Fairing, Info, Kind};
use rocket::figment::Figment;
use rocket::http::Method;
use rocket::{Build, Data, Orbit, Phase, Request, Response, Rocket};
use tokio_util::task::TaskTracker;

use super::coming_last::{ComesLast, what_runs_later};
use super::context::RequestContext;
use super::live::Live;
use super::observe::{Observer, Observers};
use super::{panics, slow};
use crate::db::{Roster, Seconds, setting};

/// What a veto looks at.
pub struct Vetoed<'a, 'r> {
    /// The request.
    pub request: &'a Request<'r>,
    /// Its method as it was sent: Rocket answers a HEAD by routing a GET.
    pub method: Method,
    /// The response, as handler or catcher and the other fairings made it.
    pub response: &'a Response<'r>,
}

type Veto = Arc<dyn Fn(&Vetoed<'_, '_>) -> bool + Send + Sync>;

/// The fairing that settles every request: below 400 commits, 400 and above rolls back, and what
/// [`Reason`](super::Reason) lists comes first.
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
/// connection of a client is closed that takes nothing of a body which holds a [`Read`](super::Read).
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
        F: Fn(&Vetoed<'_, '_>) -> bool + Send + Sync + 'static,
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

/// What every settlement needs; Rocket's managed state.
pub(super) struct Settings {
    pub(super) live: Live,
    pub(super) settle_timeout: Duration,
    pub(super) slow_transaction: Duration,
    pub(super) read_idle_timeout: Duration,
    pub(super) veto: Option<Veto>,
    pub(super) observers: Observers,
    pub(super) in_flight: TaskTracker,
    /// Why responses are not settled last, once it was looked at.
    late: OnceLock<Option<String>>,
}

impl Settings {
    /// Says in the log, once, if a response fairing runs after the settlement.
    pub(super) fn comes_too_early<P: Phase>(&self, rocket: &Rocket<P>) -> bool {
        let late = self.late.get_or_init(|| {
            let late = what_runs_later(rocket);
            if let Some(late) = &late {
                tracing::error!("{late}");
            }
            late
        });
        late.is_some()
    }

    pub(super) fn observe(&self, tell: impl Fn(&dyn Observer)) {
        self.observers.tell(tell);
    }
}

#[rocket::async_trait]
impl Fairing for Settlement {
    fn info(&self) -> Info {
        Info {
            name: "Settlement",
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
        let (rocket, roster) = Roster::of(rocket);
        roster.settle_timeout.get_or_init(|| settle_timeout);
        let live = Live::default();
        let settings = Settings {
            live: live.clone(),
            settle_timeout,
            slow_transaction,
            read_idle_timeout,
            veto: self.veto.clone(),
            observers: Observers::new(&self.observers),
            in_flight: roster.in_flight,
            late: OnceLock::new(),
        };
        let rocket = rocket.manage(settings).manage(live);
        Ok(rocket.attach(ComesLast::new()))
    }

    async fn on_liftoff(&self, rocket: &Rocket<Orbit>) {
        if let Some(settings) = rocket.state::<Settings>() {
            // Where no guard of ours stands in a handler's signature, nothing was asked before.
            if settings.comes_too_early(rocket) {
                rocket.shutdown().notify();
            }
            let live = settings.live.clone();
            let watch = slow::watch(live, settings.slow_transaction, rocket.shutdown());
            tokio::spawn(watch);
        }
    }

    async fn on_request(&self, request: &mut Request<'_>, _: &mut Data<'_>) {
        RequestContext::enter(request);
    }
}

/// What the configuration says.
struct Durations {
    settle_timeout: Duration,
    slow_transaction: Duration,
    read_idle_timeout: Duration,
}

impl Durations {
    fn of(figment: &Figment) -> Result<Self, Box<rocket::figment::Error>> {
        const SECOND: Duration = Duration::from_secs(1);

        Ok(Self {
            settle_timeout: settle_timeout(figment)?,
            slow_transaction: duration(figment, "slow_transaction", SECOND)?,
            read_idle_timeout: read_idle_timeout(figment)?,
        })
    }
}

/// How long a body that holds a `Read` may wait for its client.
fn read_idle_timeout(figment: &Figment) -> Result<Duration, Box<rocket::figment::Error>> {
    const KEY: &str = "read_idle_timeout";
    const DEFAULT: Duration = Duration::from_secs(30);
    /// No network is faster than that all the time.
    const SHORTEST: Duration = Duration::from_millis(100);

    let limit = duration(figment, KEY, DEFAULT)?;
    if limit < SHORTEST {
        let error = format!(
            "`{KEY}` is {limit:?}: it must be {SHORTEST:?} or longer, or clients of a body that reads \
             are cut off while they take it; leave it out for {DEFAULT:?}"
        );
        return Err(Box::new(error.into()));
    }
    Ok(limit)
}

/// How long a settlement may take: less than Rocket waits for requests at shutdown, unless the
/// configuration wants it otherwise.
fn settle_timeout(figment: &Figment) -> Result<Duration, Box<rocket::figment::Error>> {
    const DEFAULT: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    // What is wrong with it is for Rocket to say.
    let shutdown: rocket::config::Shutdown = figment
        .extract_inner(rocket::Config::SHUTDOWN)
        .unwrap_or_default();
    let waits = Duration::from_secs(u64::from(shutdown.grace) + u64::from(shutdown.mercy));
    let default = DEFAULT.min(waits.saturating_sub(SECOND)).max(SECOND);
    let limit = duration(figment, "settle_timeout", default)?;
    if limit >= waits {
        tracing::warn!(
            settle_timeout = ?limit, shutdown = ?waits,
            "`settle_timeout` is not shorter than `shutdown.grace` and `shutdown.mercy` together: a \
             shutdown may cut a request off that is committed, and its client is not told; correct \
             them in Rocket.toml"
        );
    }
    Ok(limit)
}

fn duration(
    figment: &Figment,
    key: &str,
    default: Duration,
) -> Result<Duration, Box<rocket::figment::Error>> {
    Ok(setting(figment, key)?.map_or(default, |Seconds(duration)| duration))
}
