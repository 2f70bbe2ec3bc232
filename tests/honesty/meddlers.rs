//! Resources that use the request's transactions during its settlement (meddlers). The outcome in
//! the response must still be true.

use std::borrow::Cow;

use rocket::http::Status;
use rocket::outcome::Outcome;
use rocket::request::{self, FromRequest};
use rocket::{FromForm, FromFormField, Request, State, post, routes};
use rocket_tx::db::{self, Access, TransactionPool, UrlPool, WaitPolicy};
use rocket_tx::rocket_db_pools::Database;
use rocket_tx::tx::{Phase, SettleContext};
use rocket_tx::{Begin, Error, Outstanding, Resource, Settlement};

use crate::support::stage::{note, run};
use crate::support::{Backend, In, Main, Stage, WRITES};

/// The action of a meddler.
#[derive(Clone, Copy)]
enum Does {
    /// Replaces the transaction's session by another one and drops the original.
    Exchange(Access),
    /// Begins another transaction on the transaction's session, and ends that one.
    Capture(End),
    /// Sends statements and ignores their results.
    Statements(&'static [&'static str]),
    /// Begins another transaction on the transaction's connection, after its rollback, and commits
    /// it.
    BeginAnother,
}

#[derive(Clone, Copy)]
enum End {
    Commit,
    Rollback,
}

/// How a meddler joins: its phase, and whether before or after the transaction begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromFormField)]
enum Joins {
    Release,
    DatabaseBefore,
    DatabaseAfter,
}

/// The step of settlement in which a meddler acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromFormField)]
enum At {
    Prepare,
    Rollback,
}

#[derive(FromForm)]
struct When {
    at: At,
    joins: Joins,
    /// Whether the meddler refuses at the end of `prepare`.
    refuses: bool,
}

struct Meddler {
    does: Does,
    when: When,
    pool: UrlPool,
}

impl Meddler {
    async fn meddle(&self, context: &mut SettleContext<'_>) -> Result<(), Error> {
        if let Does::BeginAnother = self.does {
            let begun = context
                .begin_after_rollback::<Main>(WaitPolicy::FAIL_FAST)
                .await;
            let is_too_early =
                self.when.at == At::Prepare || self.when.joins == Joins::DatabaseBefore;
            return match begun {
                Err(Error::NotOver("main")) if is_too_early => Ok(()),
                Ok(Some(another)) if !is_too_early => {
                    another.commit_without_waiting().await.map(drop)
                }
                Ok(_) => panic!("the transaction began too early, or not at all"),
                Err(error) => Err(error),
            };
        }
        let Some(mut transaction) = context.transaction::<Main>() else {
            assert_eq!(self.when.at, At::Rollback);
            return Ok(());
        };
        match self.does {
            Does::Exchange(access) => {
                let mut fresh = self.pool.open(WRITES.access(access)).await?;
                std::mem::swap(transaction.connection(), fresh.connection());
            }
            Does::Capture(end) => {
                let other = self
                    .pool
                    .session(Access::ReadOnly, WaitPolicy::QUEUE)
                    .await?;
                let session = std::mem::replace(transaction.connection(), other);
                if let Ok(mut captured) = db::Transaction::begin(session, WRITES).await {
                    match end {
                        End::Commit => drop(captured.commit_without_waiting().await),
                        End::Rollback => drop(captured.rollback().await),
                    }
                }
            }
            Does::Statements(statements) => {
                for sql in statements {
                    let _result = run(transaction.connection(), sql).await;
                }
            }
            Does::BeginAnother => {}
        }
        Ok(())
    }
}

