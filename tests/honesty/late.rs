//! The library can be used before the fairing `Settlement` runs. Calls after the verdict fail with
//! `Error::Settled`.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rocket::fairing::AdHoc;
use rocket::futures::stream;
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome};
use rocket::response::stream::ReaderStream;
use rocket::response::{self, Responder};
use rocket::tokio::task::JoinHandle;
use rocket::tokio::time::sleep;
use rocket::{Request, catch, catchers, get, post, routes};
use rocket_tx::{Begin, Error, Observer, Outstanding, Read, RequestId, Settlement, Tx};

use crate::support::stage::{note, run};
use crate::support::{Audit, Backend, Main, Stage};

#[post("/id")]
async fn id(id: RequestId, mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<String, Error> {
    note(&mut main, "written").await?;
    note(&mut audit, "written").await?;
    Ok(id.to_string())
}

#[get("/read")]
async fn read(mut read: Read<Main>) -> Result<&'static str, Error> {
    run(&mut read, "SELECT 1").await?;
    Ok("read")
}

/// A fairing reads the request's id before `Settlement` has seen the request.
async fn the_request_id_is_available_before_settlement(backend: Backend) {
    let stage = Stage::new(backend, |rocket| {
        rocket
            .attach(AdHoc::on_request("Early", |request, _| {
                Box::pin(async move {
                    let id = request.guard::<RequestId>().await.unwrap();
                    request.local_cache(|| id.to_string());
                })
            }))
            .attach(Settlement::new())
            .attach(AdHoc::on_response("Early", |request, response| {
                Box::pin(async move {
                    let id: &String = request.local_cache(|| "none".to_owned());
                    response.set_raw_header("X-Early", id.clone());
                })
            }))
            .mount("/", routes![id])
    })
    .await;
    let response = stage.send("POST /id").await;
    assert_eq!(
        response.summary(),
        (200, Some("committed")),
        "{}",
        response.body
    );
    for early in [response.header("x-early"), response.header("x-request-id")] {
        assert_eq!(early, Some(&*response.body), "one id for a request");
    }
    assert_eq!(stage.notes().await, ["written", "written"]);
}

/// An observer that panics in each of its methods.
struct Panics;

impl Observer for Panics {
    fn began(&self, _: RequestId, _: &str, _: Duration) {
        panic!("in `began`")
    }

    fn read_acquired(&self, _: RequestId, _: &str, _: Duration) {
        panic!("in `read_acquired`")
    }

    fn before(&self, _: &rocket_tx::tx::Step<'_, '_>) {
        panic!("in `before`")
    }

    fn after(&self, _: &rocket_tx::tx::Step<'_, '_>, _: Result<(), &Error>, _: Duration) {
        panic!("in `after`")
    }

    fn settled(&self, _: &rocket::Request<'_>, _: &rocket_tx::tx::SettlementReport) {
        panic!("in `settled`")
    }

    fn responded(&self, _: &Request<'_>, _: &response::Response<'_>) {
        panic!("in `responded`")
    }
}

#[post("/read-first")]
async fn read_first(read: Read<Audit>, main: rocket_tx::Begin<Main>) -> Result<Status, Error> {
    drop(read);
    note(&mut *main.begin().await?, "written").await?;
    Ok(Status::Created)
}

async fn a_panicking_observer_does_not_affect_requests(backend: Backend) {
    let stage = Stage::new(backend, |rocket| {
        rocket
            .mount("/", routes![id, read, read_first])
            .attach(Settlement::new().observer(Panics))
    })
    .await;
    assert_eq!(stage.send("GET /read").await.summary(), (200, None));
    for (path, status) in [("id", 200), ("read-first", 201)] {
        let response = stage.send(&format!("POST /{path}")).await;
        assert_eq!(response.summary(), (status, Some("committed")), "{path}");
        assert!(!stage.notes().await.is_empty(), "{path}");
        stage.databases.empty().await;
    }
    stage.nothing_is_stuck().await;
}

/// A resource that always succeeds.
struct Joins;

#[rocket::async_trait]
impl rocket_tx::Resource for Joins {
    fn name(&self) -> std::borrow::Cow<'_, str> {
        "joins".into()
    }

    async fn commit(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Calls each method of the registry that changes it, and describes each result in a word.
async fn call_all(outstanding: &Outstanding) -> Vec<&'static str> {
    let results = [
        outstanding.join(Joins),
        outstanding.doom(Status::Conflict, "too late"),
        outstanding.after_commit(async {}),
        outstanding.after_rollback(async {}),
    ];
    results
        .iter()
        .map(|result| match result {
            Ok(()) => "ok",
            Err(Error::Settled) => "settled",
            Err(_) => "another error",
        })
        .collect()
}

