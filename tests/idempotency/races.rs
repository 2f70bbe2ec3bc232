//! A key that is claimed while another process serves it, and while the sweep deletes its row.

use std::sync::Arc;

use rocket::serde::json::Value;
use rocket::{post, routes};
use rocket_tx::{Begin, Error, Settlement};
use rocket_tx_idempotency::{self as idempotency, idempotent};
use sqlx::Executor;

use super::{counts, is_replay, request, send};
use crate::support::stage::note;
use crate::support::{Backend, Databases, HttpResponse, In, Main, Service, Stage, eventually};

async fn has_begun(service: &Service) {
    eventually("the transactions have begun", async || {
        let registry: Value = service.get("/registry").await.json();
        let outstanding = registry["outstanding"].as_array().unwrap();
        outstanding.iter().any(|it| it["resource"] == "main")
    })
    .await;
}

/// Two processes use one database. The second request waits for the first, and gets its response.
async fn a_request_waits_for_its_twin_in_another_process(backend: Backend) {
    let one = Service::start(backend).await;
    let two = Service::on(Arc::clone(&one.databases), &[]).await;
    let new = r#"{"title":"twin"}"#;
    let slow = request(&one, "POST /todos", new, "k", "delay=500");
    let slow = rocket::tokio::spawn(HttpResponse::of(slow));
    has_begun(&one).await;
    let twin = send(&two, "POST /todos", new, "k", "").await;
    is_replay(&slow.await.unwrap(), &twin);
    assert_eq!(counts(&one.databases).await, (1, 1));
    two.stop().await;
    one.stop().await;
}

/// On SQLite, the second process cannot see which request holds the lock of the file.
async fn a_request_whose_twin_in_another_process_is_slow_may_be_sent_again(backend: Backend) {
    let one = Service::start(backend).await;
    let settings = match backend {
        Backend::Sqlite => "max_connections=8,busy_timeout=\"200ms\"",
        Backend::Postgres => "max_connections=8",
    };
    let settings = one.databases.variable_with(settings);
    let settings = [("ROCKET_DATABASES", &*settings)];
    let two = Service::on(Arc::clone(&one.databases), &settings).await;
    let new = r#"{"title":"twin"}"#;
    let slow = request(&one, "POST /todos", new, "k", "delay=6000");
    let slow = rocket::tokio::spawn(HttpResponse::of(slow));
    has_begun(&one).await;
    let twin = send(&two, "POST /todos", new, "k", "").await;
    let refused = match backend {
        Backend::Sqlite => (503, "busy"),
        Backend::Postgres => (409, "idempotency-key-in-flight"),
    };
    assert_eq!((twin.status, &*twin.kind()), refused, "{twin:?}");
    assert_eq!(twin.outcome(), Some("rolled-back"));
    assert_eq!(twin.header("retry-after"), Some("1"));
    let first = slow.await.unwrap();
    assert_eq!(first.status, 201, "{first:?}");
    is_replay(&first, &send(&two, "POST /todos", new, "k", "").await);
    assert_eq!(counts(&one.databases).await, (1, 1));
    two.stop().await;
    one.stop().await;
}

on_each_backend!(
    a_request_waits_for_its_twin_in_another_process,
    a_request_whose_twin_in_another_process_is_slow_may_be_sent_again,
);

/// Its data guard keeps the body to itself, so the key is looked up only by the claim.
#[post("/notes/<text>", data = "<body>")]
async fn create(text: &str, body: Vec<u8>, main: Begin<Main>) -> Result<String, Error> {
    note(&mut *main.begin().await?, text).await?;
    Ok(body.len().to_string())
}

async fn stage(databases: Databases) -> Stage {
    Stage::on(databases, &[], |rocket| {
        rocket
            .attach(idempotency::init::<Main>().shared_keys())
            .attach(Settlement::new())
            .mount("/", idempotent::<Main>(routes![create]))
    })
    .await
}

async fn post(stage: &Stage, text: &str) -> HttpResponse {
    let request = stage.http.request(&format!("POST /notes/{text}"));
    let request = request.header("Idempotency-Key", "k");
    HttpResponse::of(request.body("x".repeat(2_000))).await
}

mod sweep {
    pub mod postgres {
        use super::super::*;

        /// The claim finds a row that is valid, and a moment later the row has expired.
        #[rocket::async_test]
        async fn a_row_that_expires_after_the_claim_has_found_it_is_claimed() {
            // Each look at the clock of this database is 1000 s after the one before.
            const CLOCK: &str = "\
                CREATE SEQUENCE ticks;
                CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
                    AS $$ SELECT to_timestamp(nextval('public.ticks') * 1000) $$;
                DO $$ BEGIN EXECUTE format(
                    'ALTER DATABASE %I SET search_path = public, pg_catalog', current_database()
                ); END $$";
            // The claim looks twice: for the new time, and to compare it with the row's. The search
            // for the row comes third.
            const EXPIRES_BETWEEN: &str = "\
                UPDATE idempotency_keys SET expires_at =
                    ((SELECT last_value FROM ticks) * 1000 + 2500) * 1000;
                DELETE FROM notes";

            let databases = Databases::with_tables(Backend::Postgres).await;
            databases.execute(In::Main, CLOCK).await;
            let stage = stage(databases).await;
            assert_eq!(post(&stage, "one").await.status, 200);
            let replayed = post(&stage, "one").await;
            assert_eq!(replayed.header("idempotency-replayed"), Some("true"));

            stage.databases.execute(In::Main, EXPIRES_BETWEEN).await;
            let again = post(&stage, "one").await;
            assert_eq!(again.summary(), (200, Some("committed")), "{again:?}");
            assert_eq!(again.header("idempotency-replayed"), None);
            assert_eq!(stage.notes().await, ["one"]);
            stage.close().await;
        }

        /// The sweep has deleted the row and has not committed yet. The claim waits for it.
        #[rocket::async_test]
        async fn a_row_that_the_sweep_is_deleting_is_claimed_after_it() {
            const WAITING: &str = "\
                SELECT query FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock'";

            let stage = stage(Databases::with_tables(Backend::Postgres).await).await;
            assert_eq!(post(&stage, "one").await.status, 200);
            let expire = "UPDATE idempotency_keys SET expires_at = 1; DELETE FROM notes";
            stage.databases.execute(In::Main, expire).await;
            let mut sweep = stage.databases.postgres(In::Main).await;
            sweep
                .execute("BEGIN; DELETE FROM idempotency_keys")
                .await
                .unwrap();
            let end_of_sweep = async {
                eventually("the claim waits", async || {
                    let waiting = stage.databases.texts(In::Main, WAITING).await;
                    waiting.iter().any(|it| it.contains("idempotency_keys"))
                })
                .await;
                sweep.execute("COMMIT").await.unwrap();
            };
            let (again, ()) = rocket::tokio::join!(post(&stage, "one"), end_of_sweep);
            assert_eq!(again.summary(), (200, Some("committed")), "{again:?}");
            assert_eq!(again.header("idempotency-replayed"), None);
            assert_eq!(stage.notes().await, ["one"]);
            stage.close().await;
        }
    }
}
