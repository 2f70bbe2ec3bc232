//! The integration tests: each promised behaviour, on each backend that it is promised for.
//!
//! Each file covers one capability. A behaviour is one function with a [`support::Backend`] as its
//! argument, and `on_each_backend!` makes one test per backend of it. All tests are in one binary,
//! so that only one binary is linked.

#![allow(clippy::unwrap_used)]

#[macro_use]
mod support;

mod admin;
mod aggregates;
mod atomic;
mod browser;
mod cancelled;
mod changes;
mod chaos;
mod cluster;
mod commit_integrity;
mod concurrency;
mod connection_loss;
mod contract;
mod crash;
mod dashboard;
mod durability;
mod endings;
mod failover;
mod feed;
mod guards;
mod history;
mod honesty;
mod hooks;
mod house;
mod idempotency;
mod innocent;
mod input;
mod jobs;
mod launch;
mod leaks;
mod load;
mod locks;
mod log;
mod metrics;
mod network;
mod openapi;
mod opening;
mod poolers;
mod power;
mod readiness;
mod readme;
mod resource_failures;
mod resources;
mod retrying;
mod sessions;
mod shutdown;
mod site;
mod sqlite_sessions;
mod stalled;
mod statements;
mod survives;
mod swapped;
#[cfg(feature = "otel")]
mod telemetry;
mod testing;
mod tour;
mod unproved;
mod verdict;
