//! Resources that meddle with the request's transactions while it is settled: each is told truly.

use std::borrow::Cow;

use rocket::http::Status;
use rocket::outcome::Outcome;
use rocket::request::{self, FromRequest};
use rocket::{FromForm, FromFormField, Request, State, post, routes};
use rocket_tx::db::{self, Access, BeginOptions, Isolation, TransactionPool, UrlPool, WaitPolicy};
use rocket_tx::rocket_db_pools::Database;
use rocket_tx::tx::{Phase, SettleContext};
use rocket_tx::{Begin, Error, Outstanding, Resource, Settlement};

use crate::support::stage::{note, run};
use crate::support::{Backend, In, Main, Stage};

const BEGIN: BeginOptions = BeginOptions {
    isolation: Isolation::Default,
    access: Access::ReadWrite,
    wait: WaitPolicy::QUEUE,
};

/// What one of them does.
#[derive(Clone, Copy)]
enum Does {
    /// Puts another session in the place of the transaction's, and drops that one.
    Exchange(Access),
    /// Begins another transaction on the transaction's session, and ends that one.
    Capture(End),
    /// Sends statements, whatever becomes of each.
    Statements(&'static [&'static str]),
    /// Commits what it can begin on the connection of the transaction.
    BeginAnother,
}

#[derive(Clone, Copy)]
enum End {
    Commit,
    Rollback,
}

/// How it joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromFormField)]
enum Joins {
    Release,
    DatabaseBefore,
    DatabaseAfter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, FromFormField)]
enum At {
    Prepare,
    Rollback,
}

#[derive(FromForm)]
struct When {
    at: At,
    joins: Joins,
    /// It refuses in `prepare`, after what it does.
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
                Ok(_) => panic!("begun too early, or not at all"),
                Err(error) => Err(error),
            };
        }
        let Some(mut transaction) = context.transaction::<Main>() else {
            assert_eq!(self.when.at, At::Rollback);
            return Ok(());
        };
        match self.does {
            Does::Exchange(access) => {
                let mut fresh = self.pool.open(BeginOptions { access, ..BEGIN }).await?;
                std::mem::swap(transaction.connection(), fresh.connection());
            }
            Does::Capture(end) => {
                let other = self
                    .pool
                    .session(Access::ReadOnly, WaitPolicy::QUEUE)
                    .await?;
                let session = std::mem::replace(transaction.connection(), other);
                if let Ok(mut captured) = db::Transaction::begin(session, BEGIN).await {
                    match end {
                        End::Commit => drop(captured.commit_without_waiting().await),
                        End::Rollback => drop(captured.rollback().await),
                    }
                }
            }
            Does::Statements(statements) => {
                for sql in statements {
                    let _whatever_comes = run(transaction.connection(), sql).await;
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
            true => Err(Error::Conflict("as told".into())),
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

/// What is told is what is stored: wherever one meddles, however it joins, whether it agrees or
/// refuses, and whether the request is to be committed or not.
async fn are_told_truly(backend: Backend, does: Does) {
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
                let what = format!("POST /{status}?at={at:?}&joins={joins:?}&refuses={refuses}");
                let response = stage.send(&what).await;
                stage.nothing_is_stuck().await;
                let stored = stage.databases.notes(In::Main).await;
                match response.summary() {
                    (201, Some("committed")) => assert_eq!(stored, ["first"], "{what}"),
                    (400.., Some("rolled-back")) => assert_eq!(stored, [""; 0], "{what}"),
                    (500, Some("unknown")) => {}
                    // The meddler itself was committed.
                    (500, Some("partial")) if joins == Joins::DatabaseBefore => {}
                    told => panic!("{what}: {told:?}, stored {stored:?}"),
                }
                stage.databases.empty().await;
            }
        }
    }
}

async fn those_that_exchange_the_session_for_another(backend: Backend) {
    are_told_truly(backend, Does::Exchange(Access::ReadWrite)).await;
}

async fn those_that_exchange_the_session_for_one_that_reads(backend: Backend) {
    are_told_truly(backend, Does::Exchange(Access::ReadOnly)).await;
}

async fn those_that_begin_on_the_session_and_commit(backend: Backend) {
    are_told_truly(backend, Does::Capture(End::Commit)).await;
}

async fn those_that_begin_on_the_session_and_roll_back(backend: Backend) {
    are_told_truly(backend, Does::Capture(End::Rollback)).await;
}

async fn those_that_send_commit(backend: Backend) {
    are_told_truly(backend, Does::Statements(&["COMMIT"])).await;
    are_told_truly(backend, Does::Statements(&["COMMIT", "BEGIN"])).await;
}

async fn those_that_send_rollback(backend: Backend) {
    are_told_truly(backend, Does::Statements(&["ROLLBACK"])).await;
    are_told_truly(backend, Does::Statements(&["ROLLBACK", "BEGIN"])).await;
}

async fn those_that_begin_another_transaction(backend: Backend) {
    are_told_truly(backend, Does::BeginAnother).await;
}

on_each_backend!(
    those_that_exchange_the_session_for_another,
    those_that_exchange_the_session_for_one_that_reads,
    those_that_begin_on_the_session_and_commit,
    those_that_begin_on_the_session_and_roll_back,
    those_that_send_commit,
    those_that_send_rollback,
    those_that_begin_another_transaction,
);
