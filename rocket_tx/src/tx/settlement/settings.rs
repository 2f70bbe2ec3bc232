//! What a service has told `Settlement`, by its code and its configuration.

use std::sync::Arc;
use std::time::Duration;

use rocket::figment::Figment;
use rocket::http::Method;
use rocket::{Request, Response};
use tokio_util::task::TaskTracker;

use crate::db::{ConfigDuration, setting};
use crate::tx::fairings::FairingOrder;
use crate::tx::monitor::Monitor;

/// What a veto looks at.
pub struct VetoContext<'a, 'r> {
    /// The request.
    pub request: &'a Request<'r>,
    /// Its method as it was sent: Rocket answers a HEAD by routing a GET.
    pub method: Method,
    /// The response, as handler or catcher and the other fairings made it.
    pub response: &'a Response<'r>,
}

pub(super) type Veto = Arc<dyn Fn(&VetoContext<'_, '_>) -> bool + Send + Sync>;

/// What every settlement needs; Rocket's managed state.
pub(super) struct Settings {
    pub(in crate::tx) monitor: Monitor,
    pub(in crate::tx) settle_timeout: Duration,
    pub(in crate::tx) slow_transaction: Duration,
    pub(super) read_idle_timeout: Duration,
    pub(in crate::tx) veto: Option<Veto>,
    pub(in crate::tx) in_flight: TaskTracker,
    pub(in crate::tx) order: Arc<FairingOrder>,
}

/// What the configuration says.
pub(super) struct Durations {
    pub(in crate::tx) settle_timeout: Duration,
    pub(in crate::tx) slow_transaction: Duration,
    pub(super) read_idle_timeout: Duration,
}

impl Durations {
    pub(in crate::tx) fn of(figment: &Figment) -> Result<Self, Box<rocket::figment::Error>> {
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
    Ok(setting(figment, key)?.map_or(default, |ConfigDuration(duration)| duration))
}
