//! Foreign keys are checked even after another request has changed the connection.

use rocket::http::Status;
use rocket::{Route, post};
use rocket_tx::{Error, Tx};
use sqlx_core::transaction::TransactionManager;

use super::{send_sql, sqlite, stage_on};
use crate::support::stage::note;
use crate::support::{Audit, Backend, Databases, In, Main, Stage};

type Manager = <sqlx::Sqlite as sqlx::Database>::TransactionManager;

pub(super) fn routes() -> Vec<Route> {
    rocket::routes![orphan_in_audit, empty_the_probe, end_by_manager]
}

async fn stage_with_keys(database: In) -> Stage {
    let databases = Databases::with_tables(Backend::Sqlite).await;
    let tables = "\
        CREATE TABLE parents (id INTEGER PRIMARY KEY);
        CREATE TABLE children (parent REFERENCES parents DEFERRABLE INITIALLY DEFERRED)";
    databases.execute(database, tables).await;
    stage_on(databases).await
}

/// Writes to both databases. The row in the second one breaks a foreign key.
#[post("/orphan-in-audit")]
async fn orphan_in_audit(mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<Status, Error> {
    note(&mut main, "both").await?;
    sqlx::query("INSERT INTO children VALUES (99)")
        .execute(sqlite(&mut audit))
        .await?;
    Ok(Status::Created)
}

/// Deletes the rows of the probe, which detects broken foreign keys.
#[post("/empty-the-probe")]
async fn empty_the_probe(mut audit: Tx<Audit>) -> Result<Status, Error> {
    sqlx::query("DELETE FROM temp.rocket_tx_child")
        .execute(sqlite(&mut audit))
        .await?;
    Ok(Status::Created)
}

#[rocket::async_test]
async fn an_emptied_probe_hides_no_broken_key() {
    let stage = stage_with_keys(In::Audit).await;
    for _ in 0..2 {
        let response = stage.send("POST /orphan-in-audit").await;
        assert_eq!(response.outcome(), Some("rolled-back"), "{response:?}");
        assert_eq!(stage.notes().await, [""; 0]);
        stage.send("POST /empty-the-probe").await;
    }
}

/// Ends the transaction as sqlx's own transaction would. Then runs SQL that has an effect only
/// outside of a transaction.
#[post("/end-by-manager/<how>/<status>", data = "<sql>")]
async fn end_by_manager(
    how: &str,
    status: u16,
    sql: String,
    mut tx: Tx<Main>,
) -> Result<(Status, ()), Error> {
    let _swallowed = match how {
        "rollback" => Manager::rollback(sqlite(&mut tx)).await,
        _ => Manager::commit(sqlite(&mut tx)).await,
    };
    super::swallow(&mut tx, sql).await;
    Ok((Status::new(status), ()))
}

#[rocket::async_test]
async fn keys_are_checked_after_a_handler_has_ended_its_transaction_by_sqlx() {
    let stage = stage_with_keys(In::Main).await;
    for how in ["rollback", "commit"] {
        for status in [422, 201] {
            // A transaction that ends normally comes first.
            send_sql(&stage, "POST /run/tx/201", "SELECT 1").await;
            let path = format!("POST /end-by-manager/{how}/{status}");
            send_sql(&stage, &path, "PRAGMA foreign_keys = 0").await;
            let orphan = "INSERT INTO children VALUES (99)";
            let response = send_sql(&stage, "POST /run/tx/201", orphan).await;
            assert_eq!(response.outcome(), Some("rolled-back"), "{how}, {status}");
            let stored = "SELECT CAST(parent AS TEXT) FROM children";
            let stored = stage.databases.texts(In::Main, stored).await;
            assert_eq!(stored, [""; 0], "{how}, {status}");
        }
    }
}
