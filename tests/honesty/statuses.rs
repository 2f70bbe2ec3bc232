//! A request that rolls back never has a success as response, whatever the status of a catcher, a
//! doom or a resource.

use std::borrow::Cow;
use std::pin::Pin;

use rocket::data::{IoHandler, IoStream};
use rocket::http::{Header, Status};
use rocket::request::{FromRequest, Outcome};
use rocket::response::{self, Responder, Response};
use rocket::{Request, catch, catchers, get, post, routes};
use rocket_db_pools::Database;
use rocket_tx::db::UrlPool;
use rocket_tx::tx::SettleContext;
use rocket_tx::{Begin, Commit, Error, Outstanding, Read, Resource, Rollback, Settlement, Tx};

use crate::support::stage::note;
use crate::support::{Audit, Backend, HttpResponse, Main, Stage};

const COMMITTED: Option<&str> = Some("committed");
const ROLLED_BACK: Option<&str> = Some("rolled-back");

/// A database that no test attaches.
#[derive(Database)]
#[database("unattached")]
struct Unattached(UrlPool);

/// A guard that requests a transaction of a database that is not attached. Rocket cannot detect
/// this at launch, because the handler's signature does not show the inner guard.
struct BeginsUnattached;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for BeginsUnattached {
    type Error = Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
        request.guard::<Begin<Unattached>>().await.map(|_| Self)
    }
}

/// A guard that requests a `Read` of a database that is not attached.
struct ReadsUnattached;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for ReadsUnattached {
    type Error = Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
        request.guard::<Read<Unattached>>().await.map(|_| Self)
    }
}

struct Fails(Status);

impl<'r> Responder<'r, 'static> for Fails {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'static> {
        Err(self.0)
    }
}

#[post("/panic-with-tx")]
async fn panic_with_tx(mut main: Tx<Main>) -> Result<(), Error> {
    note(&mut main, "written").await?;
    panic!("with a transaction")
}

#[post("/panic-before-begin")]
fn panic_before_begin(_main: Begin<Main>) {
    panic!("before `begin`")
}

#[post("/panic-before-join")]
fn panic_before_join(_outstanding: &Outstanding) {
    panic!("before `join`")
}

#[post("/guard-alone")]
fn guard_alone(_begins: BeginsUnattached) {}

#[post("/guard-after-another")]
async fn guard_after_another(_main: Tx<Main>, _begins: BeginsUnattached) {}

#[get("/panic-with-read")]
fn panic_with_read(_read: Read<Main>) {
    panic!("with a read")
}

#[get("/read-guard")]
fn read_guard(_read: ReadsUnattached) {}

#[get("/panic-with-nothing")]
fn panic_with_nothing() {
    panic!("with nothing")
}

#[post("/doom/<with>/<response>")]
async fn doom(
    with: u16,
    response: u16,
    outstanding: &Outstanding,
    mut main: Tx<Main>,
) -> Result<(Status, ()), Error> {
    note(&mut main, "written").await?;
    outstanding.doom(Status::new(with), "doomed")?;
    Ok((Status::new(response), ()))
}

/// A resource that refuses with this status.
struct Refuses(Status);

