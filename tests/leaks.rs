//! Guards that outlive their handler: in a task, in a body, or in an upgrade.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rocket::http::Status;
use rocket::response::stream::TextStream;
use rocket::response::{self, Responder};
use rocket::tokio::sync::Notify;
use rocket::tokio::time::timeout;
use rocket::{Request, Response, State, get, post, routes};
use rocket_tx::tx::{Action, Step};
use rocket_tx::{Begin, Error, Observer, Settlement, Tx};

use crate::support::stage::{note, run};
use crate::support::{Audit, Backend, In, Main, Stage, eventually};

const LEAKED: (u16, Option<&str>) = (500, Some("rolled-back"));

/// Keeps a task that holds a guard waiting until the test lets it continue.
#[derive(Default)]
struct Latch {
    go_on: Notify,
    done: Notify,
}

impl Latch {
    /// Lets the task continue, and waits until it has ended.
    async fn open(&self) {
        self.go_on.notify_one();
        timeout(Duration::from_secs(60), self.done.notified())
            .await
            .expect("the task ends without a panic");
    }
}

/// A task keeps the guard and writes through it long after the response was sent.
#[post("/task")]
async fn task(
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
    latch: &State<Arc<Latch>>,
) -> Result<Status, Error> {
    note(&mut main, "in time").await?;
    note(&mut audit, "in time").await?;
    let latch = Arc::clone(latch);
    rocket::tokio::spawn(async move {
        latch.go_on.notified().await;
        let _too_late = note(&mut main, "too late").await;
        // SQLite refuses the COMMIT; on Postgres the session has been ended.
        assert!(run(&mut main, "COMMIT").await.is_err());
        drop(main);
        latch.done.notify_one();
    });
    Ok(Status::Created)
}

/// A task begins a transaction after its request has ended.
#[post("/late")]
async fn late(main: Begin<Main>, latch: &State<Arc<Latch>>) -> Result<Status, Error> {
    note(&mut *main.begin().await?, "in time").await?;
    let latch = Arc::clone(latch);
    rocket::tokio::spawn(async move {
        latch.go_on.notified().await;
        assert!(matches!(main.begin().await, Err(Error::Settled)));
        latch.done.notify_one();
    });
    Ok(Status::Created)
}

/// The body writes through the guard while it is streamed.
#[get("/body")]
async fn body(mut main: Tx<Main>) -> Result<TextStream![&'static str], Error> {
    note(&mut main, "streaming").await?;
    Ok(TextStream! {
        yield "one, ";
        let _through_the_guard = note(&mut main, "from the body").await;
        yield "two";
    })
}

/// Holds the guard until the response is dropped.
struct Upgrade {
    _held: Tx<Main>,
}

#[rocket::async_trait]
impl rocket::data::IoHandler for Upgrade {
    async fn io(self: std::pin::Pin<Box<Self>>, _: rocket::data::IoStream) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'r> Responder<'r, 'r> for Upgrade {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'r> {
        Response::build().upgrade("raw", self).ok()
    }
}

#[get("/upgrade")]
async fn upgrade(mut main: Tx<Main>) -> Result<Upgrade, Error> {
    note(&mut main, "before the upgrade").await?;
    Ok(Upgrade { _held: main })
}

/// Leaks both guards: the body holds the transaction of one database, a task that of the other.
#[get("/both")]
async fn both(
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
    latch: &State<Arc<Latch>>,
) -> Result<TextStream![&'static str], Error> {
    note(&mut main, "streaming").await?;
    note(&mut audit, "kept").await?;
    let latch = Arc::clone(latch);
    rocket::tokio::spawn(async move {
        latch.go_on.notified().await;
        drop(audit);
        latch.done.notify_one();
    });
    Ok(TextStream! {
        let _through_the_guard = note(&mut main, "from the body").await;
        yield "never sent";
    })
}

/// The settlement steps that were taken before the response left. The test asserts on them outside
/// of the observer, because a panic in an observer is caught.
#[derive(Default)]
struct Steps(Arc<Mutex<Vec<(Action, String)>>>);

impl Observer for Steps {
    fn before(&self, step: &Step<'_, '_>) {
        self.0.lock().push((step.action, step.resource.to_owned()));
    }
}