const SETTLED: [&str; 4] = ["settled"; 4];

/// The task of a request, which returns the results of its calls.
type Task = Arc<Mutex<Option<JoinHandle<Vec<&'static str>>>>>;

/// A guard that passes the registry to a task, which uses it once the request is settled.
struct Lingers;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Lingers {
    type Error = Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
        let outstanding = Arc::clone(Outstanding::of(request).unwrap());
        let task: &Task = request.rocket().state().unwrap();
        *task.lock() = Some(rocket::tokio::spawn(async move {
            while !outstanding.is_settled() {
                sleep(Duration::from_millis(1)).await;
            }
            call_all(&outstanding).await
        }));
        Outcome::Success(Self)
    }
}

#[post("/lingers?<writes>")]
async fn lingers(writes: bool, _lingers: Lingers, main: Begin<Main>) -> Result<Status, Error> {
    if writes {
        note(&mut *main.begin().await?, "written").await?;
    }
    Ok(Status::Created)
}

async fn calls_after_the_verdict_fail_as_settled(backend: Backend) {
    let task = Task::default();
    let managed = Arc::clone(&task);
    let stage = Stage::new(backend, |rocket| {
        rocket
            .manage(managed)
            .mount("/", routes![lingers])
            .attach(Settlement::new())
    })
    .await;
    for (writes, outcome) in [(true, Some("committed")), (false, None)] {
        let response = stage.send(&format!("POST /lingers?writes={writes}")).await;
        assert_eq!(response.summary(), (201, outcome));
        let running = task.lock().take().unwrap();
        assert_eq!(running.await.unwrap(), SETTLED, "{writes}");
    }
    stage.nothing_is_stuck().await;
}

/// A body that uses the registry only when it is read.
struct LateBody;

impl<'r> Responder<'r, 'r> for LateBody {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'r> {
        let body = stream::once(async move {
            let mut results = call_all(Outstanding::of(request).unwrap()).await;
            results.push(match request.guard::<Tx<Main>>().await {
                Outcome::Error((_, Error::Settled)) => "settled",
                _ => "another result",
            });
            std::io::Cursor::new(results.join(" "))
        });
        let body = ReaderStream::from(Box::pin(body));
        rocket::Response::build().streamed_body(body).ok()
    }
}

#[get("/late-body")]
fn late_body() -> LateBody {
    LateBody
}

async fn calls_from_a_body_fail_as_settled(backend: Backend) {
    let stage = Stage::new(backend, |rocket| {
        rocket
            .mount("/", routes![late_body])
            .attach(Settlement::new())
    })
    .await;
    let response = stage.send("GET /late-body").await;
    assert_eq!(response.summary(), (200, None));
    assert_eq!(response.body, ["settled"; 5].join(" "));
    stage.nothing_is_stuck().await;
}

/// Writes, and returns a success.
#[catch(400)]
async fn writes_and_succeeds(request: &Request<'_>) -> (Status, String) {
    let written = match request.guard::<Tx<Main>>().await {
        Outcome::Success(mut main) => note(&mut main, "written").await.map_err(Error::from),
        Outcome::Error((_, error)) => Err(error),
        Outcome::Forward(_) => Err(Error::NotFound),
    };
    match written {
        Ok(()) => (Status::Ok, "written".into()),
        Err(error) => (error.status(), error.to_string()),
    }
}

/// Rocket calls a catcher immediately, and no fairing runs for the request.
async fn a_request_that_rocket_cannot_read_writes_nothing(backend: Backend) {
    let stage = Stage::new(backend, |rocket| {
        rocket
            .register("/", catchers![writes_and_succeeds])
            .attach(Settlement::new())
    })
    .await;
    let response = stage.send("NONSENSE /anywhere").await;
    assert_eq!(response.summary(), (500, None), "{}", response.body);
    assert!(response.body.contains("no fairing"), "{}", response.body);
    assert_eq!(stage.notes().await, [""; 0]);
    stage.nothing_is_stuck().await;
}

on_each_backend!(
    a_request_that_rocket_cannot_read_writes_nothing,
    calls_after_the_verdict_fail_as_settled,
    calls_from_a_body_fail_as_settled,
    the_request_id_is_available_before_settlement,
    a_panicking_observer_does_not_affect_requests,
);