#[rocket::async_trait]
impl Resource for Refuses {
    fn name(&self) -> Cow<'_, str> {
        "refuses".into()
    }

    async fn prepare(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
        Err(Error::Refused {
            status: self.0,
            reason: "refused".into(),
        })
    }

    async fn commit(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

#[post("/refuse/<with>?<open>")]
async fn refuse(
    with: u16,
    open: bool,
    outstanding: &Outstanding,
    main: Begin<Main>,
) -> Result<Status, Error> {
    if open {
        note(&mut *main.begin().await?, "written").await?;
    }
    outstanding.join(Refuses(Status::new(with)))?;
    Ok(Status::Created)
}

#[post("/refuse-at-once/<with>")]
async fn refuse_at_once(with: u16, mut main: Tx<Main>) -> Result<Status, Error> {
    note(&mut main, "written").await?;
    Err(Error::Refused {
        status: Status::new(with),
        reason: "refused".into(),
    })
}

#[post("/status/<code>")]
async fn status(code: u16, mut main: Tx<Main>) -> Result<(Status, ()), Error> {
    note(&mut main, "written").await?;
    Ok((Status::new(code), ()))
}

#[post("/commit/<code>")]
async fn commit(code: u16, mut main: Tx<Main>) -> Result<Commit<(Status, ())>, Error> {
    note(&mut main, "written").await?;
    Ok(Commit((Status::new(code), ())))
}

#[post("/commit-failing/<code>")]
async fn commit_failing(code: u16, mut main: Tx<Main>) -> Result<Commit<Fails>, Error> {
    note(&mut main, "written").await?;
    Ok(Commit(Fails(Status::new(code))))
}

#[post("/rollback/<code>")]
async fn rollback(code: u16, mut main: Tx<Main>) -> Result<Rollback<(Status, ())>, Error> {
    note(&mut main, "written").await?;
    Ok(Rollback((Status::new(code), ())))
}

/// The handler of an upgraded connection. It closes the connection immediately.
struct Echo;

#[rocket::async_trait]
impl IoHandler for Echo {
    async fn io(self: Pin<Box<Self>>, _: IoStream) -> std::io::Result<()> {
        Ok(())
    }
}

struct Upgrades(Status);

impl<'r> Responder<'r, 'r> for Upgrades {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'r> {
        let mut response = Response::build();
        let response = response.status(self.0).upgrade("echo", Echo);
        response.header(Header::new("X-Kept", "yes")).ok()
    }
}

#[get("/upgrade/<code>")]
async fn upgrade(code: u16, mut main: Tx<Main>) -> Result<Upgrades, Error> {
    note(&mut main, "written").await?;
    Ok(Upgrades(Status::new(code)))
}

#[catch(default)]
fn succeed() -> (Status, &'static str) {
    (Status::Ok, "all is well")
}

#[catch(default)]
fn redirect() -> rocket::response::Redirect {
    rocket::response::Redirect::to("/sorry")
}

#[catch(default)]
fn not_modified() -> (Status, ()) {
    (Status::NotModified, ())
}

#[catch(default)]
fn not_final() -> (Status, ()) {
    (Status::new(150), ())
}

#[catch(default)]
fn gone() -> (Status, &'static str) {
    (Status::Gone, "gone")
}

/// A catcher that fails itself.
#[catch(404)]
fn catcher_fails() -> Fails {
    Fails(Status::InternalServerError)
}

async fn stage(backend: Backend) -> Stage {
    let routes = routes![
        panic_with_tx,
        panic_before_begin,
        panic_before_join,
        guard_alone,
        guard_after_another,
        panic_with_read,
        read_guard,
        panic_with_nothing,
        doom,
        refuse,
        refuse_at_once,
        status,
        commit,
        commit_failing,
        rollback,
        upgrade,
    ];
    Stage::new(backend, |rocket| {
        rocket
            .mount("/", routes.clone())
            .mount("/succeeding", routes.clone())
            .mount("/redirected", routes.clone())
            .mount("/unmodified", routes.clone())
            .mount("/unfinished", routes.clone())
            .mount("/gone", routes.clone())
            .mount("/failing", routes)
            .register("/succeeding", catchers![succeed])
            .register("/redirected", catchers![redirect])
            .register("/unmodified", catchers![not_modified])
            .register("/unfinished", catchers![not_final])
            .register("/gone", catchers![gone])
            .register("/failing", catchers![catcher_fails])
            .attach(Settlement::new())
    })
    .await
}

async fn nothing_is_stored(stage: &Stage, case: &str) {
    assert_eq!(stage.notes().await, [""; 0], "{case}");
}

/// Failures of handlers and guards that cause a rollback.
const FAILURES: [&str; 5] = [
    "panic-with-tx",
    "panic-before-begin",
    "panic-before-join",
    "guard-alone",
    "guard-after-another",
];

async fn a_catcher_cannot_turn_a_rollback_into_a_success(backend: Backend) {
    let stage = stage(backend).await;
    for catcher in ["succeeding", "redirected", "unmodified", "unfinished"] {
        for failure in FAILURES {
            let path = format!("/{catcher}/{failure}");
            let response = stage.send(&format!("POST {path}")).await;
            assert_eq!(
                response.summary(),
                (500, ROLLED_BACK),
                "{path}: {response:?}"
            );
            assert_eq!(response.header("location"), None, "{path}");
            let kind = response.kind();
            let expected = match failure.starts_with("panic") {
                true => "panicked",
                false => "not-attached",
            };
            assert_eq!(kind, expected, "{path}");
            nothing_is_stored(&stage, &path).await;
        }
    }
    stage.nothing_is_stuck().await;
}

