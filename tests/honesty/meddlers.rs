//! Resources that meddle with the request's transactions while it is settled: each is told truly.

use std::borrow::Cow;

use rocket::http::Status;
use rocket::outcome::Outcome;
use rocket::request::{self, FromRequest};
use rocket::{Request, State, post, routes};
use rocket_tx::db::{self, Access, BeginOptions, Isolation, Patience, TransactionPool, UrlPool};
use rocket_tx::rocket_db_pools::Database;
use rocket_tx::tx::{Phase, Settling};
use rocket_tx::{Begin, Error, Outstanding, Resource, Settlement};

use crate::support::stage::{note, run};
use crate::support::{Backend, In, Main, Stage};

const BEGIN: BeginOptions = BeginOptions {
    isolation: Isolation::Default,
    access: Access::ReadWrite,
    patience: Patience::Wait,
};

/// What one of them does.
#[derive(Clone, Copy)]
enum Does {
    /// Puts another session in the place of the transaction's, and drops that one.
    Exchange(Access),
    /// Begins another transaction on the transaction's session, and ends that one.
    Capture(End),
    /// Sends statements in `prepare`; one that fails changes nothing.
    Statements(&'static str),
    /// Wants another transaction on the connection, before the first is over.
    BeginInPrepare,
    /// The same in `rollback`, and commits whatever transaction there is. As a database that joined
    /// first, it is rolled back first.
    CommitInRollback,
}

#[derive(Clone, Copy)]
enum End {
    Commit,
    Rollback,
}

struct Meddler {
    does: Does,
    refuses: bool,
    pool: UrlPool,
}

#[rocket::async_trait]
impl Resource for Meddler {
    fn name(&self) -> Cow<'_, str> {
        "meddler".into()
    }

    fn phase(&self) -> Phase {
        match self.does {
            Does::CommitInRollback => Phase::Database,
            _ => Phase::Release,
        }
    }

    async fn prepare(&mut self, settling: &mut Settling<'_>) -> Result<(), Error> {
        match self.does {
            Does::Exchange(access) => {
                let mut fresh = self.pool.open(BeginOptions { access, ..BEGIN }).await?;
                let mut transaction = settling.transaction::<Main>().unwrap();
                std::mem::swap(transaction.connection(), fresh.connection());
            }
            Does::Capture(end) => {
                let other = self.pool.session(Access::ReadOnly, Patience::Wait).await?;
                let mut transaction = settling.transaction::<Main>().unwrap();
                let session = std::mem::replace(transaction.connection(), other);
                if let Ok(mut captured) = db::Transaction::begin(session, BEGIN).await {
                    match end {
                        End::Commit => drop(captured.commit_without_waiting().await),
                        End::Rollback => drop(captured.rollback().await),
                    }
                }
            }
            Does::Statements(statements) => {
                let mut transaction = settling.transaction::<Main>().unwrap();
                for sql in statements.split("; ") {
                    let _whatever_comes = run(transaction.connection(), sql).await;
                }
            }
            Does::BeginInPrepare => {
                let begun = settling.begin_after_rollback::<Main>(Patience::Never);
                let refused = begun.await.map(drop);
                assert!(
                    matches!(refused, Err(Error::NotOver("main"))),
                    "{refused:?}"
                );
            }
            Does::CommitInRollback => {}
        }
        match self.refuses {
            true => Err(Error::Conflict("as told".into())),
            false => Ok(()),
        }
    }

    async fn commit(&mut self) -> Result<(), Error> {
        Ok(())
    }

    async fn rollback(&mut self, settling: &mut Settling<'_>) -> Result<(), Error> {
        if let Does::CommitInRollback = self.does {
            let begun = settling.begin_after_rollback::<Main>(Patience::Never);
            if let Some(transaction) = begun.await? {
                let _whatever_comes = transaction.commit_without_waiting().await?;
            }
        }
        Ok(())
    }
}

struct Pool(UrlPool);

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Pool {
    type Error = ();

    async fn from_request(request: &'r Request<'_>) -> request::Outcome<Self, ()> {
        match Main::fetch(request.rocket()) {
            Some(main) => Outcome::Success(Self((**main).clone())),
            None => Outcome::Error((Status::InternalServerError, ())),
        }
    }
}

#[post("/<status>?<refuses>")]
async fn meddle(
    status: u16,
    refuses: bool,
    does: &State<Does>,
    outstanding: &Outstanding,
    begin: Begin<Main>,
    pool: Pool,
) -> Result<Status, Error> {
    outstanding.join(Meddler {
        does: **does,
        refuses,
        pool: pool.0,
    })?;
    note(&mut *begin.begin().await?, "first").await?;
    Ok(Status::new(status))
}

/// What is told is what is stored, whether the meddler agrees, refuses, or is rolled back.
async fn is_told_truly(backend: Backend, does: Does) {
    let settings = [
        ("databases.main.max_connections", "2"),
        ("databases.main.connect_timeout", "1"),
    ];
    let stage = Stage::with(backend, &settings, |rocket| {
        rocket
            .manage(does)
            .mount("/", routes![meddle])
            .attach(Settlement::new())
    })
    .await;
    for what in ["201", "201?refuses=true", "409"] {
        let answer = stage.send(&format!("POST /{what}")).await;
        stage.nothing_is_stuck().await;
        let stored = stage.databases.notes(In::Main).await;
        match answer.told() {
            (201, Some("committed")) => assert_eq!(stored, ["first"], "{what}: {answer:?}"),
            (400.., Some("rolled-back")) => assert_eq!(stored, [""; 0], "{what}: {answer:?}"),
            (500, Some("unknown")) => {}
            told => panic!("{what}: {told:?}, stored {stored:?}"),
        }
        stage.databases.empty().await;
    }
}

async fn one_that_exchanges_the_session_for_another(backend: Backend) {
    is_told_truly(backend, Does::Exchange(Access::ReadWrite)).await;
}

async fn one_that_exchanges_the_session_for_one_that_reads(backend: Backend) {
    is_told_truly(backend, Does::Exchange(Access::ReadOnly)).await;
}

async fn one_that_begins_on_the_session_and_commits(backend: Backend) {
    is_told_truly(backend, Does::Capture(End::Commit)).await;
}

async fn one_that_begins_on_the_session_and_rolls_back(backend: Backend) {
    is_told_truly(backend, Does::Capture(End::Rollback)).await;
}

async fn one_that_sends_commit(backend: Backend) {
    is_told_truly(backend, Does::Statements("COMMIT")).await;
    is_told_truly(backend, Does::Statements("COMMIT; BEGIN")).await;
}

async fn one_that_sends_rollback(backend: Backend) {
    is_told_truly(backend, Does::Statements("ROLLBACK")).await;
    is_told_truly(backend, Does::Statements("ROLLBACK; BEGIN")).await;
}

async fn one_that_begins_another_transaction_too_early(backend: Backend) {
    is_told_truly(backend, Does::BeginInPrepare).await;
}

async fn one_that_commits_in_its_rollback(backend: Backend) {
    is_told_truly(backend, Does::CommitInRollback).await;
}

on_each_backend!(
    one_that_exchanges_the_session_for_another,
    one_that_exchanges_the_session_for_one_that_reads,
    one_that_begins_on_the_session_and_commits,
    one_that_begins_on_the_session_and_rolls_back,
    one_that_sends_commit,
    one_that_sends_rollback,
    one_that_begins_another_transaction_too_early,
    one_that_commits_in_its_rollback,
);
