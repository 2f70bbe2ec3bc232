//! Drops databases and templates on Postgres, also those of test processes that were killed.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};

use super::server::{self, RUNS, Server, TEMPLATES, code};
use super::template::{self, PROGRAM};

/// A template of another test program that was created this many seconds ago is dropped.
const OLD: u64 = 24 * 60 * 60;

pub(super) fn seconds_since_1970() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// Drops the database of a test, with all its sessions and prepared transactions.
pub(super) async fn drop_database(server: &Server, name: &str) -> sqlx::Result<()> {
    let mut admin = server.admin.acquire().await?;
    end_sessions(&mut admin, name).await?;
    let drop = || AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
    match admin.execute(drop()).await {
        // object_in_use: a prepared transaction is left.
        Err(error) if code(&error).as_deref() == Some("55006") => {
            roll_back_prepared(server, name).await?;
            end_sessions(&mut admin, name).await?;
            admin.execute(drop()).await?;
            Ok(())
        }
        dropped => dropped.map(|_| ()),
    }
}

/// Ends the sessions of a database and waits until they have ended, at most for a short time.
///
/// Without this, CREATE DATABASE and DROP DATABASE look at the sessions only every 100 ms.
pub(super) async fn end_sessions(admin: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    const ATTEMPTS: u32 = 100;

    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = $1 AND usename = current_user AND backend_type = 'client backend'";
    for _ in 0..ATTEMPTS {
        let sessions = sqlx::query(end).bind(name).fetch_all(&mut *admin).await?;
        if sessions.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// A request that was killed between PREPARE TRANSACTION and its decision leaves one.
async fn roll_back_prepared(server: &Server, name: &str) -> sqlx::Result<()> {
    let options = server.options.clone().database(name);
    let mut connection = server::session(&options).await?;
    let prepared = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()";
    let prepared: Vec<String> = sqlx::query_scalar(prepared)
        .fetch_all(&mut connection)
        .await?;
    for gid in prepared {
        let gid = gid.replace('\'', "''");
        let rollback = format!("ROLLBACK PREPARED '{gid}'");
        connection.execute(AssertSqlSafe(rollback)).await?;
    }
    connection.close().await
}

/// Drops a template, unless another process is writing or copying it.
async fn drop_template(server: &Server, name: &str) -> sqlx::Result<()> {
    let mut admin = server.admin.acquire().await?;
    let is_unused: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1, $2)")
        .bind(TEMPLATES)
        .bind(server::key_of(name))
        .fetch_one(&mut *admin)
        .await?;
    if !is_unused {
        return Ok(());
    }
    let dropped = drop_database(server, name).await;
    admin.execute("SELECT pg_advisory_unlock_all()").await?;
    dropped
}

/// Drops the databases of test processes that have ended, and old templates.
///
/// The list of databases is read before the list of locks. So if the process of a listed database
/// still runs, its lock is seen.
pub(super) async fn sweep(server: &Server) -> sqlx::Result<()> {
    let listed: Vec<(String, Option<String>)> = sqlx::query_as(
        "SELECT datname::text, shobj_description(oid, 'pg_database') FROM pg_database \
         WHERE datname LIKE 'rocket\\_tx\\_te%' AND pg_get_userbyid(datdba) = current_user",
    )
    .fetch_all(&server.admin)
    .await?;
    let running: Vec<i64> = sqlx::query_scalar(
        "SELECT objid::int8 FROM pg_locks \
         WHERE locktype = 'advisory' AND classid::int8 = $1 AND objsubid = 2 AND granted",
    )
    .bind(i64::from(RUNS))
    .fetch_all(&server.admin)
    .await?;
    let running: HashSet<i64> = running.into_iter().collect();
    for (name, comment) in listed {
        let dropped = match run_of(&name) {
            Some(run) if !running.contains(&i64::from(run)) => drop_database(server, &name).await,
            None if is_old_template(&name, comment.as_deref()) => {
                drop_template(server, &name).await
            }
            _ => Ok(()),
        };
        // Another process may be dropping it too. If it remains, a later run drops it.
        if let Err(error) = dropped {
            tracing::debug!(%error, name, "a database of an earlier test run was not dropped");
        }
    }
    Ok(())
}

/// Returns the number of the process in the name of a test's database, or `None` if it is not one.
fn run_of(name: &str) -> Option<u32> {
    let (run, number) = name.strip_prefix("rocket_tx_test_")?.split_once('_')?;
    let is_number = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| template::hexadecimal(run))?
}

fn is_old_template(name: &str, comment: Option<&str>) -> bool {
    let Some(program) = template::program_of(name) else {
        return false;
    };
    if program.path == PROGRAM.path {
        return program.build != PROGRAM.build;
    }
    let created = comment.and_then(|it| it.split_once(", ")?.1.split_once(':'));
    let created = created.and_then(|(seconds, _)| seconds.parse::<u64>().ok());
    created.is_some_and(|created| created + OLD < seconds_since_1970())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_databases_of_tests_are_dropped() {
        assert_eq!(run_of("rocket_tx_test_0000002a_7"), Some(42));
        for foreign in [
            "rocket_tx_test_0000002a",
            "rocket_tx_test_0000002a_",
            "rocket_tx_test_0000002a_7_copy",
            "rocket_tx_test_42_7",
            "rocket_tx_testing",
            "rocket_tx_test_+000002a_7",
            "main",
        ] {
            assert_eq!(run_of(foreign), None, "{foreign}");
            assert!(!is_old_template(foreign, None), "{foreign}");
        }
    }

    #[test]
    fn only_old_templates_are_dropped() {
        let name = |path: u32, build: u32| {
            format!("rocket_tx_template_{path:08x}_{build:08x}_0123456789abcdef")
        };
        let comment = |age| {
            let created = seconds_since_1970() - age;
            format!("template of rocket_tx::testing, {created}: 1 2")
        };
        let (path, build) = (PROGRAM.path, PROGRAM.build);
        let ours = name(path, build);
        assert!(!is_old_template(&ours, Some(&comment(2 * OLD))));
        let of_an_earlier_build = name(path, build ^ 1);
        assert!(is_old_template(&of_an_earlier_build, Some(&comment(0))));
        let other = name(path ^ 1, build);
        assert!(!is_old_template(&other, Some(&comment(60))));
        assert!(is_old_template(&other, Some(&comment(2 * OLD))));
        assert!(!is_old_template(&other, Some("a comment of somebody else")));
        assert!(!is_old_template(&other, None));
    }
}
