//! A request whose outcome is unknown: the client learns it by sending the request again.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rocket::http::Status;
use rocket::{State, post, routes};
use rocket_tx::tx::{Phase, Resource};
use rocket_tx::{Begin, Error, Outstanding, Settlement, with_backend};
use rocket_tx_idempotency::{self as idempotency, idempotent};

use super::{counts, is_replay, send};
use crate::durability::disk::Disk;
use crate::support::stage::note;
use crate::support::{
    Audit, Backend, Break, Databases, HttpResponse, In, Main, Newcomers, Stage, eventually,
    eventually_or,
};

#[post("/notes/<text>")]
async fn create(text: &str, main: Begin<Main>) -> Result<Status, Error> {
    note(&mut *main.begin().await?, text).await?;
    Ok(Status::Created)
}

/// A resource whose first COMMIT gets no reply.
struct Elsewhere {
    is_lost: bool,
}

#[rocket::async_trait]
impl Resource for Elsewhere {
    fn name(&self) -> Cow<'_, str> {
        "elsewhere".into()
    }

    fn phase(&self) -> Phase {
        Phase::Database
    }

    async fn commit(&mut self) -> Result<(), Error> {
        match self.is_lost {
            true => Err(Error::Unknown(vec!["elsewhere".into()])),
            false => Ok(()),
        }
    }
}

/// Writes two databases.
#[post("/pair/<text>")]
async fn pair(text: &str, main: Begin<Main>, audit: Begin<Audit>) -> Result<Status, Error> {
    note(&mut *main.begin().await?, text).await?;
    note(&mut *audit.begin().await?, text).await?;
    Ok(Status::Created)
}

/// Writes one database and reads another one in a transaction.
#[post("/glances/<text>")]
async fn glance(text: &str, main: Begin<Main>, audit: Begin<Audit>) -> Result<Status, Error> {
    note(&mut *main.begin().await?, text).await?;
    let count = with_backend!(&mut *audit.begin().await?, |db| {
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM notes")
            .fetch_one(db)
            .await?
    });
    match count {
        0 => Ok(Status::Created),
        _ => Ok(Status::Conflict),
    }
}

#[post("/both/<text>")]
async fn both(
    text: &str,
    outstanding: &Outstanding,
    was_lost: &State<AtomicBool>,
    main: Begin<Main>,
) -> Result<Status, Error> {
    outstanding.join(Elsewhere {
        is_lost: !was_lost.swap(true, Ordering::SeqCst),
    })?;
    note(&mut *main.begin().await?, text).await?;
    Ok(Status::Created)
}

async fn stage(databases: Databases) -> Stage {
    Stage::on(databases, &[("settle_timeout", "\"2s\"")], |rocket| {
        rocket
            .attach(idempotency::init::<Main>().shared_keys())
            .attach(Settlement::new())
            .manage(AtomicBool::new(false))
            .mount("/", idempotent::<Main>(routes![create, both, pair, glance]))
    })
    .await
}

async fn post(stage: &Stage, line: &str) -> HttpResponse {
    post_as(stage, line, "k").await
}

async fn post_as(stage: &Stage, line: &str, key: &str) -> HttpResponse {
    let request = stage.http.request(line).header("Idempotency-Key", key);
    HttpResponse::of(request).await
}

/// Asserts that the client is told to send the request again, and what may be done twice then.
fn advises(response: &HttpResponse, twice: &str) {
    assert_eq!(response.summary(), (500, Some("unknown")), "{response:?}");
    for advice in [
        "send the request again with the same `Idempotency-Key`",
        twice,
    ] {
        assert!(response.body.contains(advice), "{}", response.body);
    }
}

async fn an_unknown_outcome_elsewhere_is_advised_truthfully(backend: Backend) {
    let stage = stage(Databases::with_tables(backend).await).await;
    let unknown = post(&stage, "POST /both/one").await;
    advises(&unknown, "its part in elsewhere may then be done twice");
    assert_eq!(stage.notes().await, [""; 0]);
    // The key was not committed, so the request runs now.
    let again = post(&stage, "POST /both/one").await;
    assert_eq!(again.summary(), (201, Some("committed")), "{again:?}");
    assert_eq!(again.header("idempotency-replayed"), None);
    let again = post(&stage, "POST /both/one").await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(stage.notes().await, ["one"]);
    stage.close().await;
}

on_each_backend!(an_unknown_outcome_elsewhere_is_advised_truthfully);

mod disk {
    pub mod sqlite {
        use super::super::*;

