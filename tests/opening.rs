//! How a database is opened, and what is promised of it from then on.
//!
//! | file | what it shows |
//! | --- | --- |
//! | `race` | many processes open the same new databases at the same moment |
//! | `locks` | another process has locked the file |
//! | `files`, `servers` | what cannot be opened, and what the operator is told |
//! | `migrations` | all of them or nothing |
//! | `sessions` | what every connection is set to |
//! | `pools` | connections that have gone bad are replaced |

mod files;
mod locks;
mod migrations;
mod pools;
mod race;
mod servers;
mod sessions;

use crate::support::{Databases, Service};

/// The service must refuse to launch: on account of `databases.main`, for a reason that it gives,
/// by its own decision and not by a panic.
async fn refused(databases: &Databases, variables: &[(&str, &str)], reasons: &[&str]) -> String {
    let (status, log) = Service::refused(databases, variables).await;
    assert_eq!(status.code(), Some(1), "{log}");
    for said in ["`databases.main`"].iter().chain(reasons) {
        assert!(log.contains(said), "{said:?} is missing from\n{log}");
    }
    log
}
