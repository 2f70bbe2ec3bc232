//! A guard that outlives its handler: in a task, in a body, in an upgrade.

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

/// Lets a task that holds a guard go on.
#[derive(Default)]
struct Latch {
    go_on: Notify,
    done: Notify,
}

impl Latch {
    /// Lets the task go on, and waits for its end.
    async fn open(&self) {
        self.go_on.notify_one();
        timeout(Duration::from_secs(60), self.done.notified())
            .await
            .expect("the task has ended well");
    }
}

/// A task keeps the guard, and writes through it when the answer has long left.
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
        // SQLite refuses it; on Postgres the session is gone.
        assert!(run(&mut main, "COMMIT").await.is_err());
        drop(main);
        latch.done.notify_one();
    });
    Ok(Status::Created)
}

/// A task asks for a transaction when its request is over.
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

/// The body reads through the guard.
#[get("/body")]
async fn body(mut main: Tx<Main>) -> Result<TextStream![&'static str], Error> {
    note(&mut main, "streaming").await?;
    Ok(TextStream! {
        yield "one, ";
        let _through_the_guard = note(&mut main, "from the body").await;
        yield "two";
    })
}

/// Holds the guard for as long as the response lives.
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

/// Both: the body frees one database, a task keeps the other.
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

/// What was done before the answer left. A panic in an observer is caught: it is for the test to
/// look at the steps.
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

async fn a_guard_leaked_into_a_task_is_condemned_until_it_ends(backend: Backend) {
    let (stage, latch) = stage(backend).await;
    let response = stage.send("POST /task").await;
    assert_eq!(response.summary(), LEAKED);
    assert!(
        response.body.contains("urn:rocket_tx:problem:leaked"),
        "{}",
        response.body
    );

    // The other database was given back at once; this one is held, and everybody can see by whom.
    let outstanding = stage.outstanding();
    assert_eq!(outstanding.len(), 1, "{outstanding:?}");
    let line = &outstanding[0];
    assert!(line.condemned && line.checked_out, "{line:?}");
    assert_eq!(line.resource, "main");
    assert_eq!(line.guard, "Tx<Main>");
    assert_eq!(line.route.as_deref(), Some("task"));
    assert_eq!(Some(line.request.as_str()), response.header("x-request-id"));

    latch.open().await;
    stage.nothing_is_stuck().await;
    assert_eq!(stage.notes().await, [""; 0]);
}

async fn a_guard_that_the_body_holds_is_taken_back(backend: Backend) {
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
            "{path}: it was freed with the response"
        );
        assert_eq!(
            std::mem::take(&mut *steps.lock()),
            [(Action::Rollback, "main".to_owned())],
            "{path}: and rolled back"
        );
        assert_eq!(stage.notes().await, [""; 0], "{path}");
    }
}

async fn a_body_and_a_task_at_once(backend: Backend) {
    let (stage, latch) = stage(backend).await;
    let response = stage.send("GET /both").await;
    assert_eq!(response.summary(), LEAKED);
    let held: Vec<_> = stage
        .outstanding()
        .into_iter()
        .map(|line| line.resource)
        .collect();
    assert_eq!(held, ["audit"]);
    latch.open().await;
    stage.nothing_is_stuck().await;
    assert_eq!(stage.notes().await, [""; 0]);
}

async fn what_comes_after_the_verdict_is_refused(backend: Backend) {
    let (stage, latch) = stage(backend).await;
    let response = stage.send("POST /late").await;
    assert_eq!(
        response.summary(),
        (201, Some("committed")),
        "a guard that holds nothing leaks nothing"
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
    a_guard_leaked_into_a_task_is_condemned_until_it_ends,
    a_guard_that_the_body_holds_is_taken_back,
    a_body_and_a_task_at_once,
    what_comes_after_the_verdict_is_refused,
    a_leak_that_never_ends_does_not_block_shutdown,
);
