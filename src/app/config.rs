//! The service's own keys in `Rocket.toml`.

use std::time::Duration;

use rocket::figment::Figment;
use rocket::{Build, Phase, Rocket, fairing};
use serde::de::DeserializeOwned;

use crate::db::Seconds;

use super::admin::{AdminFrom, Token};
use super::downstream::Client;

/// What `Rocket.toml` says about the service itself.
pub(super) struct Config {
    /// Whether failure injection is on.
    pub(super) faults: bool,
    /// What `/todos/<id>/share` calls; `None` is the service's own stand-in.
    pub(super) downstream_url: Option<reqwest::Url>,
    /// How long it may take to answer. The SQLite writer is held meanwhile.
    pub(super) downstream_timeout: Duration,
    /// From where the service's inside may be seen.
    pub(super) admin_from: AdminFrom,
    /// What opens it from elsewhere.
    pub(super) admin_token: Option<Token>,
}

impl Config {
    /// Reads the configuration and has Rocket manage it. A value that cannot be understood stops
    /// the launch.
    pub(super) async fn manage(rocket: Rocket<Build>) -> fairing::Result {
        match Self::read(rocket.figment()) {
            Ok(config) => {
                let client = Client::new(config.downstream_timeout);
                Ok(rocket.manage(config).manage(client))
            }
            Err(error) => {
                tracing::error!(
                    "cannot launch: {error}; correct it in Rocket.toml or the environment"
                );
                Err(rocket)
            }
        }
    }

    /// As the running service has it.
    pub(super) fn of<P: Phase>(rocket: &Rocket<P>) -> Option<&Self> {
        rocket.state()
    }

    fn read(figment: &Figment) -> Result<Self, String> {
        handler_timeout(figment)?;
        let debug = figment.profile() == rocket::Config::DEBUG_PROFILE;
        let url: Option<String> = read(figment, "downstream_url")?;
        let timeout: Option<Seconds> = read(figment, "downstream_timeout")?;
        // What is wrong with it is not repeated: the log is no place for a token.
        let token: Option<String> = read(figment, "admin_token")
            .map_err(|_| "`admin_token`: it must be text; write it in quotes".to_owned())?;
        let usual = match debug {
            true => AdminFrom::Anywhere,
            false => AdminFrom::Loopback,
        };
        Ok(Self {
            admin_from: read(figment, "admin_from")?.unwrap_or(usual),
            admin_token: token
                .map(|token| Token::new(token).map_err(|error| format!("`admin_token`: {error}")))
                .transpose()?,
            faults: read(figment, "faults")?.unwrap_or(debug),
            downstream_url: url
                .map(|url| web_address(&url).map_err(|error| format!("`downstream_url`: {error}")))
                .transpose()?,
            downstream_timeout: timeout.map_or(Duration::from_secs(1), |timeout| timeout.0),
        })
    }
}

/// How long a handler may take. By default a little longer than a statement and what it may have
/// waited for: where the database lives, its own limit comes first.
pub(super) fn handler_timeout(figment: &Figment) -> Result<Duration, String> {
    const MARGIN: Duration = Duration::from_secs(5);

    let seconds = |key: &str, default: u64| -> Result<Duration, String> {
        let configured: Option<Seconds> = read(figment, key)?;
        Ok(
            configured.map_or(Duration::from_secs(default), |Seconds(configured)| {
                configured
            }),
        )
    };
    let configured: Option<Seconds> = read(figment, "handler_timeout")?;
    if let Some(Seconds(configured)) = configured {
        return match configured.is_zero() {
            true => Err("`handler_timeout`: nothing is done in no time; leave it out".into()),
            false => Ok(configured),
        };
    }
    let mut waits = seconds("downstream_timeout", 1)?;
    let mut statement = Duration::ZERO;
    for database in ["main", "audit"] {
        waits += seconds(&format!("databases.{database}.connect_timeout"), 5)?;
        statement = statement.max(seconds(
            &format!("databases.{database}.statement_timeout"),
            30,
        )?);
    }
    Ok(waits + statement + MARGIN)
}

/// `host:port` without a scheme is a URL too, whose scheme is the host's name.
fn web_address(url: &str) -> Result<reqwest::Url, String> {
    let url: reqwest::Url = url.parse().map_err(|error| format!("{error}"))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err("it is no address to call; write it as http://host:port/path".into()),
    }
}

/// What `Rocket.toml` says for `key`; `None` where it says nothing.
pub(super) fn read<T: DeserializeOwned>(figment: &Figment, key: &str) -> Result<Option<T>, String> {
    match figment.extract_inner(key) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.missing() => Ok(None),
        Err(error) => Err(format!("`{key}`: {error}")),
    }
}
