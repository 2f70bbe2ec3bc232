//! What comes before `Settlement` harms nothing, and what comes after the verdict is told so.

use std::time::Duration;

use rocket::fairing::AdHoc;
use rocket::http::Status;
use rocket::{get, post, routes};
use rocket_tx::{Error, Observer, Read, RequestId, Settlement, Tx};

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
    let answer = stage.send("POST /id").await;
    assert_eq!(answer.told(), (200, Some("committed")), "{}", answer.body);
    for early in [answer.header("x-early"), answer.header("x-request-id")] {
        assert_eq!(early, Some(&*answer.body), "one id for a request");
    }
    assert_eq!(stage.notes().await, ["written", "written"]);
}

/// Panics wherever it is told of anything.
struct Panics;

impl Observer for Panics {
    fn began(&self, _: RequestId, _: &str, _: Duration) {
        panic!("in `began`")
    }

    fn lent(&self, _: RequestId, _: &str, _: Duration) {
        panic!("in `lent`")
    }

    fn before(&self, _: &rocket_tx::tx::Step<'_, '_>) {
        panic!("in `before`")
    }

    fn after(&self, _: &rocket_tx::tx::Step<'_, '_>, _: Result<(), &Error>, _: Duration) {
        panic!("in `after`")
    }

    fn settled(&self, _: &rocket::Request<'_>, _: &rocket_tx::tx::Settled) {
        panic!("in `settled`")
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
    assert_eq!(stage.send("GET /read").await.told(), (200, None));
    for (path, status) in [("id", 200), ("read-first", 201)] {
        let answer = stage.send(&format!("POST /{path}")).await;
        assert_eq!(answer.told(), (status, Some("committed")), "{path}");
    }
    assert_eq!(stage.notes().await, ["written", "written", "written"]);
    stage.nothing_is_stuck().await;
}

on_each_backend!(
    the_id_may_be_asked_for_before_settlement,
    an_observer_that_panics_harms_no_request,
);
