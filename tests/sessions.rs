//! Postgres sessions: nothing that a request leaves in its session affects another request.

mod lookups;
mod roles;
mod tenants;

use std::time::Duration;

use rocket::futures::StreamExt;
use rocket::http::Status;
use rocket::tokio::time::timeout;
use rocket::{get, post, routes};
use rocket_tx::db::UrlConnection;
use rocket_tx::rocket_db_pools;
use rocket_tx::{Error, Read, Settlement, Tx};
use sqlx::{Executor, PgConnection, Row};

use crate::support::stage::note;
use crate::support::{Backend, Main, Stage};

fn postgres(connection: &mut UrlConnection) -> &mut PgConnection {
    match connection {
        UrlConnection::Postgres(session) => session,
        UrlConnection::Sqlite(_) => unreachable!("these tests run on Postgres alone"),
    }
}

/// Responds with the number that the database returns.
#[get("/echo/<number>")]
async fn echo(number: i32, mut read: Read<Main>) -> Result<String, Error> {
    let value: i32 = sqlx::query_scalar("SELECT $1::int4")
        .bind(number)
        .fetch_one(postgres(&mut read))
        .await?;
    Ok(value.to_string())
}

/// Like `echo`, with the simple query protocol.
#[get("/plain-echo/<number>")]
async fn plain_echo(number: i32, mut read: Read<Main>) -> Result<String, Error> {
    let sql = sqlx::AssertSqlSafe(format!("SELECT '{number}'"));
    let row = sqlx::raw_sql(sql).fetch_one(postgres(&mut read)).await?;
    Ok(row.try_get(0)?)
}

/// Abandons an export after its first row: the other rows are never read.
#[get("/export")]
async fn export(mut read: Read<Main>) -> Result<(), Error> {
    let mut rows = postgres(&mut read)
        .copy_out_raw("COPY (SELECT 'of another ' || n FROM generate_series(1, 500) n) TO STDOUT")
        .await?;
    rows.next().await;
    Ok(())
}

/// Runs COPY as a simple query. sqlx does not expect the reply.
#[get("/copy-by-hand")]
async fn copy_by_hand(mut read: Read<Main>) {
    let _error = postgres(&mut read).execute("COPY notes TO STDOUT").await;
}

/// Abandons an import before its end, and still responds with a success.
#[post("/import/<name>")]
async fn import(name: &str, mut tx: Tx<Main>) -> Result<Status, Error> {
    let mut copy = postgres(&mut tx)
        .copy_in_raw("COPY notes (text) FROM STDIN")
        .await?;
    copy.send(format!("{name}\n").as_bytes()).await?;
    let _too_late = timeout(Duration::ZERO, copy.finish()).await;
    Ok(Status::Created)
}

#[post("/notes/<text>")]
async fn write(text: &str, mut tx: Tx<Main>) -> Result<Status, Error> {
    note(&mut tx, text).await?;
    Ok(Status::Created)
}

/// Reads only the first of two rows. The second row comes late, or fails.
#[get("/first-row?<second>")]
async fn first_row(second: &str, mut read: Read<Main>) -> Result<(), Error> {
    let sql = format!("SELECT 1 AS n UNION ALL SELECT {second}");
    let mut rows = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).fetch(postgres(&mut read));
    // sqlx may read ahead; this does not matter here.
    let _first = timeout(Duration::from_millis(200), rows.next()).await;
    Ok(())
}

/// Runs a statement through the guard `Begin`. The next handlers do so through the other guards.
#[post("/run/tx", data = "<sql>")]
async fn run_tx(sql: &str, begin: rocket_tx::Begin<Main>) -> Result<(), Error> {
    let mut tx = begin.begin().await?;
    let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()));
    postgres(&mut tx).execute(sql).await?;
    Ok(())
}

#[post("/run/read", data = "<sql>")]
async fn run_read(sql: &str, mut read: Read<Main>) -> Result<(), Error> {
    let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()));
    postgres(&mut read).execute(sql).await?;
    Ok(())
}

