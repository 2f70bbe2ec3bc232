//! What `[default.databases.<name>]` in `Rocket.toml` may say.

use std::fmt;
use std::time::Duration;

use rocket::figment::{self, Figment};
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, Visitor};

/// A duration as configuration writes it: `"10s"`, `"50ms"`, or a whole number of seconds; 24 days
/// at most.
///
/// ```
/// use rocket_tx::db::ConfigDuration;
/// let parsed: ConfigDuration = rocket::serde::json::from_str("\"50ms\"").unwrap();
/// assert_eq!(parsed.0, std::time::Duration::from_millis(50));
/// let parsed: ConfigDuration = rocket::serde::json::from_str("5").unwrap();
/// assert_eq!(parsed.0, std::time::Duration::from_secs(5));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigDuration(
    /// The duration.
    pub Duration,
);

impl<'de> Deserialize<'de> for ConfigDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        /// What SQLite and Postgres can count in milliseconds. Past it, sqlx panics.
        const LONGEST: Duration = Duration::from_millis(i32::MAX as u64);

        fn bounded<E: de::Error>(duration: Duration) -> Result<ConfigDuration, E> {
            if duration > LONGEST {
                return Err(E::custom("a duration of more than 24 days"));
            }
            Ok(ConfigDuration(duration))
        }

        impl Visitor<'_> for Either {
            type Value = ConfigDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"10s\" or \"50ms\", or a whole number of seconds")
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<ConfigDuration, E> {
                bounded(Duration::from_secs(seconds))
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<ConfigDuration, E> {
                u64::try_from(seconds)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(seconds), &self))
                    .and_then(|seconds| self.visit_u64(seconds))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ConfigDuration, E> {
                humantime::parse_duration(text)
                    .map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
                    .and_then(bounded)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// What the configuration says for `key`; `None` where it says nothing.
///
/// # Errors
///
/// What it says is no `T`.
pub fn setting<T: DeserializeOwned>(
    figment: &Figment,
    key: &str,
) -> Result<Option<T>, Box<figment::Error>> {
    match figment.extract_inner(key) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.missing() => Ok(None),
        Err(error) => Err(Box::new(error)),
    }
}

/// Statements that take longer are marked as slow in the log, at the level at which all are logged:
/// their text is nothing for the levels above.
pub(super) const SLOW: Duration = Duration::from_secs(1);

/// The configuration of one database, as `Rocket.toml` and `ROCKET_DATABASES` give it.
///
/// An unknown key stops the launch: a misspelt `busy_timeout` would otherwise be a default that
/// nobody chose.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `sqlite:data/main.db` or `postgres://user@host/database`.
    pub url: String,
    /// Connections at most. On SQLite it counts readers: there is one writer beside them.
    pub max_connections: u32,
    /// Connections kept open while idle. Default 0.
    #[serde(default)]
    pub min_connections: u32,
    /// How long a request waits for a connection, the SQLite writer included. Default 5 s.
    pub connect_timeout: ConfigDuration,
    /// How long SQLite waits for a lock that another process holds. Default 5 s.
    #[serde(default = "five_seconds")]
    pub busy_timeout: ConfigDuration,
    /// After how long an idle connection is closed. Default: never on SQLite, 10 min on Postgres.
    #[serde(default)]
    pub idle_timeout: Option<ConfigDuration>,
    /// What SQLite waits for before a commit is answered. Default `full`: a power cut takes back
    /// nothing that was answered.
    #[serde(default)]
    pub synchronous: Synchronous,
    /// Postgres's `statement_timeout`. Default 30 s.
    #[serde(default = "thirty_seconds")]
    pub statement_timeout: ConfigDuration,
    /// Postgres's `idle_in_transaction_session_timeout`. Default 15 s.
    #[serde(default = "fifteen_seconds")]
    pub idle_in_transaction_timeout: ConfigDuration,
    /// Postgres: how many prepared statements a session keeps; 0 for poolers that cannot have them.
    /// Default 100, sqlx's own.
    #[serde(default)]
    pub statement_cache: Option<usize>,
    /// Postgres: whether a session forgets, before anybody else uses it, what its user has set:
    /// settings, role, temporary tables, advisory locks, cursors. Default true.
    #[serde(default = "yes")]
    pub reset_sessions: bool,
}

fn yes() -> bool {
    true
}

fn five_seconds() -> ConfigDuration {
    ConfigDuration(Duration::from_secs(5))
}

fn fifteen_seconds() -> ConfigDuration {
    ConfigDuration(Duration::from_secs(15))
}

fn thirty_seconds() -> ConfigDuration {
    ConfigDuration(Duration::from_secs(30))
}

/// What a SQLite commit waits for before it is told.
///
/// The names are those of SQLite's own
/// [`PRAGMA synchronous`](https://www.sqlite.org/pragma.html#pragma_synchronous), and so is what
/// they promise. `full` costs less here than in SQLite: the writer does not wait for the disk. It
/// goes on to the next request at once, and one sync serves all commits before it; only the answers
/// wait. Meanwhile others may read what is not yet durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Synchronous {
    /// Never waits for the disk. A power cut may undo the last commits, or damage the file.
    Off,
    /// Waits at checkpoints. A power cut may undo the last commits, which were answered as
    /// committed; it does not damage the file.
    Normal,
    /// Answers after a sync that began when COMMIT had returned. Nothing that was answered is
    /// undone.
    #[default]
    Full,
    /// As `full`, and syncs the folder too.
    Extra,
}
