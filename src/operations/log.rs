//! The log of the service, as text or as one JSON object per line.

use std::io::IsTerminal;

use rocket::fairing::{Fairing, Info, Kind};
use rocket::figment::Figment;
use rocket::{Orbit, Rocket};
use rocket_tx::tx::Live;
use serde::Deserialize;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

use crate::config;

use super::statements::Statements;
#[cfg(feature = "otel")]
use super::telemetry;

/// The key `log_format`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object per line, for log collectors.
    Json,
}

/// The fairing of the log. Attach it to Rocket, which keeps it as long as the service runs.
///
/// The fairing connects the log with the service's event feed, so that the feed reports statements.
/// Rocket drops the fairing with the service, after the last request. With the feature `otel`,
/// dropping it exports the remaining spans.
pub struct Log {
    statements: Statements,
    #[cfg(feature = "otel")]
    _export: Option<telemetry::Export>,
}

#[rocket::async_trait]
impl Fairing for Log {
    fn info(&self) -> Info {
        Info {
            name: "Log",
            kind: Kind::Liftoff | Kind::Singleton,
        }
    }

    async fn on_liftoff(&self, rocket: &Rocket<Orbit>) {
        if let Some(live) = rocket.state::<Live>() {
            self.statements.report_to(live.clone());
        }
    }
}

/// Excludes Rocket's debug events about requests: they contain all headers, and so tokens.
fn has_no_tokens(metadata: &Metadata<'_>) -> bool {
    metadata.target() != "rocket::server" || *metadata.level() < Level::DEBUG
}

/// Starts the log on standard error, configured by `RUST_LOG` and `log_format`.
///
/// Call it once, before the launch, and attach the returned value to Rocket.
///
/// # Errors
///
/// The key `log_format` has an unknown value. With the feature `otel` also: an environment variable
/// of OpenTelemetry has an unknown value.
pub fn start_log(figment: &Figment) -> Result<Log, String> {
    let format = config::value::<Format>(figment, "log_format")?.unwrap_or_default();
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("rocket_tx=info,rocket=warn,warn"));
    let has_colors = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = fmt::layer()
        .with_ansi(has_colors)
        .with_writer(std::io::stderr);
    let lines = match format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    let statements = Statements::default();
    let subscriber = tracing_subscriber::registry().with(statements.layer());
    #[cfg(feature = "otel")]
    let (spans, export) = telemetry::start()?.unzip();
    #[cfg(feature = "otel")]
    let subscriber = subscriber.with(spans);
    let filter = filter.and(filter_fn(has_no_tokens));
    subscriber.with(lines.with_filter(filter)).init();
    Ok(Log {
        statements,
        #[cfg(feature = "otel")]
        _export: export,
    })
}
