//! Postgres sessions: what one request leaves in its session is never met by another.

mod roles;
mod tenants;

use std::time::Duration;

use rocket::futures::StreamExt;
use rocket::http::Status;
use rocket::tokio::time::timeout;
use rocket::{get, post, routes};
use rocket_tx::db::Connection;
use rocket_tx::rocket_db_pools;
use rocket_tx::{Error, Read, Settlement, Tx};
use sqlx::{Executor, PgConnection, Row};

use crate::support::stage::note;
use crate::support::{Backend, Main, Stage};

fn postgres(connection: &mut Connection) -> &mut PgConnection {
    match connection {
        Connection::Postgres(session) => session,
        Connection::Sqlite(_) => unreachable!("these tests run on Postgres alone"),
    }
}

/// Answers with what the database says.
#[get("/echo/<number>")]
async fn echo(number: i32, mut read: Read<Main>) -> Result<String, Error> {
    let said: i32 = sqlx::query_scalar("SELECT $1::int4")
        .bind(number)
        .fetch_one(postgres(&mut read))
        .await?;
    Ok(said.to_string())
}

/// As `echo`, by the simple protocol.
#[get("/plain-echo/<number>")]
async fn plain_echo(number: i32, mut read: Read<Main>) -> Result<String, Error> {
    let sql = sqlx::AssertSqlSafe(format!("SELECT '{number}'"));
    let row = sqlx::raw_sql(sql).fetch_one(postgres(&mut read)).await?;
    Ok(row.try_get(0)?)
}

/// A client that leaves half-way through an export: the rest of its rows is never read.
#[get("/export")]
async fn export(mut read: Read<Main>) -> Result<(), Error> {
    let mut rows = postgres(&mut read)
        .copy_out_raw("COPY (SELECT 'of another ' || n FROM generate_series(1, 500) n) TO STDOUT")
        .await?;
    rows.next().await;
    Ok(())
}

/// COPY by hand, as a simple query: sqlx understands nothing of what comes.
#[get("/copy-by-hand")]
async fn copy_by_hand(mut read: Read<Main>) {
    let _error = postgres(&mut read).execute("COPY notes TO STDOUT").await;
}

/// An import whose end is not waited for, and told as a success all the same.
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

/// The first row of two; the second takes its time, or fails.
#[get("/first-row?<second>")]
async fn first_row(second: &str, mut read: Read<Main>) -> Result<(), Error> {
    let sql = format!("SELECT 1 AS n UNION ALL SELECT {second}");
    let mut rows = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).fetch(postgres(&mut read));
    // What sqlx reads ahead is of no concern here.
    let _first = timeout(Duration::from_millis(200), rows.next()).await;
    Ok(())
}

/// Runs a statement by each of the guards.
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

/// What a request finds in its session, by the same three guards.
#[post("/ask/<guard>", data = "<sql>")]
async fn ask(
    guard: &str,
    sql: &str,
    begin: rocket_tx::Begin<Main>,
    request: Asking<'_>,
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
    let said = row.try_get::<Option<String>, _>(0)?;
    Ok(said.unwrap_or_else(|| "NULL".to_owned()))
}

/// The request itself, to ask for one guard or another.
struct Asking<'r>(&'r rocket::Request<'r>);

#[rocket::async_trait]
impl<'r> rocket::request::FromRequest<'r> for Asking<'r> {
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
                    ask
                ],
            )
            .attach(Settlement::new())
    })
    .await
}

async fn send(stage: &Stage, what: &str, body: &str) -> crate::support::HttpResponse {
    crate::support::HttpResponse::of(stage.http.request(what).body(body.to_owned())).await
}

