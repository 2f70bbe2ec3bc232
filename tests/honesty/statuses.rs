//! No success stands after a rollback, whatever a catcher, a doom or a resource says.

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

/// A database that no service here attaches.
#[derive(Database)]
#[database("ghost")]
struct Ghost(UrlPool);

/// Asks for a transaction that cannot be had; Rocket does not see it in the handler's signature.
struct Haunted;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Haunted {
    type Error = Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
        request.guard::<Begin<Ghost>>().await.map(|_| Self)
    }
}

/// Asks to read what cannot be had.
struct HauntedRead;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for HauntedRead {
    type Error = Error;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
        request.guard::<Read<Ghost>>().await.map(|_| Self)
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
fn guard_alone(_haunted: Haunted) {}

#[post("/guard-after-another")]
async fn guard_after_another(_main: Tx<Main>, _haunted: Haunted) {}

#[get("/panic-with-read")]
fn panic_with_read(_read: Read<Main>) {
    panic!("with a read")
}

#[get("/read-guard")]
fn read_guard(_read: HauntedRead) {}

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

/// A resource that refuses with a status of its choice.
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

/// Echoes what it is sent, once the connection is upgraded.
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
fn soothe() -> (Status, &'static str) {
    (Status::Ok, "all is well")
}

#[catch(default)]
fn lead_away() -> rocket::response::Redirect {
    rocket::response::Redirect::to("/sorry")
}

#[catch(default)]
fn nothing_new() -> (Status, ()) {
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
            .mount("/soothed", routes.clone())
            .mount("/redirected", routes.clone())
            .mount("/unmodified", routes.clone())
            .mount("/unfinished", routes.clone())
            .mount("/gone", routes.clone())
            .mount("/failing", routes)
            .register("/soothed", catchers![soothe])
            .register("/redirected", catchers![lead_away])
            .register("/unmodified", catchers![nothing_new])
            .register("/unfinished", catchers![not_final])
            .register("/gone", catchers![gone])
            .register("/failing", catchers![catcher_fails])
            .attach(Settlement::new())
    })
    .await
}

async fn nothing_is_stored(stage: &Stage, what: &str) {
    assert_eq!(stage.notes().await, [""; 0], "{what}");
}

/// Ways to fail, for a handler or a guard of ours.
const FAILURES: [&str; 5] = [
    "panic-with-tx",
    "panic-before-begin",
    "panic-before-join",
    "guard-alone",
    "guard-after-another",
];

