//! Tables with the names of the pragmas that rocket_tx uses to check a connection.

use super::{send_sql, stage, stage_on};

/// A table, a view, and virtual tables, which can be called with arguments like the pragma.
const SHADOWS: [&str; 4] = [
    "CREATE TABLE pragma_query_only (query_only)",
    "CREATE VIEW pragma_busy_timeout AS SELECT 1 AS timeout",
    "CREATE VIRTUAL TABLE pragma_ignore_check_constraints USING fts5(ignore_check_constraints);
     INSERT INTO pragma_ignore_check_constraints VALUES ('0')",
    "CREATE VIRTUAL TABLE pragma_database_list USING fts5(seq, name, file);
     INSERT INTO pragma_database_list VALUES ('0', 'main', '')",
];

#[rocket::async_test]
async fn a_table_with_the_name_of_a_pragma_blocks_nothing() {
    let stage = stage().await;
    for sql in SHADOWS {
        let response = send_sql(&stage, "POST /run/tx/201", sql).await;
        assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
    }
    let response = stage.send("POST /note/before").await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
    // A restart works too.
    let stage = stage_on(stage.close().await).await;
    let response = stage.send("POST /note/after").await;
    assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
    assert_eq!(stage.send("GET /notes").await.body, "after,before");
    stage.nothing_is_stuck().await;
}

#[rocket::async_test]
async fn a_table_with_the_name_of_a_pragma_hides_no_change() {
    let stage = stage().await;
    let table = "CREATE TABLE checked (x CHECK (x > 0))";
    send_sql(&stage, "POST /run/tx/201", table).await;
    for kind in ["", "TEMP"] {
        if kind.is_empty() {
            send_sql(&stage, "POST /run/tx/201", SHADOWS[2]).await;
        }
        let off = match kind {
            "" => "PRAGMA ignore_check_constraints = 1",
            _ => {
                "CREATE VIRTUAL TABLE temp.pragma_ignore_check_constraints
                     USING fts5(ignore_check_constraints);
                 INSERT INTO temp.pragma_ignore_check_constraints VALUES ('0');
                 PRAGMA ignore_check_constraints = 1"
            }
        };
        send_sql(&stage, "POST /run/tx/201", off).await;
        let broken = "INSERT INTO checked VALUES (-1)";
        send_sql(&stage, "POST /run/tx/201", broken).await;
        let stored = "SELECT CAST(x AS TEXT) FROM checked";
        let stored = stage
            .databases
            .texts(crate::support::In::Main, stored)
            .await;
        assert_eq!(stored, [""; 0], "switched off by another request, {kind}");
    }
}
