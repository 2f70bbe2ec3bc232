//! For the people who run the service: its state, its feed, its metrics, logs and traces.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `admin` | who may use the addresses for operators |
//! | `status` | `/registry`, `/healthz`, `/readyz` |
//! | `leases` | `/leases`: who may write which aggregate |
//! | `console` | `/registry/events`: what happens to requests, as it happens |
//! | `metrics` | `/metrics` |
//! | `log` | the log, as text or JSON |
//! | `statements` | the statements of requests, in the feed |
//! | `telemetry` | spans for an OpenTelemetry collector, with the feature `otel` |

pub(crate) mod admin;
pub(crate) mod console;
pub(crate) mod leases;
pub(crate) mod log;
pub(crate) mod metrics;
mod statements;
pub(crate) mod status;
#[cfg(feature = "otel")]
pub(crate) mod telemetry;
