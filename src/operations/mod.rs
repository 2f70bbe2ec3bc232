//! Endpoints and outputs for operators: state, event feed, metrics, log and traces.
//!
//! | file | contents |
//! | --- | --- |
//! | `admin` | access control for the paths that only operators may use |
//! | `status` | `/registry`, `/healthz`, `/readyz` |
//! | `leases` | `/leases`: which holder may write which aggregate |
//! | `console` | `/registry/events`: a live feed of what happens to requests |
//! | `metrics` | `/metrics` |
//! | `log` | the log, as text or JSON |
//! | `statements` | adds the statements of requests to the feed |
//! | `telemetry` | sends spans to an OpenTelemetry collector, with the feature `otel` |

pub(crate) mod admin;
pub(crate) mod console;
pub(crate) mod leases;
pub(crate) mod log;
pub(crate) mod metrics;
mod statements;
pub(crate) mod status;
#[cfg(feature = "otel")]
pub(crate) mod telemetry;
