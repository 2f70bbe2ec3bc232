//! The verdict: the response that the client receives decides whether the databases commit.

use rocket::http::{Method, Status};
use rocket::request::{FromRequest, Outcome};
use rocket::response::{self, Redirect, Responder};
use rocket::{Build, Request, Rocket, catch, catchers, get, post, routes};
use rocket_tx::{Begin, Commit, Error, Outstanding, Rollback, Settlement, Tx};

use crate::support::stage::note;
use crate::support::{Audit, Backend, In, Main, Stage};

const COMMITTED: Option<&str> = Some("committed");
const ROLLED_BACK: Option<&str> = Some("rolled-back");

/// A guard that writes to both databases and checks them in again.
struct Wrote;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Wrote {
    type Error = Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
        async fn write(request: &Request<'_>) -> Result<Wrote, Error> {
            let main = request
                .guard::<Begin<Main>>()
                .await
                .success_or(Error::NotFound)?;
            let audit = request
                .guard::<Begin<Audit>>()
                .await
                .success_or(Error::NotFound)?;
            note(&mut *main.begin().await?, "guard").await?;
            note(&mut *audit.begin().await?, "guard").await?;
            Ok(Wrote)
        }

        match write(request).await {
            Ok(wrote) => Outcome::Success(wrote),
            Err(error) => Outcome::Error((error.status(), error)),
        }
    }
}

/// A guard of the service that refuses every request.
struct Bouncer;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Bouncer {
    type Error = ();

    async fn from_request(_: &'r Request<'_>) -> Outcome<Self, ()> {
        Outcome::Error((Status::Unauthorized, ()))
    }
}

struct PanickingGuard;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for PanickingGuard {
    type Error = ();

    async fn from_request(_: &'r Request<'_>) -> Outcome<Self, ()> {
        panic!("in a guard")
    }
}

struct Forwards;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Forwards {
    type Error = ();

    async fn from_request(_: &'r Request<'_>) -> Outcome<Self, ()> {
        Outcome::Forward(Status::NotFound)
    }
}

struct PanickingResponder;

impl<'r> Responder<'r, 'static> for PanickingResponder {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'static> {
        panic!("in a responder")
    }
}

/// A responder that fails.
struct Fails(Status);

impl<'r> Responder<'r, 'static> for Fails {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'static> {
        Err(self.0)
    }
}

async fn write(main: &mut Tx<Main>, audit: &mut Tx<Audit>) -> Result<(), Error> {
    note(main, "handler").await?;
    note(audit, "handler").await?;
    Ok(())
}