async fn stage(backend: Backend) -> (Stage, Arc<Latch>) {
    let latch = Arc::new(Latch::default());
    let managed = Arc::clone(&latch);
    let stage = Stage::new(backend, |rocket| {
        rocket
            .manage(managed)
            .mount("/", routes![task, late, body, upgrade, both])
            .attach(Settlement::new())
    })
    .await;
    (stage, latch)
}

async fn a_guard_leaked_into_a_task_is_condemned_until_the_task_ends(backend: Backend) {
    let (stage, latch) = stage(backend).await;
    let response = stage.send("POST /task").await;
    assert_eq!(response.summary(), LEAKED);
    assert!(
        response.body.contains("urn:rocket_tx:problem:leaked"),
        "{}",
        response.body
    );

    // The transaction of `audit` was checked in at once. That of `main` is still held by the task,
    // and its entry shows the request and the route.
    let outstanding = stage.outstanding();
    assert_eq!(outstanding.len(), 1, "{outstanding:?}");
    let entry = &outstanding[0];
    assert!(entry.condemned && entry.checked_out, "{entry:?}");
    assert_eq!(entry.resource, "main");
    assert_eq!(entry.guard, "Tx<Main>");
    assert_eq!(entry.route.as_deref(), Some("task"));
    assert_eq!(
        Some(entry.request.as_str()),
        response.header("x-request-id")
    );

    latch.open().await;
    stage.nothing_is_stuck().await;
    assert_eq!(stage.notes().await, [""; 0]);
}

async fn a_guard_held_by_the_body_is_dropped_and_rolled_back(backend: Backend) {
    let observer = Steps::default();
    let steps = Arc::clone(&observer.0);
    let stage = Stage::new(backend, |rocket| {
        rocket
            .mount("/", routes![body, upgrade])
            .attach(Settlement::new().observer(observer))
    })
    .await;
    for path in ["body", "upgrade"] {
        let response = stage.send(&format!("GET /{path}")).await;
        assert_eq!(response.summary(), LEAKED, "{path}");
        assert!(!response.body.contains("one"), "{}", response.body);
        assert!(
            stage.outstanding().is_empty(),
            "{path}: the guard is dropped with the response"
        );
        assert_eq!(
            std::mem::take(&mut *steps.lock()),
            [(Action::Rollback, "main".to_owned())],
            "{path}: its transaction is rolled back"
        );
        assert_eq!(stage.notes().await, [""; 0], "{path}");
    }
}

async fn a_body_and_a_task_may_leak_in_one_request(backend: Backend) {
    let (stage, latch) = stage(backend).await;
    let response = stage.send("GET /both").await;
    assert_eq!(response.summary(), LEAKED);
    let held: Vec<_> = stage
        .outstanding()
        .into_iter()
        .map(|entry| entry.resource)
        .collect();
    assert_eq!(held, ["audit"]);
    latch.open().await;
    stage.nothing_is_stuck().await;
    assert_eq!(stage.notes().await, [""; 0]);
}

async fn a_begin_after_the_verdict_is_refused(backend: Backend) {
    let (stage, latch) = stage(backend).await;
    let response = stage.send("POST /late").await;
    assert_eq!(
        response.summary(),
        (201, Some("committed")),
        "a guard without a transaction is no leak"
    );
    latch.open().await;
    stage.nothing_is_stuck().await;
    assert_eq!(stage.notes().await, ["in time"]);
}

async fn a_leak_that_never_ends_does_not_block_shutdown(backend: Backend) {
    let latch = Arc::new(Latch::default());
    let stage = Stage::with(
        backend,
        &[("shutdown.grace", "1"), ("shutdown.mercy", "1")],
        |rocket| {
            rocket
                .manage(latch)
                .mount("/", routes![task])
                .attach(Settlement::new())
        },
    )
    .await;
    assert_eq!(stage.send("POST /task").await.summary(), LEAKED);
    eventually("only the leak is left", async || {
        stage.outstanding().len() == 1
    })
    .await;
    let databases = timeout(Duration::from_secs(60), stage.close())
        .await
        .expect("shutdown is not blocked");
    assert_eq!(databases.notes(In::Main).await, [""; 0]);
}

on_each_backend!(
    a_guard_leaked_into_a_task_is_condemned_until_the_task_ends,
    a_guard_held_by_the_body_is_dropped_and_rolled_back,
    a_body_and_a_task_may_leak_in_one_request,
    a_begin_after_the_verdict_is_refused,
    a_leak_that_never_ends_does_not_block_shutdown,
);
