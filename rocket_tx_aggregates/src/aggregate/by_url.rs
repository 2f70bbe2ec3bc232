//! The rows of events and snapshots, for connections whose backend the URL selects.

use rocket_tx::db::UrlConnection;
use rocket_tx::with_backend;

use super::rows::{EventRows, Inserted, Row, Sealed, StreamRow};
use super::stream::Append;
use crate::lock::Fence;

impl Sealed for UrlConnection {}

impl EventRows for UrlConnection {
    async fn history(
        &mut self,
        stream: &str,
        snapshot_version: Option<u32>,
    ) -> sqlx::Result<Vec<Row>> {
        with_backend!(self, |db| db.history(stream, snapshot_version).await)
    }

    async fn page(&mut self, stream: &str, after: u64, limit: u32) -> sqlx::Result<Vec<Row>> {
        with_backend!(self, |db| db.page(stream, after, limit).await)
    }

    async fn histories(
        &mut self,
        streams: &[&str],
        snapshot_version: Option<u32>,
    ) -> sqlx::Result<Vec<StreamRow>> {
        with_backend!(self, |db| db.histories(streams, snapshot_version).await)
    }

    async fn insert_events(
        &mut self,
        batch: &[Append],
        fences: &[&Fence],
    ) -> sqlx::Result<Inserted> {
        with_backend!(self, |db| db.insert_events(batch, fences).await)
    }

    async fn put_snapshots(&mut self, batch: &[Append]) -> sqlx::Result<()> {
        with_backend!(self, |db| db.put_snapshots(batch).await)
    }
}