#[post("/run/plain", data = "<sql>")]
async fn run_plain(sql: &str, mut plain: rocket_db_pools::Connection<Main>) -> Result<(), Error> {
    let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()));
    postgres(&mut plain).execute(sql).await?;
    Ok(())
}

/// Returns the result of a query, which is run through one of the same three guards.
#[post("/query/<guard>", data = "<sql>")]
async fn query(
    guard: &str,
    sql: &str,
    begin: rocket_tx::Begin<Main>,
    request: RequestRef<'_>,
) -> Result<String, Error> {
    let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()));
    let row = match guard {
        "tx" => {
            let mut tx = begin.begin().await?;
            postgres(&mut tx).fetch_one(sql).await?
        }
        "read" => {
            let mut read = request.0.guard::<Read<Main>>().await.unwrap();
            postgres(&mut read).fetch_one(sql).await?
        }
        _ => {
            let plain = request.0.guard::<rocket_db_pools::Connection<Main>>();
            let mut plain = plain.await.unwrap();
            postgres(&mut plain).fetch_one(sql).await?
        }
    };
    let value = row.try_get::<Option<String>, _>(0)?;
    Ok(value.unwrap_or_else(|| "NULL".to_owned()))
}

/// The request itself, from which a handler can get any guard.
struct RequestRef<'r>(&'r rocket::Request<'r>);

#[rocket::async_trait]
impl<'r> rocket::request::FromRequest<'r> for RequestRef<'r> {
    type Error = std::convert::Infallible;

    async fn from_request(
        request: &'r rocket::Request<'_>,
    ) -> rocket::request::Outcome<Self, Self::Error> {
        rocket::request::Outcome::Success(Self(request))
    }
}

async fn stage(connections: &str, settings: &[(&str, &str)]) -> Stage {
    let mut all = vec![("databases.main.max_connections", connections)];
    all.extend(settings);
    Stage::with(Backend::Postgres, &all, |rocket| {
        rocket
            .mount(
                "/",
                routes![
                    echo,
                    plain_echo,
                    export,
                    copy_by_hand,
                    import,
                    write,
                    first_row,
                    run_tx,
                    run_read,
                    run_plain,
                    query
                ],
            )
            .attach(Settlement::new())
    })
    .await
}

async fn send(stage: &Stage, path: &str, body: &str) -> crate::support::HttpResponse {
    crate::support::HttpResponse::of(stage.http.request(path).body(body.to_owned())).await
}

/// Checks that each request gets the reply to its own query.
async fn each_request_gets_its_own_reply(stage: &Stage) {
    for number in 0..12 {
        for path in ["echo", "plain-echo"] {
            let response = stage.send(&format!("GET /{path}/{number}")).await;
            assert_eq!(
                (response.status, &*response.body),
                (200, &*number.to_string())
            );
        }
    }
}

mod postgres {
    use super::*;

    #[rocket::async_test]
    async fn no_request_reads_the_rows_of_a_stream_that_another_abandoned() {
        for connections in ["1", "4"] {
            let stage = stage(connections, &[]).await;
            for _ in 0..5 {
                for path in ["export", "copy-by-hand"] {
                    stage.send(&format!("GET /{path}")).await;
                    each_request_gets_its_own_reply(&stage).await;
                }
            }
            stage.close().await;
        }
    }

    #[rocket::async_test]
    async fn the_outcome_of_an_abandoned_import_is_true() {
        let stage = stage("2", &[]).await;
        for round in 0..10 {
            let name = format!("import-{round}");
            let response = stage.send(&format!("POST /import/{name}")).await;
            let stored = stage.notes().await.contains(&name);
            match response.summary() {
                (201, Some("committed")) => assert!(stored, "{response:?}"),
                (_, Some("rolled-back")) => assert!(!stored, "{response:?}"),
                other => panic!("{other:?}: {}", response.body),
            }
            for innocent in 0..4 {
                let name = format!("innocent-{round}-{innocent}");
                let response = stage.send(&format!("POST /notes/{name}")).await;
                assert_eq!(response.summary(), (201, Some("committed")), "{response:?}");
                assert!(stage.notes().await.contains(&name));
            }
        }
        stage.close().await;
    }

