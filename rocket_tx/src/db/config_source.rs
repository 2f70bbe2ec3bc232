//! Finds the table of a database in the configuration. If it is not there, the error says where it was
//! looked for: most often, the service was started in another folder or with another profile.

use rocket::figment::providers::Serialized;
use rocket::figment::{self, Figment, Profile};
use rocket::{Build, Rocket};
use rocket_db_pools::Database;

use super::PoolError;

/// Returns the configuration of `D`, with the defaults of rocket_db_pools.
pub(super) fn configuration<D: Database>(rocket: &Rocket<Build>) -> Result<Figment, PoolError> {
    let key = format!("databases.{}", D::NAME);
    let figment = rocket.figment();
    // Check that the value is a table. Without this check figment would ignore a single value, and
    // the service would open the database that a source of lower priority names. The value may be a
    // URL with a password, so the error does not repeat it.
    let Ok(table) = figment.find_value(&key) else {
        return Err(PoolError::NotConfigured {
            name: D::NAME,
            found: found_instead(figment, &key),
        });
    };
    if table.into_dict().is_none() {
        return Err(figment::Error::from(figment::error::Kind::InvalidType(
            figment::error::Actual::Other("a single value".into()),
            "a table with the key `url`".into(),
        ))
        .into());
    }
    let workers = figment
        .extract_inner::<u32>(rocket::Config::WORKERS)
        .unwrap_or(4);
    Ok(figment
        .focus(&key)
        .join(Serialized::default("max_connections", workers * 4))
        .join(Serialized::default("connect_timeout", 5)))
}

/// Returns what to add to "there is no such table in the configuration".
fn found_instead(figment: &Figment, key: &str) -> String {
    let others = match tables(figment) {
        Some(others) => format!(", only for `{others}`"),
        None => String::new(),
    };
    let profile = figment.profile();
    let has_it = |other: &&Profile| figment.clone().select(other.as_str()).contains(key);
    let elsewhere = figment.profiles().find(has_it).map(|other| {
        format!("the profile is `{profile}`, and the table is in the profile `{other}`")
    });
    let places: Vec<String> = files(figment).into_iter().chain(elsewhere).collect();
    match places.is_empty() {
        true => others,
        false => format!("{others} ({})", places.join("; ")),
    }
}

/// Returns the names of the databases that the configuration has.
fn tables(figment: &Figment) -> Option<String> {
    let databases = figment.find_value("databases").ok()?.into_dict()?;
    let names: Vec<String> = databases.into_keys().collect();
    (!names.is_empty()).then(|| names.join("`, `"))
}

/// Names the files that were read, or the folder where there is none. `None` if the launch code reads
/// no file.
fn files(figment: &Figment) -> Option<String> {
    /// The name that figment gives to a file, also to one that does not exist.
    const FILE: &str = "TOML file";

    let files = figment.metadata().filter(|source| source.name == FILE);
    let files: Vec<_> = files.map(|file| file.source.as_ref()).collect();
    let read: Vec<String> = files
        .iter()
        .filter_map(|source| Some((*source)?.file_path()?.display().to_string()))
        .collect();
    match (&*read, files.is_empty()) {
        ([], true) => None,
        ([], false) => {
            let folder = std::env::current_dir().unwrap_or_default();
            Some(format!(
                "no file was read: Rocket looks for `Rocket.toml`, or for the file that ROCKET_CONFIG \
                 names, in the folder {} and above it",
                folder.display()
            ))
        }
        (read, _) => Some(format!("the file is {}", read.join(", "))),
    }
}
