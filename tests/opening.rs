//! How a database is opened, and the properties that it has from then on.
//!
//! | file | topic |
//! | --- | --- |
//! | `race` | many processes open the same new databases at the same moment |
//! | `locks` | another process has locked the file |
//! | `files`, `servers` | databases that cannot be opened, and the error of the launch |
//! | `migrations` | migrations are applied completely or not at all |
//! | `sessions` | the settings of every connection |
//! | `pools` | broken connections are replaced |

mod files;
mod locks;
mod migrations;
mod pools;
mod race;
mod servers;
mod sessions;

use crate::support::{Databases, Service};

/// The service must refuse to launch, with exit code 1 and not by a panic. Its log must name
/// `databases.main` and contain all of `reasons`.
async fn refused(databases: &Databases, variables: &[(&str, &str)], reasons: &[&str]) -> String {
    let (status, log) = Service::refused(databases, variables).await;
    assert_eq!(status.code(), Some(1), "{log}");
    for text in ["`databases.main`"].iter().chain(reasons) {
        assert!(log.contains(text), "{text:?} is missing from\n{log}");
    }
    log
}