async fn a_catcher_calls_no_failure_of_ours_a_success(backend: Backend) {
    let stage = stage(backend).await;
    for catcher in ["soothed", "redirected", "unmodified", "unfinished"] {
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

async fn a_catcher_may_call_it_another_failure(backend: Backend) {
    let stage = stage(backend).await;
    for failure in FAILURES {
        let response = stage.send(&format!("POST /gone/{failure}")).await;
        assert_eq!(response.summary(), (410, ROLLED_BACK), "{failure}");
        assert_eq!(response.body, "gone", "{failure}");
        nothing_is_stored(&stage, failure).await;
    }
}

/// Nothing was outstanding: it is for the service to say what its answer is.
async fn a_catcher_is_free_where_nothing_was_outstanding(backend: Backend) {
    let stage = stage(backend).await;
    for failure in ["panic-with-read", "read-guard", "panic-with-nothing"] {
        let soothed = stage.send(&format!("GET /soothed/{failure}")).await;
        assert_eq!(soothed.summary(), (200, None), "{failure}");
        let redirected = stage.send(&format!("GET /redirected/{failure}")).await;
        assert_eq!(redirected.summary(), (303, None), "{failure}");
    }
}

async fn a_doom_cannot_be_given_a_success(backend: Backend) {
    let stage = stage(backend).await;
    for with in [0, 100, 200, 204, 302, 304, 399, 600] {
        for response in [200, 303] {
            let what = format!("POST /doom/{with}/{response}");
            let told = stage.send(&what).await;
            assert_eq!(told.summary(), (500, ROLLED_BACK), "{what}");
            assert_eq!(told.kind(), "doomed", "{what}");
            nothing_is_stored(&stage, &what).await;
        }
    }
    let failure = stage.send("POST /doom/200/418").await;
    assert_eq!(failure.summary(), (418, ROLLED_BACK), "a failure stays");
    for with in [400, 409, 503, 599] {
        let told = stage.send(&format!("POST /doom/{with}/200")).await;
        assert_eq!(told.summary(), (with, ROLLED_BACK), "its own failure");
    }
}

async fn a_refusal_cannot_be_given_a_success(backend: Backend) {
    let stage = stage(backend).await;
    for with in [0, 103, 200, 303, 304, 600] {
        for path in [
            format!("refuse/{with}?open=true"),
            format!("refuse/{with}?open=false"),
            format!("refuse-at-once/{with}"),
            // Its catcher is never asked: the refusal has a body of its own.
            format!("soothed/refuse/{with}?open=true"),
        ] {
            let response = stage.send(&format!("POST /{path}")).await;
            assert_eq!(response.summary(), (500, ROLLED_BACK), "{path}");
            assert_eq!(response.kind(), "refused", "{path}");
            nothing_is_stored(&stage, &path).await;
        }
    }
    let response = stage.send("POST /refuse/507?open=true").await;
    assert_eq!(response.summary(), (507, ROLLED_BACK), "its own failure");
}

async fn a_status_below_200_is_no_answer(backend: Backend) {
    let stage = stage(backend).await;
    for code in [0, 99, 100, 101, 103, 150, 199] {
        for handler in ["status", "commit", "rollback"] {
            let what = format!("POST /{handler}/{code}");
            let response = stage.send(&what).await;
            assert_eq!(response.summary(), (500, ROLLED_BACK), "{what}");
            assert_eq!(response.kind(), "not-final", "{what}");
            nothing_is_stored(&stage, &what).await;
        }
    }
}

/// Rocket answers 101 wherever a response has a handler for what the client asks to upgrade to.
async fn a_failure_is_not_upgraded(backend: Backend) {
    let stage = stage(backend).await;
    for (code, told, rows) in [
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
        assert_eq!((response.status().as_u16(), outcome), told, "{code}");
        assert_eq!(response.headers()["x-kept"], "yes", "{code}");
        assert_eq!(stage.notes().await.len(), rows, "{code}");
        stage.databases.empty().await;
    }
}

/// What counts is what the client is told, not what the handler was about to tell.
async fn a_commit_by_type_rolls_back_where_the_catcher_fails(backend: Backend) {
    let stage = stage(backend).await;
    let response = stage.send("POST /failing/commit-failing/404").await;
    assert_eq!(response.summary(), (500, ROLLED_BACK));
    nothing_is_stored(&stage, "its catcher failed").await;

    // A failure that the handler's word is not for is not made one by a catcher.
    let response = stage.send("POST /gone/commit-failing/500").await;
    assert_eq!(response.summary(), (410, ROLLED_BACK));
    nothing_is_stored(&stage, "the responder failed with 500").await;

    let response = stage.send("POST /gone/commit-failing/404").await;
    assert_eq!(response.summary(), (410, COMMITTED));
    assert_eq!(stage.notes().await, ["written"]);
}

/// The documented ways to have a success without a commit.
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

/// A resource of the user's own that is called like a database.
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

/// Keeps what became of each database.
struct Reporter(Reports);

impl rocket_tx::Observer for Reporter {
    fn settled(&self, _: &Request<'_>, settled: &rocket_tx::tx::SettlementReport) {
        self.0.lock().extend(settled.databases.iter().cloned());
    }
}

async fn each_database_is_reported_for_itself_whatever_its_name(backend: Backend) {
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
    a_catcher_calls_no_failure_of_ours_a_success,
    a_catcher_may_call_it_another_failure,
    a_catcher_is_free_where_nothing_was_outstanding,
    a_doom_cannot_be_given_a_success,
    a_refusal_cannot_be_given_a_success,
    a_status_below_200_is_no_answer,
    a_failure_is_not_upgraded,
    a_commit_by_type_rolls_back_where_the_catcher_fails,
    a_dry_run_stays_a_success,
    each_database_is_reported_for_itself_whatever_its_name,
);
