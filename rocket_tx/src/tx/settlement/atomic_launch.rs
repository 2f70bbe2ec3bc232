//! Sets atomic commit up at launch, when all databases are attached.

use std::sync::Arc;

use rocket::{Build, Rocket};

use super::atomic::{AtomicCommit, AtomicMode};
use super::settings::Settings;
use crate::db::AttachedDatabases;

/// Puts the [`AtomicCommit`] of the attached databases into the settings of `rocket`.
///
/// # Errors
///
/// The reason why `atomic_commit = "required"` cannot hold.
pub(super) async fn set_up_atomic_commit(
    rocket: &Rocket<Build>,
    mode: AtomicMode,
) -> Result<(), String> {
    let (Some(attached), Some(settings)) = (
        rocket.state::<AttachedDatabases>(),
        rocket.state::<Settings>(),
    ) else {
        return Ok(());
    };
    let set_up = AtomicCommit::set_up(attached.atomic(), mode, settings.settle_timeout);
    if let Some(atomic) = set_up.await? {
        let recovery = Arc::clone(&atomic.recovery);
        settings.monitor.live.set_recovery(recovery);
        let _only_once = settings.atomic.set(atomic);
    }
    Ok(())
}
