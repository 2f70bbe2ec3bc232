//! Functions with which the modules of the service read their keys in `Rocket.toml`.

use std::time::Duration;

use rocket::Config;
use rocket::fairing::AdHoc;
use rocket::figment::Figment;
use rocket_tx::db::ConfigDuration;
use rocket_tx::extend::setting;
use serde::de::DeserializeOwned;

/// Returns the value of `key`, or `None` if the configuration does not have the key.
pub(crate) fn value<T: DeserializeOwned>(
    figment: &Figment,
    key: &str,
) -> Result<Option<T>, String> {
    setting(figment, key).map_err(|error| format!("`{key}`: {error}"))
}

/// Reads a duration, written as `"10s"` or as a number of seconds.
pub(crate) fn duration(
    figment: &Figment,
    key: &str,
    default: Duration,
) -> Result<Duration, String> {
    let configured: Option<ConfigDuration> = value(figment, key)?;
    Ok(configured.map_or(default, |ConfigDuration(configured)| configured))
}

/// Returns `true` if the service runs with Rocket's debug profile.
pub(crate) fn is_debug(figment: &Figment) -> bool {
    figment.profile() == Config::DEBUG_PROFILE
}

/// Returns a fairing that reads settings at launch and gives them to Rocket as managed state. If
/// `read` returns an error, the launch fails.
pub(crate) fn managed<T: Send + Sync + 'static>(
    name: &'static str,
    read: fn(&Figment) -> Result<T, String>,
) -> AdHoc {
    AdHoc::try_on_ignite(name, move |rocket| async move {
        match read(rocket.figment()) {
            Ok(settings) => Ok(rocket.manage(settings)),
            Err(error) => {
                tracing::error!(
                    "cannot launch: {error}; correct it in Rocket.toml or the environment"
                );
                Err(rocket)
            }
        }
    })
}

/// The key `faults`: whether failure injection is on. By default it is on in the debug profile
/// only.
pub(crate) struct FaultInjection(pub(crate) bool);

impl FaultInjection {
    pub(crate) fn read(figment: &Figment) -> Result<Self, String> {
        let configured = value(figment, "faults")?;
        Ok(Self(configured.unwrap_or(is_debug(figment))))
    }
}

/// The key `handler_timeout`: how long a handler may take.
#[derive(Default)]
pub(crate) struct HandlerTimeout(pub(crate) Duration);

impl HandlerTimeout {
    /// Reads the key.
    ///
    /// The default is the sum of all waits of a handler, the longer statement timeout and a margin.
    /// So the timeouts of the databases, which also stop the work in the database, expire first.
    pub(crate) fn read(figment: &Figment) -> Result<Self, String> {
        const MARGIN: Duration = Duration::from_secs(5);
        let seconds = |key: &str, default| duration(figment, key, Duration::from_secs(default));

        if let Some(ConfigDuration(configured)) = value(figment, "handler_timeout")? {
            if configured.is_zero() {
                return Err("`handler_timeout`: must be longer than 0; or remove the key".into());
            }
            return Ok(Self(configured));
        }
        let mut waits = seconds("downstream_timeout", 1)?;
        let mut statement = Duration::ZERO;
        for database in ["main", "audit"] {
            waits += seconds(&format!("databases.{database}.connect_timeout"), 5)?;
            let limit = seconds(&format!("databases.{database}.statement_timeout"), 30)?;
            statement = statement.max(limit);
        }
        Ok(Self(waits + statement + MARGIN))
    }
}