    #[rocket::async_test]
    async fn the_rest_of_a_reply_does_not_affect_the_next_request() {
        let stage = stage("2", &[]).await;
        for second in [
            "1/0",
            "pg_sleep(5)::text::int",
            "max(n)::int FROM generate_series(1, 300000) n",
        ] {
            let path = second.replace(' ', "%20").replace('/', "%2F");
            stage.send(&format!("GET /first-row?second={path}")).await;
            // The next requests must not wait for the second row.
            let started = std::time::Instant::now();
            each_request_gets_its_own_reply(&stage).await;
            assert!(started.elapsed() < Duration::from_secs(4), "{second}");
        }
        stage.close().await;
    }

    #[rocket::async_test]
    async fn a_transaction_left_open_does_not_continue_in_another_request() {
        let stage = stage("1", &[]).await;
        for (guard, sql) in [
            ("plain", "BEGIN; INSERT INTO notes VALUES ('of a stranger')"),
            ("read", "BEGIN"),
            ("read", "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1"),
            ("plain", "BEGIN; SELECT 1/0"),
        ] {
            send(&stage, &format!("POST /run/{guard}"), sql).await;
            let own = format!("own-{guard}-{}", sql.len());
            let response = stage.send(&format!("POST /notes/{own}")).await;
            assert_eq!(
                response.summary(),
                (201, Some("committed")),
                "{sql}: {response:?}"
            );
            // Later reads see the row of each request that got a 201.
            let count = "SELECT count(*)::text FROM notes";
            let seen = send(&stage, "POST /query/read", count).await;
            let stored = stage.notes().await;
            assert_eq!(seen.body, stored.len().to_string(), "{sql}");
            assert!(stored.contains(&own) && !stored.contains(&"of a stranger".to_owned()));
        }
        stage.close().await;
    }

    /// State that a session can keep, and a query by which the next request would see it.
    const KEPT: [(&str, &str); 12] = [
        (
            "SELECT set_config('app.tenant', 'alice', false)",
            "SELECT nullif(current_setting('app.tenant', true), '')",
        ),
        (
            "SET search_path TO pg_temp",
            "SELECT current_setting('search_path')",
        ),
        ("SET ROLE pg_read_all_data", "SELECT current_user::text"),
        (
            "SET SESSION AUTHORIZATION pg_monitor",
            "SELECT session_user::text",
        ),
        (
            "SET statement_timeout = 1234",
            "SELECT current_setting('statement_timeout')",
        ),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SELECT current_setting('default_transaction_isolation')",
        ),
        (
            "SET TimeZone = 'Asia/Tokyo'",
            "SELECT current_setting('TimeZone')",
        ),
        (
            "CREATE TEMP TABLE scratch AS SELECT 1",
            "SELECT to_regclass('pg_temp.scratch')::text",
        ),
        (
            "SELECT pg_advisory_lock(4711)",
            "SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        ),
        (
            "LISTEN gossip",
            "SELECT string_agg(c, ',') FROM pg_listening_channels() c",
        ),
        (
            "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
            "SELECT count(*)::text FROM pg_cursors WHERE name = 'held'",
        ),
        ("DEALLOCATE ALL", "SELECT 'alive'"),
    ];