async fn a_catcher_may_choose_another_failure(backend: Backend) {
    let stage = stage(backend).await;
    for failure in FAILURES {
        let response = stage.send(&format!("POST /gone/{failure}")).await;
        assert_eq!(response.summary(), (410, ROLLED_BACK), "{failure}");
        assert_eq!(response.body, "gone", "{failure}");
        nothing_is_stored(&stage, failure).await;
    }
}

/// Without anything outstanding, the service may choose any response.
async fn a_catcher_may_report_success_if_nothing_was_outstanding(backend: Backend) {
    let stage = stage(backend).await;
    for failure in ["panic-with-read", "read-guard", "panic-with-nothing"] {
        let succeeding = stage.send(&format!("GET /succeeding/{failure}")).await;
        assert_eq!(succeeding.summary(), (200, None), "{failure}");
        let redirected = stage.send(&format!("GET /redirected/{failure}")).await;
        assert_eq!(redirected.summary(), (303, None), "{failure}");
    }
}

async fn a_doomed_request_cannot_succeed(backend: Backend) {
    let stage = stage(backend).await;
    for with in [0, 100, 200, 204, 302, 304, 399, 600] {
        for response in [200, 303] {
            let line = format!("POST /doom/{with}/{response}");
            let response = stage.send(&line).await;
            assert_eq!(response.summary(), (500, ROLLED_BACK), "{line}");
            assert_eq!(response.kind(), "doomed", "{line}");
            nothing_is_stored(&stage, &line).await;
        }
    }
    let failure = stage.send("POST /doom/200/418").await;
    assert_eq!(
        failure.summary(),
        (418, ROLLED_BACK),
        "the handler's failure"
    );
    for with in [400, 409, 503, 599] {
        let response = stage.send(&format!("POST /doom/{with}/200")).await;
        assert_eq!(response.summary(), (with, ROLLED_BACK), "the doom's status");
    }
}

async fn a_refused_request_cannot_succeed(backend: Backend) {
    let stage = stage(backend).await;
    for with in [0, 103, 200, 303, 304, 600] {
        for path in [
            format!("refuse/{with}?open=true"),
            format!("refuse/{with}?open=false"),
            format!("refuse-at-once/{with}"),
            // The catcher is not called, because the refusal has a body already.
            format!("succeeding/refuse/{with}?open=true"),
        ] {
            let response = stage.send(&format!("POST /{path}")).await;
            assert_eq!(response.summary(), (500, ROLLED_BACK), "{path}");
            assert_eq!(response.kind(), "refused", "{path}");
            nothing_is_stored(&stage, &path).await;
        }
    }
    let response = stage.send("POST /refuse/507?open=true").await;
    assert_eq!(
        response.summary(),
        (507, ROLLED_BACK),
        "the refusal's status"
    );
}

async fn a_status_below_200_is_not_final(backend: Backend) {
    let stage = stage(backend).await;
    for code in [0, 99, 100, 101, 103, 150, 199] {
        for handler in ["status", "commit", "rollback"] {
            let line = format!("POST /{handler}/{code}");
            let response = stage.send(&line).await;
            assert_eq!(response.summary(), (500, ROLLED_BACK), "{line}");
            assert_eq!(response.kind(), "not-final", "{line}");
            nothing_is_stored(&stage, &line).await;
        }
    }
}

/// Rocket responds with 101 if the response has an upgrade handler for a protocol that the client
/// requests. It does so for every status.
async fn a_failure_is_not_upgraded(backend: Backend) {
    let stage = stage(backend).await;
    for (code, expected, rows) in [
        (409, (409, ROLLED_BACK), 0),
        (500, (500, ROLLED_BACK), 0),
        (200, (101, COMMITTED), 1),
    ] {
        let request = stage.http.request(&format!("GET /upgrade/{code}"));
        let request = request.header("Connection", "upgrade");
        let request = request.header("Upgrade", "other, echo");
        let response = request.send().await.unwrap();
        let outcome = response.headers().get("transaction-outcome");
        let outcome = outcome.map(|outcome| outcome.to_str().unwrap());
        assert_eq!((response.status().as_u16(), outcome), expected, "{code}");
        assert_eq!(response.headers()["x-kept"], "yes", "{code}");
        assert_eq!(stage.notes().await.len(), rows, "{code}");
        stage.databases.empty().await;
    }
}

