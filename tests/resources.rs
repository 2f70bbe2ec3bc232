//! Resources that join a settlement: their phases, their use of the request's transaction, and
//! observers.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rocket::http::Status;
use rocket::{Request, State, post, routes};
use rocket_tx::db::WaitPolicy;
use rocket_tx::tx::{Action, Phase, Resource, SettleContext, SettlementReport, Step};
use rocket_tx::{Begin, Error, Observer, Outstanding, Settlement};

use crate::support::stage::note;
use crate::support::{Audit, Backend, In, Main, Stage, eventually};

type Log = Arc<Mutex<Vec<String>>>;

/// Behaves like a lease: it is released inside the transaction if the request commits, and after
/// the rollback otherwise.
struct Lease {
    log: Log,
}

#[rocket::async_trait]
impl Resource for Lease {
    fn name(&self) -> Cow<'_, str> {
        "lease".into()
    }

    async fn prepare(&mut self, context: &mut SettleContext<'_>) -> Result<(), Error> {
        context.commit_last::<Main>();
        let Some(mut transaction) = context.transaction::<Main>() else {
            return Err(Error::Conflict("the lease needs a transaction".into()));
        };
        note(transaction.connection(), "released inside").await?;
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Error> {
        self.log.lock().push("gate opened".into());
        Ok(())
    }

    async fn rollback(&mut self, context: &mut SettleContext<'_>) -> Result<(), Error> {
        let begun = context.begin_after_rollback::<Main>(WaitPolicy::FAIL_FAST);
        if let Some(mut transaction) = begun.await? {
            note(transaction.connection(), "released after").await?;
            let _not_awaited = transaction.commit_without_waiting().await?;
        }
        self.log.lock().push("gate opened".into());
        Ok(())
    }
}

/// Joins before any database, and is settled after them because of its phase.
struct Early;

#[rocket::async_trait]
impl Resource for Early {
    fn name(&self) -> Cow<'_, str> {
        "early".into()
    }

    fn phase(&self) -> Phase {
        Phase::Release
    }

    /// A failed release is reported to observers, and does not change the outcome.
    async fn commit(&mut self) -> Result<(), Error> {
        Err(Error::Conflict("as requested".into()))
    }
}

#[post("/lease/<code>")]
async fn lease(
    code: u16,
    outstanding: &Outstanding,
    log: &State<Log>,
    main: Begin<Main>,
    audit: Begin<Audit>,
) -> Result<(Status, String), Error> {
    outstanding.join(Early)?;
    note(&mut *main.begin().await?, "event").await?;
    outstanding.join(Lease {
        log: Arc::clone(log),
    })?;
    note(&mut *audit.begin().await?, "line").await?;
    Ok((Status::new(code), String::new()))
}

/// Joins a lease without a transaction. The lease refuses in `prepare`.
#[post("/lease-alone")]
fn lease_alone(outstanding: &Outstanding, log: &State<Log>) -> Result<Status, Error> {
    outstanding.join(Lease {
        log: Arc::clone(log),
    })?;
    Ok(Status::Created)
}

/// Logs every step, and panics at each `Prepare`. The panics must not change the settlement.
struct Scribe(Log);

impl Observer for Scribe {
    fn before(&self, step: &Step<'_, '_>) {
        self.0
            .lock()
            .push(format!("{:?} {}", step.action, step.resource));
        assert!(step.action != Action::Prepare, "observers may panic");
    }

    fn after(&self, step: &Step<'_, '_>, result: Result<(), &Error>, _: Duration) {
        if let Err(error) = result {
            self.0
                .lock()
                .push(format!("{} failed: {error}", step.resource));
        }
    }

    fn settled(&self, _: &Request<'_>, settled: &SettlementReport) {
        let summary = format!("{} by {}", settled.outcome, settled.verdict.reason());
        self.0.lock().push(summary);
    }
}

