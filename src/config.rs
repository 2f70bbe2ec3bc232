//! How the parts of the service read their keys in `Rocket.toml`.

use std::time::Duration;

use rocket::Config;
use rocket::fairing::AdHoc;
use rocket::figment::Figment;
use rocket_tx::db::ConfigDuration;
use rocket_tx::extend::setting;
use serde::de::DeserializeOwned;

/// The value of `key`, or `None` if the configuration does not have the key.
pub(crate) fn value<T: DeserializeOwned>(
    figment: &Figment,
    key: &str,
) -> Result<Option<T>, String> {
    setting(figment, key).map_err(|error| format!("`{key}`: {error}"))
}

/// A duration, as `"10s"` or as a number of seconds.
pub(crate) fn duration(
    figment: &Figment,
    key: &str,
    default: Duration,
) -> Result<Duration, String> {
    let configured: Option<ConfigDuration> = value(figment, key)?;
    Ok(configured.map_or(default, |ConfigDuration(configured)| configured))
}

/// Whether the service runs with the profile for development.
pub(crate) fn is_debug(figment: &Figment) -> bool {
    figment.profile() == Config::DEBUG_PROFILE
}

/// A fairing: Rocket manages the settings that `read` finds. A value that `read` refuses stops the
/// launch.
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

/// `faults`: whether failure injection is on. By default only in development.
pub(crate) struct FaultInjection(pub(crate) bool);

impl FaultInjection {
    pub(crate) fn read(figment: &Figment) -> Result<Self, String> {
        let configured = value(figment, "faults")?;
        Ok(Self(configured.unwrap_or(is_debug(figment))))
    }
}

/// `handler_timeout`: how long a handler may take.
#[derive(Default)]
pub(crate) struct HandlerTimeout(pub(crate) Duration);

impl HandlerTimeout {
    /// The default is a little longer than everything that a handler may wait for, and a statement:
    /// the limits of the databases come first, because they also end the work in the database.
    pub(crate) fn read(figment: &Figment) -> Result<Self, String> {
        const MARGIN: Duration = Duration::from_secs(5);
        let seconds = |key: &str, default| duration(figment, key, Duration::from_secs(default));

        if let Some(ConfigDuration(configured)) = value(figment, "handler_timeout")? {
            if configured.is_zero() {
                return Err("`handler_timeout`: nothing is done in no time; leave it out".into());
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
