//! The transactions outside of requests in which the current code runs.

use std::sync::Arc;

use super::Identity;

tokio::task_local! {
    static OPEN: Arc<Enclosing>;
}

/// A transaction, and the one around it.
#[cfg_attr(not(feature = "sqlite"), allow(dead_code))]
struct Enclosing {
    database: Identity,
    outer: Option<Arc<Enclosing>>,
}

/// Runs `work`, which uses an open transaction of `database`.
pub(crate) async fn within<T>(database: &Identity, work: impl Future<Output = T>) -> T {
    let open = Enclosing {
        database: database.clone(),
        outer: OPEN.try_with(Arc::clone).ok(),
    };
    OPEN.scope(Arc::new(open), work).await
}

/// Returns whether the current code runs within an open transaction of `database`.
#[cfg(feature = "sqlite")]
pub(super) fn is_within(database: &Identity) -> bool {
    let found = OPEN.try_with(|open| {
        let mut open = Some(open);
        while let Some(one) = open {
            if one.database == *database {
                return true;
            }
            open = one.outer.as_ref();
        }
        false
    });
    found.unwrap_or(false)
}
