//! A connection pooler between the service and Postgres.

use rocket::http::Status;
use rocket::{get, post, routes};
use rocket_tx::db::{self, UrlConnection};
use rocket_tx::{Error, Read, Settlement, Tx};

use crate::support::launch::refused;
use crate::support::stage::{figment, note, run};
use crate::support::{Backend, Break, Databases, In, Main, Mode, PgBouncer, Proxy, Stage};

/// A setting of the pooler for drivers that send startup parameters which the pooler does not know.
/// The pooler then ignores both parameters.
const IGNORING: [(&str, &str); 1] = [("ignore_startup_parameters", "extra_float_digits,options")];

#[post("/notes/<text>")]
async fn write(text: &str, mut main: Tx<Main>) -> Result<Status, Error> {
    note(&mut main, text).await?;
    Ok(Status::Created)
}

async fn setting(connection: &mut UrlConnection, sql: &'static str) -> Result<String, Error> {
    let UrlConnection::Postgres(connection) = connection else {
        return Ok(String::new());
    };
    Ok(sqlx::query_scalar(sql).fetch_one(&mut **connection).await?)
}

/// Returns the timeouts of the session, and then changes one of them.
#[get("/limits")]
async fn limits(mut main: Tx<Main>) -> Result<String, Error> {
    let statement = setting(&mut main, "SHOW statement_timeout").await?;
    let idle = setting(&mut main, "SHOW idle_in_transaction_session_timeout").await?;
    run(&mut main, "SET statement_timeout = 0").await?;
    Ok(format!("{statement} {idle}"))
}

#[get("/read-only")]
async fn read_only(mut main: Read<Main>) -> Result<String, Error> {
    setting(&mut main, "SHOW transaction_read_only").await
}

#[post("/through-read")]
async fn through_read(mut main: Read<Main>) -> Result<(), Error> {
    Ok(note(&mut main, "never").await?)
}

const SETTINGS: [(&str, &str); 3] = [
    ("settle_timeout", "\"2s\""),
    ("databases.main.statement_timeout", "\"7s\""),
    ("databases.main.idle_in_transaction_timeout", "\"8s\""),
];

async fn pooled(mode: Mode, settings: &[(&str, &str)]) -> (Databases, PgBouncer) {
    let mut databases = Databases::with_tables(Backend::Postgres).await;
    let pooler = PgBouncer::to(databases.url(In::Main), mode, settings).await;
    for database in [In::Main, In::Audit] {
        let url = pooler.url(databases.url(database));
        databases.reach_at(database, url);
    }
    (databases, pooler)
}

async fn stage(databases: Databases) -> Stage {
    Stage::on(databases, &SETTINGS, |rocket| {
        rocket
            .mount("/", routes![write, limits, read_only, through_read])
            .attach(Settlement::new())
    })
    .await
}

mod postgres {
    use super::*;

    #[rocket::async_test]
    async fn a_pooler_in_session_mode_works_like_the_server_itself() {
        for settings in [&[][..], &IGNORING] {
            let (databases, _pooler) = pooled(Mode::Session, settings).await;
            let stage = stage(databases).await;
            let response = stage.send("POST /notes/written").await;
            assert_eq!(response.summary(), (201, Some("committed")), "{settings:?}");
            // Each session has the settings, also after a handler has changed one.
            for _ in 0..6 {
                let response = stage.send("GET /limits").await;
                assert_eq!(
                    (response.status, &*response.body),
                    (200, "7s 8s"),
                    "{settings:?}"
                );
                let response = stage.send("GET /read-only").await;
                assert_eq!(
                    (response.status, &*response.body),
                    (200, "on"),
                    "{settings:?}"
                );
                assert_eq!(stage.send("POST /through-read").await.status, 500);
            }
            assert_eq!(stage.notes().await, ["written"]);
            stage.nothing_is_stuck().await;
        }
    }

    #[rocket::async_test]
    async fn a_pooler_that_shares_sessions_is_refused_at_launch() {
        let ignoring: &[_] = &IGNORING;
        for (mode, settings) in [
            (Mode::Transaction, &[][..]),
            (Mode::Transaction, ignoring),
            (Mode::Statement, ignoring),
        ] {
            let (databases, _pooler) = pooled(mode, settings).await;
            let log = refused(
                rocket::custom(figment(&databases, &SETTINGS))
                    .attach(db::init::<Main>())
                    .attach(Settlement::new()),
            )
            .await;
            for text in ["`main`", "transaction", "pool_mode = session"] {
                assert!(log.contains(text), "{text:?} is missing from\n{log}");
            }
        }
    }

    #[rocket::async_test]
    async fn several_hosts_in_a_url_are_refused_with_the_reason() {
        let mut databases = Databases::new(Backend::Postgres).await;
        let url = "postgres://user:secret@one:5432,two:5432/main";
        databases.reach_at(In::Main, url.into());
        let log = refused(
            rocket::custom(figment(&databases, &SETTINGS))
                .attach(db::init::<Main>())
                .attach(Settlement::new()),
        )
        .await;
        assert!(log.contains("several hosts"), "{log}");
        assert!(!log.contains("secret"), "{log}");
    }

    /// The connection between pooler and server is cut at COMMIT, and the pooler replies in place
    /// of the server.
    #[rocket::async_test]
    async fn a_commit_that_a_pooler_lost_is_reported_truthfully() {
        const ROUNDS: usize = 10;

        let mut databases = Databases::with_tables(Backend::Postgres).await;
        let proxy = Proxy::to(databases.url(In::Main)).await;
        let server = proxy.url(databases.url(In::Main));
        let pooler = PgBouncer::to(&server, Mode::Session, &[]).await;
        let url = pooler.url(databases.url(In::Main));
        databases.reach_at(In::Main, url);
        let stage = stage(databases).await;
        let mut resolved = 0;
        for round in 0..ROUNDS {
            for (kind_of_break, is_stored) in [(Break::Before, false), (Break::After, true)] {
                proxy.set("COMMIT", kind_of_break);
                let response = stage.send(&format!("POST /notes/{round}")).await;
                assert!(proxy.has_sprung());
                let notes = stage.databases.notes(In::Main).await;
                let context = format!("{kind_of_break:?}: {response:?}");
                assert_eq!(!notes.is_empty(), is_stored, "{context}");
                match (response.outcome(), is_stored) {
                    (Some("unknown"), _) => {}
                    (Some("committed"), true) | (Some("rolled-back"), false) => resolved += 1,
                    _ => panic!("false outcome: stored is {is_stored}, {context}"),
                }
                assert_eq!(
                    response.outcome() == Some("committed"),
                    response.status == 201
                );
                stage.nothing_is_stuck().await;
                stage.databases.empty().await;
            }
        }
        println!("{resolved} of {} outcomes were determined", 2 * ROUNDS);
    }
}
