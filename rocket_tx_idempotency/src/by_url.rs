//! The rows of keys, for connections whose backend the URL selects.

use std::time::Duration;

use rocket_tx::db::UrlConnection;
use rocket_tx::with_backend;

use crate::hash::{Fingerprint, Scope};
use crate::rows::{Attempt, KeyRows, Row, Saved, Sealed};

impl Sealed for UrlConnection {}

impl KeyRows for UrlConnection {
    async fn claim(
        &mut self,
        scope: &Scope,
        fingerprint: &Fingerprint,
        expiry: Duration,
    ) -> sqlx::Result<Attempt> {
        with_backend!(self, |db| db.claim(scope, fingerprint, expiry).await)
    }

    async fn find(&mut self, scope: &Scope) -> sqlx::Result<Option<Row>> {
        with_backend!(self, |db| db.find(scope).await)
    }

    async fn save(&mut self, scope: &Scope, saved: &Saved) -> sqlx::Result<bool> {
        with_backend!(self, |db| db.save(scope, saved).await)
    }

    async fn sweep(&mut self, limit: u32) -> sqlx::Result<u64> {
        with_backend!(self, |db| db.sweep(limit).await)
    }
}