        /// The disk fails to keep the commit of `main`; `audit` has committed.
        #[rocket::async_test]
        async fn a_request_that_the_disk_may_have_lost_is_replayed() {
            let databases = Arc::new(Databases::new(Backend::Sqlite).await);
            let disk = Disk::of(&databases);
            let service = disk.service(&databases, &[]).await;
            let new = r#"{"title":"lost"}"#;
            let first = send(&service, "POST /todos", new, "first", "").await;
            assert_eq!(first.status, 201, "{first:?}");

            disk.order("fdatasync main.db-wal eio");
            let unknown = send(&service, "POST /todos", new, "k", "").await;
            advises(&unknown, "its part in audit may then be done twice");
            disk.mend();

            let again = send(&service, "POST /todos", new, "k", "").await;
            assert_eq!(again.summary(), (201, Some("committed")), "{again:?}");
            assert_eq!(again.header("idempotency-replayed"), Some("true"));
            assert_eq!(counts(&databases).await, (2, 2));
            is_replay(
                &first,
                &send(&service, "POST /todos", new, "first", "").await,
            );
            service.stop().await;
        }
    }
}

mod network {
    pub mod postgres {
        use super::super::*;

        /// COMMIT gets no reply, and the server cannot be queried for the outcome.
        #[rocket::async_test]
        async fn a_request_without_a_reply_to_its_commit_is_done_once_when_it_is_sent_again() {
            for (kind, is_stored) in [(Break::Before, false), (Break::After, true)] {
                let mut databases = Databases::with_tables(Backend::Postgres).await;
                let proxy = databases.by_proxy(In::Main).await;
                let stage = stage(databases).await;
                // Opens the sessions that the next request uses.
                assert_eq!(stage.send("POST /notes/before").await.status, 201);
                let warm = post_as(&stage, "POST /notes/warm", "warm").await;
                assert_eq!(warm.status, 201, "{warm:?}");

                proxy.newcomers(Newcomers::Refused).await;
                proxy.set("COMMIT", kind);
                let unknown = post(&stage, "POST /notes/one").await;
                advises(&unknown, "It is not done twice");
                assert!(proxy.has_sprung());
                proxy.newcomers(Newcomers::Served).await;

                let mut again = None;
                eventually_or("the request is answered", &mut again, async |again| {
                    let response = post(&stage, "POST /notes/one").await;
                    let is_answered = response.status == 201;
                    *again = Some(response);
                    is_answered
                })
                .await;
                let replayed = again.unwrap().header("idempotency-replayed").is_some();
                assert_eq!(replayed, is_stored, "{kind:?}");
                assert_eq!(stage.notes().await, ["before", "one", "warm"], "{kind:?}");
                stage.close().await;
            }
        }

        /// The other database has committed a transaction that only read.
        #[rocket::async_test]
        async fn a_database_that_was_only_read_is_not_named() {
            let mut databases = Databases::with_tables(Backend::Postgres).await;
            let proxy = databases.by_proxy(In::Main).await;
            let stage = stage(databases).await;
            assert_eq!(
                post_as(&stage, "POST /glances/warm", "warm").await.status,
                201
            );

            proxy.newcomers(Newcomers::Refused).await;
            proxy.set("COMMIT", Break::After);
            let unknown = post(&stage, "POST /glances/one").await;
            advises(&unknown, "It is not done twice");
            assert!(proxy.has_sprung());
            stage.close().await;
        }

        /// The decision to commit two databases gets no reply, and cannot be queried.
        #[rocket::async_test]
        async fn an_atomic_commit_with_an_unknown_decision_is_not_done_twice() {
            let mut databases = Databases::with_tables(Backend::Postgres).await;
            let proxy = databases.by_proxy(In::Main).await;
            let stage = stage(databases).await;
            assert_eq!(post_as(&stage, "POST /pair/warm", "warm").await.status, 201);

            proxy.newcomers(Newcomers::Refused).await;
            proxy.set("COMMIT", Break::After);
            let unknown = post(&stage, "POST /pair/one").await;
            advises(&unknown, "It is not done twice");
            assert!(proxy.has_sprung());
            proxy.newcomers(Newcomers::Served).await;

            let again = async || post(&stage, "POST /pair/one").await;
            eventually("the request is replayed", async || {
                again().await.header("idempotency-replayed").is_some()
            })
            .await;
            eventually("both are committed", async || {
                stage.notes().await == ["one", "warm", "one", "warm"]
            })
            .await;
            stage.close().await;
        }
    }
}