/// The final response decides, not the response that the handler intended.
async fn a_commit_responder_rolls_back_if_the_catcher_fails(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /failing/commit-failing/404").await;
    assert_eq!(response.summary(), (500, ROLLED_BACK));
    nothing_is_stored(&stage, "its catcher failed").await;

    // `Commit` covers failures below 500 only. A catcher's 410 does not change that for a 500.
    let response = stage.send("POST /gone/commit-failing/500").await;
    assert_eq!(response.summary(), (410, ROLLED_BACK));
    nothing_is_stored(&stage, "the responder failed with 500").await;

    let response = stage.send("POST /gone/commit-failing/404").await;
    assert_eq!(response.summary(), (410, COMMITTED));
    assert_eq!(stage.notes().await, ["written"]);
}

/// `Rollback` is the documented way to respond with a success and without a commit.
async fn a_dry_run_stays_a_success(backend: Backend) {
    let stage = stage(backend).await;
    for code in [200, 204, 303, 304] {
        let response = stage.send(&format!("POST /rollback/{code}")).await;
        assert_eq!(response.summary(), (code, ROLLED_BACK));
        nothing_is_stored(&stage, "Rollback").await;
    }
    let response = stage.send("POST /status/304").await;
    assert_eq!(response.summary(), (304, COMMITTED));
    assert_eq!(stage.notes().await, ["written"]);
}

/// A resource with the name of a database.
struct Namesake;

#[rocket::async_trait]
impl Resource for Namesake {
    fn name(&self) -> Cow<'_, str> {
        "main".into()
    }

    fn phase(&self) -> rocket_tx::tx::Phase {
        rocket_tx::tx::Phase::Database
    }

    async fn commit(&mut self) -> Result<(), Error> {
        Err(Error::Conflict("refused".into()))
    }
}

#[post("/namesake")]
async fn namesake(
    outstanding: &Outstanding,
    mut main: Tx<Main>,
    mut audit: Tx<Audit>,
) -> Result<Status, Error> {
    note(&mut main, "written").await?;
    note(&mut audit, "written").await?;
    outstanding.join(Namesake)?;
    Ok(Status::Created)
}

type Reports = std::sync::Arc<parking_lot::Mutex<Vec<(String, rocket_tx::tx::Outcome)>>>;

/// An observer that records the outcome of each database.
struct Reporter(Reports);

impl rocket_tx::Observer for Reporter {
    fn settled(&self, _: &Request<'_>, settled: &rocket_tx::tx::SettlementReport) {
        self.0.lock().extend(settled.databases.iter().cloned());
    }
}

async fn resources_with_equal_names_are_reported_separately(backend: Backend) {
    use rocket_tx::tx::Outcome::{Committed, RolledBack};

    let reports = Reports::default();
    let reporter = Reporter(std::sync::Arc::clone(&reports));
    let stage = Stage::new(backend, |rocket| {
        rocket
            .mount("/", routes![namesake])
            .attach(Settlement::new().observer(reporter))
    })
    .await;
    let response: HttpResponse = stage.send("POST /namesake").await;
    assert_eq!(
        response.summary(),
        (500, Some("partial")),
        "{}",
        response.body
    );
    assert!(
        response
            .body
            .contains("committed in main, audit, but not in main"),
        "{}",
        response.body
    );
    assert_eq!(
        *reports.lock(),
        [
            ("main".to_owned(), Committed),
            ("audit".to_owned(), Committed),
            ("main".to_owned(), RolledBack),
        ]
    );
    assert_eq!(stage.notes().await, ["written", "written"]);
}

on_each_backend!(
    a_catcher_cannot_turn_a_rollback_into_a_success,
    a_catcher_may_choose_another_failure,
    a_catcher_may_report_success_if_nothing_was_outstanding,
    a_doomed_request_cannot_succeed,
    a_refused_request_cannot_succeed,
    a_status_below_200_is_not_final,
    a_failure_is_not_upgraded,
    a_commit_responder_rolls_back_if_the_catcher_fails,
    a_dry_run_stays_a_success,
    resources_with_equal_names_are_reported_separately,
);