async fn stage(backend: Backend) -> (Stage, Log) {
    let log = Log::default();
    let managed = Arc::clone(&log);
    let settings = [("atomic_commit", "\"off\"")];
    let stage = Stage::with(backend, &settings, |rocket| {
        rocket
            .manage(Arc::clone(&managed))
            .mount("/", routes![lease, lease_alone])
            .attach(Settlement::new().observer(Scribe(managed)))
    })
    .await;
    (stage, log)
}

async fn a_lease_is_released_inside_the_commit(backend: Backend) {
    let (stage, log) = stage(backend).await;
    let response = stage.send("POST /lease/201").await;
    assert_eq!(response.summary(), (201, Some("committed")));
    assert_eq!(
        std::mem::take(&mut *log.lock()),
        [
            "Prepare early",
            "Prepare lease",
            "Prepare main",
            "Prepare audit",
            "Commit audit",
            "Commit main",
            "Commit early",
            "early failed: as requested",
            "Commit lease",
            "gate opened",
            "committed by status 201",
        ]
    );
    assert_eq!(
        stage.databases.notes(In::Main).await,
        ["event", "released inside"]
    );
    assert_eq!(stage.databases.notes(In::Audit).await, ["line"]);
    stage.nothing_is_stuck().await;
}

async fn a_lease_is_released_after_the_rollback(backend: Backend) {
    let (stage, log) = stage(backend).await;
    let response = stage.send("POST /lease/409").await;
    assert_eq!(response.summary(), (409, Some("rolled-back")));
    assert_eq!(
        std::mem::take(&mut *log.lock()),
        [
            "Rollback main",
            "Rollback audit",
            "Rollback early",
            "Rollback lease",
            "gate opened",
            "rolled-back by status 409",
        ]
    );
    assert_eq!(stage.databases.notes(In::Main).await, ["released after"]);
    assert_eq!(stage.databases.notes(In::Audit).await, [""; 0]);
    stage.nothing_is_stuck().await;
}

async fn a_resource_without_a_database_can_refuse(backend: Backend) {
    let (stage, log) = stage(backend).await;
    let response = stage.send("POST /lease-alone").await;
    assert_eq!(response.summary(), (409, Some("rolled-back")));
    assert!(
        response.body.contains("the lease needs a transaction"),
        "{}",
        response.body
    );
    assert!(log.lock().contains(&"gate opened".to_owned()));
}

/// A resource whose `prepare` waits for the test. Meanwhile it is listed as outstanding.
struct Slow(Arc<rocket::tokio::sync::Notify>);

#[rocket::async_trait]
impl Resource for Slow {
    fn name(&self) -> Cow<'_, str> {
        "slow".into()
    }

    async fn prepare(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
        self.0.notified().await;
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

#[post("/slow")]
async fn slow(
    outstanding: &Outstanding,
    notify: &State<Arc<rocket::tokio::sync::Notify>>,
    main: Begin<Main>,
) -> Result<Status, Error> {
    note(&mut *main.begin().await?, "written").await?;
    outstanding.join(Slow(Arc::clone(notify)))?;
    Ok(Status::Created)
}

async fn outstanding_resources_are_listed(backend: Backend) {
    let notify = Arc::new(rocket::tokio::sync::Notify::new());
    let managed = Arc::clone(&notify);
    let stage = Stage::new(backend, |rocket| {
        rocket
            .manage(managed)
            .mount("/", routes![slow])
            .attach(Settlement::new())
    })
    .await;
    let http = stage.http.clone();
    let response = rocket::tokio::spawn(async move { http.send("POST /slow").await });
    eventually("both are outstanding", async || {
        stage.outstanding().len() == 2
    })
    .await;
    for entry in stage.outstanding() {
        assert!(
            ["main", "slow"].contains(&entry.resource.as_str()),
            "{entry:?}"
        );
        assert_eq!(entry.route.as_deref(), Some("slow"));
        assert!(!entry.condemned);
    }
    notify.notify_one();
    assert_eq!(response.await.unwrap().summary(), (201, Some("committed")));
    stage.nothing_is_stuck().await;
}

on_each_backend!(
    a_lease_is_released_inside_the_commit,
    a_lease_is_released_after_the_rollback,
    a_resource_without_a_database_can_refuse,
    outstanding_resources_are_listed,
);
