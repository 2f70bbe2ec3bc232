//! How the service logs: for people, or a JSON object a line.

use rocket::figment::Figment;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use super::config::read;

/// `log_format` in `Rocket.toml`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    /// For people.
    #[default]
    Text,
    /// A JSON object a line, for collectors.
    Json,
}

/// Logs to standard error, as `RUST_LOG` and `log_format` say. Called once, before the launch.
///
/// # Errors
///
/// A value of `log_format` that is not understood.
pub fn start_log(figment: &Figment) -> Result<(), String> {
    let format = read::<Format>(figment, "log_format")?.unwrap_or_default();
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("rocket_tx=info,rocket=warn,warn"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        Format::Text => log.init(),
        Format::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}
