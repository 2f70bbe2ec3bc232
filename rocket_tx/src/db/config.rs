//! The settings of a database: `[default.databases.<name>]` in `Rocket.toml`.

use std::fmt;
use std::time::Duration;

use rocket::figment::{self, Figment};
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, Visitor};

/// A duration in the configuration: `"10s"`, `"50ms"`, or a whole number of seconds. The maximum is
/// 24 days.
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
        struct TextOrSeconds;

        /// SQLite and Postgres store a timeout as a 32-bit number of milliseconds. sqlx panics on a
        /// longer one.
        const LONGEST: Duration = Duration::from_millis(i32::MAX as u64);

        fn bounded<E: de::Error>(duration: Duration) -> Result<ConfigDuration, E> {
            if duration > LONGEST {
                return Err(E::custom("the duration is longer than 24 days"));
            }
            Ok(ConfigDuration(duration))
        }

        impl Visitor<'_> for TextOrSeconds {
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

        deserializer.deserialize_any(TextOrSeconds)
    }
}

/// Returns the configured value of `key`, or `None` if `key` is not set.
///
/// # Errors
///
/// The value is not a valid `T`.
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

/// A statement that takes longer is marked as slow in the log. The log level is the same as for all
/// other statements, so that the text of a statement does not appear at a higher level.
pub(super) const SLOW: Duration = Duration::from_secs(1);

/// The configuration of one database, from `Rocket.toml` or `ROCKET_DATABASES`.
///
/// An unknown key makes the launch fail. Otherwise a misspelt `busy_timeout` would silently leave
/// the default in force.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
// All keys are known to every build, and each backend reads its own.
#[cfg_attr(not(all(feature = "sqlite", feature = "postgres")), allow(dead_code))]
pub struct Config {
    /// The URL, such as `sqlite:data/main.db` or `postgres://user@host/database`.
    pub url: String,
    /// The maximum number of connections. Default: four for each worker of Rocket. On SQLite this
    /// counts the readers; there is one writer in addition. On Postgres there are two pools, one
    /// for transactions and one that is read-only, and each of them has this limit.
    pub max_connections: u32,
    /// The number of connections that stay open while idle. Default 0. On SQLite this counts the
    /// readers. On Postgres it applies only to the pool for transactions.
    #[serde(default)]
    pub min_connections: u32,
    /// How long a request waits for a connection, or for the SQLite writer. Default 5 s.
    pub connect_timeout: ConfigDuration,
    /// SQLite: how long to wait for a lock that another process holds. Default 5 s.
    #[serde(default = "five_seconds")]
    pub busy_timeout: ConfigDuration,
    /// How long a connection may be idle before it is closed. Default: no limit on SQLite, 10 min
    /// on Postgres.
    #[serde(default)]
    pub idle_timeout: Option<ConfigDuration>,
    /// SQLite: how far a commit must have reached the disk before it is reported to a client. With
    /// the default, `full`, a commit that was reported survives a power cut.
    #[serde(default)]
    pub synchronous: Synchronous,
    /// Postgres: `statement_timeout`. Default 30 s.
    #[serde(default = "thirty_seconds")]
    pub statement_timeout: ConfigDuration,
    /// Postgres: `idle_in_transaction_session_timeout`. Default 15 s.
    #[serde(default = "fifteen_seconds")]
    pub idle_in_transaction_timeout: ConfigDuration,
    /// Postgres: how many prepared statements a session keeps. Use 0 with a connection pooler that
    /// does not support prepared statements. Default 100, as in sqlx.
    #[serde(default)]
    pub statement_cache: Option<usize>,
    /// Postgres: whether a session is reset before another request uses it: settings, role,
    /// temporary tables, cursors, LISTEN, sequence values, the seed of `random()`. Default true.
    /// Advisory locks are always released.
    #[serde(default = "yes")]
    pub reset_sessions: bool,
    /// Refuses to open the configured database in a test.
    #[cfg(feature = "testing")]
    #[serde(default, rename = "in_tests", deserialize_with = "not_in_tests")]
    _in_tests: (),
}

/// The key that makes the opening of a configured database fail in tests. `testing` sets it for all
/// databases, and [`init`](super::init) unsets it for a database that belongs to the test.
#[cfg(feature = "testing")]
pub(crate) const IN_TESTS: &str = "in_tests";

#[cfg(feature = "testing")]
fn not_in_tests<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    match serde::Deserialize::deserialize(deserializer)? {
        false => Ok(()),
        true => Err(de::Error::custom(
            "a test must not open the configured database; attach it with `rocket_tx::db::init`, \
             which gives the test a database of its own",
        )),
    }
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

/// How far a SQLite commit must have reached the disk before it is reported to the client.
///
/// The names and the guarantees are those of SQLite's
/// [`PRAGMA synchronous`](https://www.sqlite.org/pragma.html#pragma_synchronous).
///
/// `full` costs less here than in SQLite itself, because the writer does not wait for the disk. The
/// writer serves the next request at once, and one sync covers all commits before it. Only the
/// responses wait. In the meantime other requests may read data that is not durable yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Synchronous {
    /// Never waits for the disk. A power cut may undo the last commits or damage the file.
    Off,
    /// Waits for the disk only at checkpoints. A power cut may undo the last commits, although they
    /// were reported as committed. A power cut does not damage the file.
    Normal,
    /// Reports a commit only after a sync that began when COMMIT had returned. A commit that was
    /// reported survives a power cut.
    #[default]
    Full,
    /// Like `full`, and also syncs the folder.
    Extra,
}