/// Each answer is to what its own request asked.
async fn all_answers_are_their_own(stage: &Stage) {
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
    async fn nobody_reads_the_rows_of_a_stream_that_another_left() {
        for connections in ["1", "4"] {
            let stage = stage(connections, &[]).await;
            for _ in 0..5 {
                for path in ["export", "copy-by-hand"] {
                    stage.send(&format!("GET /{path}")).await;
                    all_answers_are_their_own(&stage).await;
                }
            }
            stage.close().await;
        }
    }

    #[rocket::async_test]
    async fn what_is_told_of_an_import_that_nobody_waited_for_is_true() {
        let stage = stage("2", &[]).await;
        for round in 0..10 {
            let name = format!("import-{round}");
            let response = stage.send(&format!("POST /import/{name}")).await;
            let stored = stage.notes().await.contains(&name);
            match response.summary() {
                (201, Some("committed")) => assert!(stored, "{response:?}"),
                (_, Some("rolled-back")) => assert!(!stored, "{response:?}"),
                told => panic!("{told:?}: {}", response.body),
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
    async fn the_rest_of_an_answer_is_no_concern_of_the_next_request() {
        let stage = stage("2", &[]).await;
        for second in [
            "1/0",
            "pg_sleep(5)::text::int",
            "max(n)::int FROM generate_series(1, 300000) n",
        ] {
            let path = second.replace(' ', "%20").replace('/', "%2F");
            stage.send(&format!("GET /first-row?second={path}")).await;
            // The control is a request of the same kind on the same machine.
            let started = std::time::Instant::now();
            all_answers_are_their_own(&stage).await;
            assert!(started.elapsed() < Duration::from_secs(4), "{second}");
        }
        stage.close().await;
    }

    #[rocket::async_test]
    async fn a_transaction_that_was_left_open_is_no_part_of_another() {
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
            // What was answered 201 is seen by reads that come later.
            let count = "SELECT count(*)::text FROM notes";
            let seen = send(&stage, "POST /ask/read", count).await;
            let stored = stage.notes().await;
            assert_eq!(seen.body, stored.len().to_string(), "{sql}");
            assert!(stored.contains(&own) && !stored.contains(&"of a stranger".to_owned()));
        }
        stage.close().await;
    }

    /// What a session can keep, and how the next request would see it.
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
        for (sets, asks) in KEPT {
            for guard in ["tx", "read", "plain"] {
                // What has no meaning in a transaction that only reads, or within one, may fail.
                let before = send(&stage, &format!("POST /ask/{guard}"), asks).await;
                assert_eq!(before.status, 200, "{asks}: {before:?}");
                send(&stage, &format!("POST /run/{guard}"), sets).await;
                for next in ["tx", "read", "plain"] {
                    let found = send(&stage, &format!("POST /ask/{next}"), asks).await;
                    assert_eq!(found.status, 200, "{sets} by {guard}: {found:?}");
                    assert_eq!(
                        found.body, before.body,
                        "{sets} by {guard}, asked by {next}"
                    );
                }
                all_answers_are_their_own(&stage).await;
            }
        }
        stage.close().await;
    }

    /// Postgres itself does that: a name that it was told once stays until the session ends.
    #[rocket::async_test]
    async fn a_setting_of_ones_own_is_empty_afterwards_and_not_null() {
        let stage = stage("1", &[]).await;
        let asks = "SELECT current_setting('app.tenant', true)";
        let before = send(&stage, "POST /ask/tx", asks).await;
        assert_eq!(before.body, "NULL");
        let set = send(&stage, "POST /run/tx", "SET LOCAL app.tenant = 'alice'").await;
        assert_eq!(set.summary(), (200, Some("committed")));
        for guard in ["tx", "plain"] {
            let found = send(&stage, &format!("POST /ask/{guard}"), asks).await;
            assert_eq!(found.body, "", "{guard}");
            let asks = "SELECT nullif(current_setting('app.tenant', true), '')";
            let found = send(&stage, &format!("POST /ask/{guard}"), asks).await;
            assert_eq!(found.body, "NULL", "{guard}");
        }
        stage.close().await;
    }

    #[rocket::async_test]
    async fn random_numbers_do_not_follow_from_the_seed_of_another() {
        let stage = stage("1", &[]).await;
        let (seeds, draws) = ("SELECT setseed(0.25)", "SELECT random()::text");
        let mut own = stage.databases.postgres(crate::support::In::Main).await;
        own.execute(seeds).await.unwrap();
        let known: String = own.fetch_one(draws).await.unwrap().get(0);
        for guard in ["tx", "read", "plain"] {
            send(&stage, &format!("POST /run/{guard}"), seeds).await;
            let drawn = send(&stage, &format!("POST /ask/{guard}"), draws).await;
            assert_ne!(drawn.body, known, "{guard}");
        }
        stage.close().await;
    }

    /// The test above proves something only if the sessions are the same ones.
    #[rocket::async_test]
    async fn what_is_not_reset_on_demand_is_seen_by_the_next() {
        let stage = stage("1", &[("databases.main.reset_sessions", "false")]).await;
        let (sets, asks) = KEPT[0];
        for guard in ["tx", "read"] {
            send(&stage, &format!("POST /run/{guard}"), sets).await;
            let found = send(&stage, &format!("POST /ask/{guard}"), asks).await;
            assert_eq!(found.body, "alice", "{guard}");
        }
        all_answers_are_their_own(&stage).await;
        stage.close().await;
    }

    #[rocket::async_test]
    async fn sessions_are_used_again() {
        let stage = stage("1", &[]).await;
        for guard in ["tx", "read", "plain"] {
            let asks = "SELECT pg_backend_pid()::text";
            let first = send(&stage, &format!("POST /ask/{guard}"), asks).await;
            for _ in 0..5 {
                let next = send(&stage, &format!("POST /ask/{guard}"), asks).await;
                assert_eq!(next.body, first.body, "{guard}");
            }
        }
        stage.close().await;
    }

    #[rocket::async_test]
    async fn a_proof_cannot_be_made_by_hand() {
        let stage = stage("2", &[]).await;
        for name in ["rocket_tx", "sqlx_savepoint_1"] {
            let sql =
                format!("INSERT INTO notes VALUES ('lost'); ROLLBACK; BEGIN; SAVEPOINT {name}");
            let response = send(&stage, "POST /run/tx", &sql).await;
            assert_eq!(response.summary(), (500, Some("unknown")), "{response:?}");
            all_answers_are_their_own(&stage).await;
        }
        stage.close().await;
    }
}
