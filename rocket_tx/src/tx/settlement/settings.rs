//! The settings of `Settlement`, from the code and the configuration of the service.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rocket::figment::Figment;
use rocket::http::Method;
use rocket::{Request, Response};
use tokio_util::task::TaskTracker;

use super::atomic::{AtomicCommit, AtomicMode};
use crate::db::{ConfigDuration, setting};
use crate::tx::fairings::FairingOrder;
use crate::tx::monitor::Monitor;

/// The request and the response that a veto decides on.
#[non_exhaustive]
pub struct VetoContext<'a, 'r> {
    /// The request.
    pub request: &'a Request<'r>,
    /// The method that the client sent. `request.method()` may differ: Rocket routes a HEAD as a
    /// GET.
    pub method: Method,
    /// The response as the handler or a catcher, and then the other response fairings, made it.
    pub response: &'a Response<'r>,
}

pub(super) type Veto = Arc<dyn Fn(&VetoContext<'_, '_>) -> bool + Send + Sync>;

/// The settings that every settlement uses. Managed by Rocket.
pub(super) struct Settings {
    pub(in crate::tx) monitor: Monitor,
    pub(in crate::tx) settle_timeout: Duration,
    pub(in crate::tx) slow_transaction: Duration,
    pub(super) read_idle_timeout: Duration,
    pub(in crate::tx) veto: Option<Veto>,
    pub(in crate::tx) in_flight: TaskTracker,
    pub(in crate::tx) order: Arc<FairingOrder>,
    /// Empty until all databases are attached, and for a service with one database.
    pub(super) atomic: Arc<OnceLock<AtomicCommit>>,
}

/// The settings from Rocket's configuration.
pub(super) struct Configured {
    pub(in crate::tx) settle_timeout: Duration,
    pub(in crate::tx) slow_transaction: Duration,
    pub(super) read_idle_timeout: Duration,
    pub(super) atomic_commit: AtomicMode,
}

impl Configured {
    pub(in crate::tx) fn of(figment: &Figment) -> Result<Self, Box<rocket::figment::Error>> {
        const SECOND: Duration = Duration::from_secs(1);

        Ok(Self {
            settle_timeout: settle_timeout(figment)?,
            slow_transaction: duration(figment, "slow_transaction", SECOND)?,
            read_idle_timeout: read_idle_timeout(figment)?,
            atomic_commit: AtomicMode::of(figment)?,
        })
    }
}

/// Reads how long a body that holds a `Read` may wait for its client.
fn read_idle_timeout(figment: &Figment) -> Result<Duration, Box<rocket::figment::Error>> {
    const KEY: &str = "read_idle_timeout";
    const DEFAULT: Duration = Duration::from_secs(30);
    /// A shorter limit would disconnect clients because of normal network delays.
    const SHORTEST: Duration = Duration::from_millis(100);

    let limit = duration(figment, KEY, DEFAULT)?;
    if limit < SHORTEST {
        let error = format!(
            "`{KEY}` is {limit:?}, but it must be at least {SHORTEST:?}: a shorter limit disconnects \
             clients while they read a response; the default is {DEFAULT:?}"
        );
        return Err(Box::new(error.into()));
    }
    Ok(limit)
}

/// Reads how long a settlement may take. The default is shorter than the time that Rocket waits for
/// requests at shutdown. If a configured value is not shorter, it is used, and a warning is logged.
fn settle_timeout(figment: &Figment) -> Result<Duration, Box<rocket::figment::Error>> {
    const DEFAULT: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    // Rocket itself reports an invalid `shutdown` setting.
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
             shutdown may end a request after its commit but before its response; lower \
             `settle_timeout` or raise the other two in Rocket.toml"
        );
    }
    Ok(limit)
}

fn duration(
    figment: &Figment,
    key: &str,
    default: Duration,
) -> Result<Duration, Box<rocket::figment::Error>> {
    Ok(setting(figment, key)?.map_or(default, |ConfigDuration(duration)| duration))
}