#[rocket::async_trait]
impl Resource for Meddler {
    fn name(&self) -> Cow<'_, str> {
        "meddler".into()
    }

    fn phase(&self) -> Phase {
        match self.when.joins {
            Joins::Release => Phase::Release,
            Joins::DatabaseBefore | Joins::DatabaseAfter => Phase::Database,
        }
    }

    async fn prepare(&mut self, context: &mut SettleContext<'_>) -> Result<(), Error> {
        if self.when.at == At::Prepare {
            self.meddle(context).await?;
        }
        match self.when.refuses {
            true => Err(Error::Conflict("on purpose".into())),
            false => Ok(()),
        }
    }

    async fn commit(&mut self) -> Result<(), Error> {
        Ok(())
    }

    async fn rollback(&mut self, context: &mut SettleContext<'_>) -> Result<(), Error> {
        match self.when.at {
            At::Prepare => Ok(()),
            At::Rollback => self.meddle(context).await,
        }
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

#[post("/<status>?<when..>")]
async fn meddle(
    status: u16,
    when: When,
    does: &State<Does>,
    outstanding: &Outstanding,
    begin: Begin<Main>,
    pool: Pool,
) -> Result<Status, Error> {
    let begins_first = when.joins == Joins::DatabaseAfter;
    let begun = match begins_first {
        true => Some(begin.begin().await?),
        false => None,
    };
    outstanding.join(Meddler {
        does: **does,
        when,
        pool: pool.0,
    })?;
    let mut tx = match begun {
        Some(tx) => tx,
        None => begin.begin().await?,
    };
    note(&mut tx, "first").await?;
    Ok(Status::new(status))
}

/// Asserts that the outcome in the response agrees with the stored notes, for each step, each way
/// to join, with and without a refusal, and for commits and rollbacks.
async fn assert_outcomes_are_true(backend: Backend, does: Does) {
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
    for at in [At::Prepare, At::Rollback] {
        for joins in [Joins::Release, Joins::DatabaseBefore, Joins::DatabaseAfter] {
            for (status, refuses) in [(201, false), (201, true), (409, false)] {
                let line = format!("POST /{status}?at={at:?}&joins={joins:?}&refuses={refuses}");
                let response = stage.send(&line).await;
                stage.nothing_is_stuck().await;
                let stored = stage.databases.notes(In::Main).await;
                match response.summary() {
                    (201, Some("committed")) => assert_eq!(stored, ["first"], "{line}"),
                    (400.., Some("rolled-back")) => assert_eq!(stored, [""; 0], "{line}"),
                    (500, Some("unknown")) => {}
                    // The meddler itself was committed before the transaction failed.
                    (500, Some("partial")) if joins == Joins::DatabaseBefore => {}
                    other => panic!("{line}: {other:?}, stored {stored:?}"),
                }
                stage.databases.empty().await;
            }
        }
    }
}

async fn outcomes_are_true_if_the_session_is_exchanged(backend: Backend) {
    assert_outcomes_are_true(backend, Does::Exchange(Access::ReadWrite)).await;
}

async fn outcomes_are_true_if_the_session_is_exchanged_for_a_reader(backend: Backend) {
    assert_outcomes_are_true(backend, Does::Exchange(Access::ReadOnly)).await;
}

async fn outcomes_are_true_if_another_begin_on_the_session_commits(backend: Backend) {
    assert_outcomes_are_true(backend, Does::Capture(End::Commit)).await;
}

async fn outcomes_are_true_if_another_begin_on_the_session_rolls_back(backend: Backend) {
    assert_outcomes_are_true(backend, Does::Capture(End::Rollback)).await;
}

async fn outcomes_are_true_if_commit_is_sent(backend: Backend) {
    assert_outcomes_are_true(backend, Does::Statements(&["COMMIT"])).await;
    assert_outcomes_are_true(backend, Does::Statements(&["COMMIT", "BEGIN"])).await;
}

async fn outcomes_are_true_if_rollback_is_sent(backend: Backend) {
    assert_outcomes_are_true(backend, Does::Statements(&["ROLLBACK"])).await;
    assert_outcomes_are_true(backend, Does::Statements(&["ROLLBACK", "BEGIN"])).await;
}

async fn outcomes_are_true_if_another_transaction_begins(backend: Backend) {
    assert_outcomes_are_true(backend, Does::BeginAnother).await;
}

on_each_backend!(
    outcomes_are_true_if_the_session_is_exchanged,
    outcomes_are_true_if_the_session_is_exchanged_for_a_reader,
    outcomes_are_true_if_another_begin_on_the_session_commits,
    outcomes_are_true_if_another_begin_on_the_session_rolls_back,
    outcomes_are_true_if_commit_is_sent,
    outcomes_are_true_if_rollback_is_sent,
    outcomes_are_true_if_another_transaction_begins,
);
