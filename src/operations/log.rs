//! The log of the service: text, or a JSON object a line.

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

/// Belongs to the log for as long as the service runs.
///
/// Attached to Rocket, it connects the log with the service's feed, which then reports statements.
/// It is dropped with the service, after the last request; with the feature `otel` the remaining
/// spans are exported then.
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

/// Leaves out Rocket's debug lines about requests: they contain all headers, and so tokens.
fn is_for_all(metadata: &Metadata<'_>) -> bool {
    metadata.target() != "rocket::server" || *metadata.level() < Level::DEBUG
}

/// Logs to standard error, as `RUST_LOG` and `log_format` say. Call it once, before the launch, and
/// attach the returned value to Rocket.
///
/// # Errors
///
/// `log_format`, or with the feature `otel` one of its variables, has a value that is not known.
pub fn start_log(figment: &Figment) -> Result<Log, String> {
    let format = config::value::<Format>(figment, "log_format")?.unwrap_or_default();
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("rocket_tx=info,rocket=warn,warn"));
    let is_seen = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = fmt::layer().with_ansi(is_seen).with_writer(std::io::stderr);
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
    let filter = filter.and(filter_fn(is_for_all));
    subscriber.with(lines.with_filter(filter)).init();
    Ok(Log {
        statements,
        #[cfg(feature = "otel")]
        _export: export,
    })
}