    #[rocket::async_test]
    async fn nothing_that_one_request_sets_is_seen_by_the_next() {
        let stage = stage("1", &[]).await;
        for (sets, query) in KEPT {
            for guard in ["tx", "read", "plain"] {
                // Some of the statements may fail in a read-only transaction or in any transaction.
                let before = send(&stage, &format!("POST /query/{guard}"), query).await;
                assert_eq!(before.status, 200, "{query}: {before:?}");
                send(&stage, &format!("POST /run/{guard}"), sets).await;
                for next in ["tx", "read", "plain"] {
                    let result = send(&stage, &format!("POST /query/{next}"), query).await;
                    assert_eq!(result.status, 200, "{sets} by {guard}: {result:?}");
                    assert_eq!(
                        result.body, before.body,
                        "{sets} by {guard}, queried by {next}"
                    );
                }
                each_request_gets_its_own_reply(&stage).await;
            }
        }
        stage.close().await;
    }

    /// Postgres itself behaves so: a custom setting, once set, exists until the session ends.
    #[rocket::async_test]
    async fn a_custom_setting_is_empty_afterwards_and_not_null() {
        let stage = stage("1", &[]).await;
        let query = "SELECT current_setting('app.tenant', true)";
        let before = send(&stage, "POST /query/tx", query).await;
        assert_eq!(before.body, "NULL");
        let set = send(&stage, "POST /run/tx", "SET LOCAL app.tenant = 'alice'").await;
        assert_eq!(set.summary(), (200, Some("committed")));
        for guard in ["tx", "plain"] {
            let result = send(&stage, &format!("POST /query/{guard}"), query).await;
            assert_eq!(result.body, "", "{guard}");
            let query = "SELECT nullif(current_setting('app.tenant', true), '')";
            let result = send(&stage, &format!("POST /query/{guard}"), query).await;
            assert_eq!(result.body, "NULL", "{guard}");
        }
        stage.close().await;
    }

    #[rocket::async_test]
    async fn random_numbers_do_not_depend_on_the_seed_of_another_request() {
        let stage = stage("1", &[]).await;
        let (seeds, draws) = ("SELECT setseed(0.25)", "SELECT random()::text");
        let mut own = stage.databases.postgres(crate::support::In::Main).await;
        own.execute(seeds).await.unwrap();
        let known: String = own.fetch_one(draws).await.unwrap().get(0);
        for guard in ["tx", "read", "plain"] {
            send(&stage, &format!("POST /run/{guard}"), seeds).await;
            let drawn = send(&stage, &format!("POST /query/{guard}"), draws).await;
            assert_ne!(drawn.body, known, "{guard}");
        }
        stage.close().await;
    }

    /// This shows that the requests share a session. Otherwise the tests above would prove nothing.
    #[rocket::async_test]
    async fn without_reset_sessions_a_setting_is_seen_by_the_next_request() {
        let stage = stage("1", &[("databases.main.reset_sessions", "false")]).await;
        let (sets, query) = KEPT[0];
        for guard in ["tx", "read"] {
            send(&stage, &format!("POST /run/{guard}"), sets).await;
            let result = send(&stage, &format!("POST /query/{guard}"), query).await;
            assert_eq!(result.body, "alice", "{guard}");
        }
        each_request_gets_its_own_reply(&stage).await;
        stage.close().await;
    }

    #[rocket::async_test]
    async fn sessions_are_reused() {
        let stage = stage("1", &[]).await;
        for guard in ["tx", "read", "plain"] {
            let query = "SELECT pg_backend_pid()::text";
            let first = send(&stage, &format!("POST /query/{guard}"), query).await;
            for _ in 0..5 {
                let next = send(&stage, &format!("POST /query/{guard}"), query).await;
                assert_eq!(next.body, first.body, "{guard}");
            }
        }
        stage.close().await;
    }

    #[rocket::async_test]
    async fn a_handler_cannot_forge_a_proof() {
        let stage = stage("2", &[]).await;
        for name in ["rocket_tx", "sqlx_savepoint_1"] {
            let sql =
                format!("INSERT INTO notes VALUES ('lost'); ROLLBACK; BEGIN; SAVEPOINT {name}");
            let response = send(&stage, "POST /run/tx", &sql).await;
            assert_eq!(response.summary(), (500, Some("unknown")), "{response:?}");
            each_request_gets_its_own_reply(&stage).await;
        }
        stage.close().await;
    }
}