#[post("/status/<code>")]
async fn status(
    code: u16,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<(Status, &'static str), Error> {
    write(&mut main, &mut audit).await?;
    Ok((Status::new(code), "from the handler"))
}

#[post("/catcher/<code>")]
async fn catcher(code: u16, mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<Fails, Error> {
    write(&mut main, &mut audit).await?;
    Ok(Fails(Status::new(code)))
}

#[post("/panic/handler")]
async fn panic_in_handler(mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<(), Error> {
    write(&mut main, &mut audit).await?;
    panic!("in a handler")
}

#[post("/panic/late")]
async fn panic_without_a_guard(mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<(), Error> {
    write(&mut main, &mut audit).await?;
    drop((main, audit));
    panic!("after the last guard was dropped")
}

/// The handler ignores the panic of its task.
#[post("/panic/task")]
async fn panic_in_a_task(mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<Status, Error> {
    write(&mut main, &mut audit).await?;
    let task = rocket::tokio::spawn(async move {
        let _held = &main;
        panic!("in a task that holds a guard");
    });
    assert!(task.await.is_err());
    Ok(Status::Created)
}

#[post("/panic/guard")]
fn panic_in_guard(_wrote: Wrote, _panics: PanickingGuard) {}

#[post("/panic/responder")]
fn panic_in_responder(_wrote: Wrote) -> PanickingResponder {
    PanickingResponder
}

#[post("/bouncer")]
fn bouncer(_wrote: Wrote, _bouncer: Bouncer) {}

#[post("/overlapping")]
fn overlapping(_wrote: Wrote, _one: Tx<Main>, _other: Tx<Main>) {}

#[post("/commit/<code>")]
async fn commit(
    code: u16,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<Commit<(Status, ())>, Error> {
    write(&mut main, &mut audit).await?;
    Ok(Commit((Status::new(code), ())))
}

#[post("/commit-failing/<code>")]
async fn commit_failing(
    code: u16,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<Commit<Fails>, Error> {
    write(&mut main, &mut audit).await?;
    Ok(Commit(Fails(Status::new(code))))
}

#[post("/rollback/<code>")]
async fn rollback(
    code: u16,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<Rollback<(Status, ())>, Error> {
    write(&mut main, &mut audit).await?;
    Ok(Rollback((Status::new(code), ())))
}

/// A dry run of a handler that commits.
#[post("/dry-run")]
async fn dry_run(
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<Rollback<Commit<Status>>, Error> {
    write(&mut main, &mut audit).await?;
    Ok(Rollback(Commit(Status::Ok)))
}

#[post("/doom/<code>")]
async fn doom(
    code: u16,
    outstanding: &Outstanding,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<Commit<(Status, &'static str)>, Error> {
    write(&mut main, &mut audit).await?;
    outstanding.doom(Status::Conflict, "it was too late")?;
    outstanding.doom(Status::BadGateway, "the first doom counts")?;
    Ok(Commit((Status::new(code), "from the handler")))
}

#[get("/get")]
async fn writing_get(mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<&'static str, Error> {
    write(&mut main, &mut audit).await?;
    Ok("written")
}

#[post("/forwarded/<_>")]
fn forwards(_wrote: Wrote, _forwards: Forwards) {}

#[post("/forwarded/<code>", rank = 2)]
async fn forwarded(
    code: u16,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<(Status, String), Error> {
    write(&mut main, &mut audit).await?;
    let seen = rocket_tx::with_backend!(main, |db| {
        sqlx::query_scalar("SELECT text FROM notes ORDER BY text")
            .fetch_all(db)
            .await?
    });
    let seen: Vec<String> = seen;
    Ok((Status::new(code), seen.join(", ")))
}

#[catch(default)]
fn to_login() -> Redirect {
    Redirect::to("/login")
}

#[catch(default)]
fn all_is_well() -> (Status, &'static str) {
    (Status::Ok, "all is well")
}

/// Mounts all routes three times: below `/`; below `/redirected`, where a catcher replaces every
/// failure with a redirect; and below `/soothed`, where a catcher replaces it with a 200.
fn build(rocket: Rocket<Build>) -> Rocket<Build> {
    let routes = routes![
        status,
        catcher,
        panic_in_handler,
        panic_without_a_guard,
        panic_in_a_task,
        panic_in_guard,
        panic_in_responder,
        bouncer,
        overlapping,
        commit,
        commit_failing,
        rollback,
        dry_run,
        doom,
        writing_get,
        forwards,
        forwarded,
    ];
    rocket
        .mount("/", routes.clone())
        .mount("/redirected", routes.clone())
        .mount("/soothed", routes)
        .register("/redirected", catchers![to_login])
        .register("/soothed", catchers![all_is_well])
}

async fn stage(backend: Backend) -> Stage {
    Stage::new(backend, |rocket| build(rocket).attach(Settlement::new())).await
}

/// Checks that both databases have the row, or neither, and then empties them.
async fn assert_stored(stage: &Stage, expected: bool, context: &str) {
    for database in [In::Main, In::Audit] {
        let notes = stage.databases.notes(database).await;
        assert_eq!(
            !notes.is_empty(),
            expected,
            "{context}: {notes:?} in {database:?}"
        );
        stage.databases.execute(database, "DELETE FROM notes").await;
    }
}

async fn below_400_commits_and_the_rest_rolls_back(backend: Backend) {
    let stage = stage(backend).await;
    for code in [200, 201, 204, 303, 399] {
        let response = stage.send(&format!("POST /status/{code}")).await;
        assert_eq!(response.summary(), (code, COMMITTED));
        assert_stored(&stage, true, "below 400").await;
    }
    for code in [400, 404, 409, 500, 502, 599] {
        let response = stage.send(&format!("POST /status/{code}")).await;
        assert_eq!(response.summary(), (code, ROLLED_BACK));
        assert_eq!(
            response.body, "from the handler",
            "the handler's response is not changed"
        );
        assert_stored(&stage, false, "from 400").await;
    }
    stage.nothing_is_stuck().await;
}

async fn a_responder_that_fails_rolls_back(backend: Backend) {
    let stage = stage(backend).await;
    for code in [404, 500] {
        let response = stage.send(&format!("POST /catcher/{code}")).await;
        assert_eq!(response.summary(), (code, ROLLED_BACK));
        assert_eq!(
            response.header("content-type"),
            Some("application/problem+json")
        );
        assert_stored(&stage, false, "a responder failed").await;
    }
}

async fn the_status_of_a_catcher_decides(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /redirected/catcher/404").await;
    assert_eq!(response.summary(), (303, COMMITTED));
    assert_stored(&stage, true, "the catcher responds with 303").await;
}

async fn a_panic_rolls_back_wherever_it_happens(backend: Backend) {
    let stage = stage(backend).await;
    for place in ["handler", "late", "task", "guard", "responder"] {
        let response = stage.send(&format!("POST /panic/{place}")).await;
        assert_eq!(response.summary(), (500, ROLLED_BACK), "{place}");
        assert_stored(&stage, false, place).await;
    }
    stage.nothing_is_stuck().await;
}

/// A catcher may turn a panic into another failure, but not into a success or a redirect.
async fn a_panic_is_never_a_success(backend: Backend) {
    let stage = stage(backend).await;
    for place in [
        "panic/handler",
        "panic/late",
        "panic/guard",
        "panic/responder",
        "overlapping",
    ] {
        for catcher in ["soothed", "redirected"] {
            let path = format!("/{catcher}/{place}");
            let response = stage.send(&format!("POST {path}")).await;
            assert_eq!(response.summary(), (500, ROLLED_BACK), "{path}");
            assert!(
                !response.body.contains("all is well"),
                "{path}: {response:?}"
            );
            assert_eq!(response.header("location"), None, "{path}");
            assert_stored(&stage, false, &path).await;
        }
    }
    stage.nothing_is_stuck().await;
}

async fn a_guard_that_fails_after_another_wrote_rolls_back(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /bouncer").await;
    assert_eq!(response.summary(), (401, ROLLED_BACK));
    assert_stored(&stage, false, "a guard of the service").await;
}

async fn overlapping_guards_get_a_clear_error(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /overlapping").await;
    assert_eq!(response.summary(), (500, ROLLED_BACK));
    let problem: rocket::serde::json::Value = response.json();
    assert_eq!(problem["type"], "urn:rocket_tx:problem:checked-out");
    assert_stored(&stage, false, "overlapping").await;

    let response = stage.send("POST /redirected/overlapping").await;
    assert_eq!(
        response.summary(),
        (500, ROLLED_BACK),
        "a catcher cannot turn it into a success"
    );
    assert_stored(&stage, false, "overlapping, redirected").await;
    stage.nothing_is_stuck().await;
}

async fn the_type_commit_commits_below_500(backend: Backend) {
    let stage = stage(backend).await;
    for (path, code, outcome) in [
        ("commit", 404, COMMITTED),
        ("commit", 200, COMMITTED),
        ("commit", 500, ROLLED_BACK),
        ("commit-failing", 404, COMMITTED),
        ("commit-failing", 500, ROLLED_BACK),
    ] {
        let response = stage.send(&format!("POST /{path}/{code}")).await;
        assert_eq!(response.summary(), (code, outcome), "{path}");
        assert_stored(&stage, outcome == COMMITTED, path).await;
    }
}

async fn the_type_rollback_rolls_back_a_200(backend: Backend) {
    let stage = stage(backend).await;
    for code in [200, 303, 404] {
        let response = stage.send(&format!("POST /rollback/{code}")).await;
        assert_eq!(response.summary(), (code, ROLLED_BACK));
        assert_stored(&stage, false, "Rollback").await;
    }
    let response = stage.send("POST /dry-run").await;
    assert_eq!(response.summary(), (200, ROLLED_BACK));
    assert_stored(&stage, false, "Rollback around Commit").await;
}

async fn a_doomed_request_never_succeeds(backend: Backend) {
    let stage = stage(backend).await;
    for success in [200, 303] {
        let response = stage.send(&format!("POST /doom/{success}")).await;
        assert_eq!(response.summary(), (409, ROLLED_BACK));
        assert!(
            response.body.contains("it was too late"),
            "{}",
            response.body
        );
        assert_stored(&stage, false, "doom").await;
    }
    let response = stage.send("POST /doom/418").await;
    assert_eq!(response.summary(), (418, ROLLED_BACK));
    assert_eq!(
        response.body, "from the handler",
        "a failure is not changed"
    );
    assert_stored(&stage, false, "doom").await;
}

async fn a_veto_rolls_back_and_leaves_the_response(backend: Backend) {
    let stage = Stage::new(backend, |rocket| {
        let settlement = Settlement::new().veto(|vetoed| {
            assert!(vetoed.response.status().code != 202, "vetoes may panic");
            vetoed.request.uri().path().ends_with("/201")
        });
        build(rocket).attach(settlement)
    })
    .await;
    for (path, expected) in [
        ("status/200", (200, COMMITTED)),
        ("status/201", (201, ROLLED_BACK)),
        // The type `Commit` takes precedence over the veto.
        ("commit/201", (201, COMMITTED)),
    ] {
        let response = stage.send(&format!("POST /{path}")).await;
        assert_eq!(response.summary(), expected, "{path}");
        assert_stored(&stage, expected.1 == COMMITTED, path).await;
    }
    let response = stage.send("POST /status/202").await;
    assert_eq!(
        response.summary(),
        (202, ROLLED_BACK),
        "a panic in the veto counts as a veto"
    );
    assert_stored(&stage, false, "a panicking veto").await;
}

async fn a_head_request_settles_like_its_get(backend: Backend) {
    let stage = stage(backend).await;
    for method in ["GET", "HEAD"] {
        let response = stage.send(&format!("{method} /get")).await;
        assert_eq!(response.summary(), (200, COMMITTED), "{method}");
        assert_stored(&stage, true, method).await;
    }
}

async fn a_veto_sees_head(backend: Backend) {
    let stage = Stage::new(backend, |rocket| {
        build(rocket).attach(Settlement::new().veto(|vetoed| vetoed.method == Method::Head))
    })
    .await;
    for (method, outcome) in [("GET", COMMITTED), ("HEAD", ROLLED_BACK)] {
        let response = stage.send(&format!("{method} /get")).await;
        assert_eq!(response.summary(), (200, outcome), "{method}");
        assert_stored(&stage, outcome == COMMITTED, method).await;
    }
}

async fn a_forwarding_route_and_the_next_share_one_transaction(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /forwarded/200").await;
    assert_eq!(response.summary(), (200, COMMITTED));
    assert_eq!(
        response.body, "guard, handler",
        "the second route sees the row of the first"
    );
    assert_stored(&stage, true, "forwarded").await;

    let response = stage.send("POST /forwarded/409").await;
    assert_eq!(response.summary(), (409, ROLLED_BACK));
    assert_stored(&stage, false, "forwarded").await;
    stage.nothing_is_stuck().await;
}

async fn every_response_carries_its_request_id(backend: Backend) {
    let stage = stage(backend).await;
    let mut ids = std::collections::BTreeSet::new();
    for path in [
        "POST /status/200",
        "POST /status/404",
        "GET /nowhere",
        "POST /panic/handler",
    ] {
        let response = stage.send(path).await;
        let id = response.header("x-request-id").unwrap().to_owned();
        if response.status != 200 && response.body != "from the handler" {
            let problem: rocket::serde::json::Value = response.json();
            assert_eq!(problem["instance"], id.as_str(), "{path}");
        }
        assert!(ids.insert(id), "an id is used once");
    }
    let nowhere = stage.send("GET /nowhere").await;
    assert_eq!(
        nowhere.outcome(),
        None,
        "the request had nothing outstanding"
    );
}

on_each_backend!(
    below_400_commits_and_the_rest_rolls_back,
    a_responder_that_fails_rolls_back,
    the_status_of_a_catcher_decides,
    a_panic_rolls_back_wherever_it_happens,
    a_panic_is_never_a_success,
    a_guard_that_fails_after_another_wrote_rolls_back,
    overlapping_guards_get_a_clear_error,
    the_type_commit_commits_below_500,
    the_type_rollback_rolls_back_a_200,
    a_doomed_request_never_succeeds,
    a_veto_rolls_back_and_leaves_the_response,
    a_head_request_settles_like_its_get,
    a_veto_sees_head,
    a_forwarding_route_and_the_next_share_one_transaction,
    every_response_carries_its_request_id,
);
