//! What comes before `Settlement` harms nothing, and what comes after the verdict is told so.

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

/// A fairing asks for the request's id before `Settlement` has seen the request.
async fn the_id_may_be_asked_for_before_settlement(backend: Backend) {
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

/// Panics wherever it is told of anything.
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

async fn an_observer_that_panics_harms_no_request(backend: Backend) {
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

/// A resource, as good as any.
struct Lamb;

#[rocket::async_trait]
impl rocket_tx::Resource for Lamb {
    fn name(&self) -> std::borrow::Cow<'_, str> {
        "lamb".into()
    }

    async fn commit(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// What the registry says to everything that may be asked of it, each in a word.
async fn ask(outstanding: &Outstanding) -> Vec<&'static str> {
    let responses = [
        outstanding.join(Lamb),
        outstanding.doom(Status::Conflict, "too late"),
        outstanding.after_commit(async {}),
        outstanding.after_rollback(async {}),
    ];
    responses
        .iter()
        .map(|response| match response {
            Ok(()) => "yes",
            Err(Error::Settled) => "settled",
            Err(_) => "another error",
        })
        .collect()
}

const SETTLED: [&str; 4] = ["settled"; 4];

/// The task of a request, and what it was told.
type Told = Arc<Mutex<Option<JoinHandle<Vec<&'static str>>>>>;

/// Leaves the registry to a task, which asks once the request is settled.
struct Lingers;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Lingers {
    type Error = Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
        let outstanding = Arc::clone(Outstanding::of(request).unwrap());
        let told: &Told = request.rocket().state().unwrap();
        *told.lock() = Some(rocket::tokio::spawn(async move {
            while !outstanding.is_settled() {
                sleep(Duration::from_millis(1)).await;
            }
            ask(&outstanding).await
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

async fn what_comes_after_the_verdict_is_told_so(backend: Backend) {
    let told = Told::default();
    let managed = Arc::clone(&told);
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
        let task = told.lock().take().unwrap();
        assert_eq!(task.await.unwrap(), SETTLED, "{writes}");
    }
    stage.nothing_is_stuck().await;
}

/// A body that asks for the registry first when it is read.
struct Asks;

impl<'r> Responder<'r, 'r> for Asks {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'r> {
        let body = stream::once(async move {
            let mut responses = ask(Outstanding::of(request).unwrap()).await;
            responses.push(match request.guard::<Tx<Main>>().await {
                Outcome::Error((_, Error::Settled)) => "settled",
                _ => "another answer",
            });
            std::io::Cursor::new(responses.join(" "))
        });
        let body = ReaderStream::from(Box::pin(body));
        rocket::Response::build().streamed_body(body).ok()
    }
}

#[get("/asks")]
fn asks() -> Asks {
    Asks
}

async fn a_body_comes_after_the_verdict_too(backend: Backend) {
    let stage = Stage::new(backend, |rocket| {
        rocket.mount("/", routes![asks]).attach(Settlement::new())
    })
    .await;
    let response = stage.send("GET /asks").await;
    assert_eq!(response.summary(), (200, None));
    assert_eq!(response.body, ["settled"; 5].join(" "));
    stage.nothing_is_stuck().await;
}

/// Writes, and calls it a success.
#[catch(400)]
async fn writes_and_soothes(request: &Request<'_>) -> (Status, String) {
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

/// Rocket asks a catcher at once, and no fairing ever sees the request.
async fn a_request_that_rocket_cannot_read_writes_nothing(backend: Backend) {
    let stage = Stage::new(backend, |rocket| {
        rocket
            .register("/", catchers![writes_and_soothes])
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
    what_comes_after_the_verdict_is_told_so,
    a_body_comes_after_the_verdict_too,
    the_id_may_be_asked_for_before_settlement,
    an_observer_that_panics_harms_no_request,
);
