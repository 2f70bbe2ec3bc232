//! Mistakes in the launch code: the launch fails, or the request is refused with a 500. In both
//! cases the log says what to do.

use std::time::Duration;

use rocket::fairing::AdHoc;
use rocket::http::{Header, Status};
use rocket::local::asynchronous::Client;
use rocket::{Build, Rocket, post, routes};
use rocket_tx::{Begin, Error, Outstanding, Settlement, Tx, db, problem_catchers};
use rocket_tx_idempotency::{self as idempotency, idempotent, required};

use crate::support::launch::{Launched, logged, refused};
use crate::support::stage::{figment, note};
use crate::support::{Audit, Backend, Databases, HttpResponse, Main};

#[post("/notes")]
async fn create(main: Begin<Main>) -> Result<(), Error> {
    note(&mut *main.begin().await?, "note").await?;
    Ok(())
}

#[post("/nothing")]
fn nothing() {}

fn with_databases(databases: &Databases) -> Rocket<Build> {
    rocket::custom(figment(databases, &[]))
        .attach(db::init::<Main>())
        .attach(db::init::<Audit>())
        .register("/", problem_catchers())
}

async fn a_wrong_launch_is_refused_with_the_line_to_change(backend: Backend) {
    let databases = Databases::with_tables(backend).await;
    let init = idempotency::init::<Main>;
    let settled = || with_databases(&databases).attach(Settlement::new());
    let only_audit = rocket::custom(figment(&databases, &[])).attach(db::init::<Audit>());
    let too_early = rocket::custom(figment(&databases, &[]))
        .attach(init())
        .attach(db::init::<Main>());
    let attach = "attach `rocket_tx::db::init::<";
    for (rocket, message) in [
        (only_audit.attach(init()).attach(Settlement::new()), attach),
        (too_early.attach(Settlement::new()), attach),
        (settled().attach(init()).attach(init()), "attached twice"),
        (
            settled().attach(init().sweep_interval(Duration::ZERO)),
            "`sweep_interval` is 0ns; set a duration from 10ms",
        ),
        (
            settled().attach(init().twin_wait(Duration::MAX)),
            "`twin_wait` is",
        ),
        (
            settled().attach(init().expiry(Duration::ZERO)),
            "`expiry` is 0ns",
        ),
    ] {
        let log = refused(rocket).await;
        assert!(log.contains(message), "{message}: {log}");
        assert!(log.contains("database `main`"), "{log}");
    }
}

/// Sends a request with a key and asserts that it is refused with a 500, and that the log contains
/// `message`. The client does not receive the message.
async fn is_refused(rocket: Rocket<Build>, path: &str, message: &str) {
    let client = Client::untracked(rocket).await.unwrap();
    let request = client
        .post(path)
        .header(Header::new("Idempotency-Key", "k"));
    let (response, log) = logged(request.dispatch()).await;
    assert_eq!(
        response.status(),
        Status::InternalServerError,
        "{message}: {log}"
    );
    assert!(log.contains(message), "no {message} in {log}");
    let body = response.into_string().await.unwrap();
    assert!(!body.contains(message), "{body}");
}

async fn a_wrong_route_is_refused_with_the_line_to_change(backend: Backend) {
    let databases = Databases::with_tables(backend).await;
    let settled = || with_databases(&databases).attach(Settlement::new());
    let set_up = || settled().attach(idempotency::init::<Main>());
    let line = |database: &str| format!(".attach(rocket_tx_idempotency::init::<{database}>())");
    let main = line(std::any::type_name::<Main>());
    let audit = line(std::any::type_name::<Audit>());
    // The keys are set up nowhere, or in another database.
    let routes = || idempotent::<Main>(routes![create]);
    is_refused(settled().mount("/", routes()), "/notes", &main).await;
    let wrong = required::<Audit>(routes![create]);
    is_refused(set_up().mount("/", wrong), "/notes", &audit).await;
    // Two databases for one route.
    let both = idempotent::<Main>(idempotent::<Audit>(routes![create]));
    let both = set_up()
        .attach(idempotency::init::<Audit>())
        .mount("/", both);
    is_refused(both, "/notes", "name one database in `idempotent`").await;
    // No settlement, and no guard that would stop the launch.
    let alone = with_databases(&databases)
        .attach(idempotency::init::<Main>())
        .mount("/", idempotent::<Main>(routes![nothing]));
    is_refused(alone, "/nothing", "`Settlement`").await;
    // A transaction has begun before.
    let early = set_up().mount("/", routes()).attach(AdHoc::on_request(
        "Begins a transaction",
        |request, _| {
            Box::pin(async move {
                let begun = request.guard::<Tx<Main>>().await;
                assert!(begun.is_success());
            })
        },
    ));
    is_refused(early, "/notes", "begin it in the handler or its guards").await;
    assert_eq!(
        databases.notes(crate::support::In::Main).await,
        [""; 0],
        "nothing was done"
    );
}

/// A route without a wrapper does not need the setup, and ignores the header.
async fn other_routes_are_not_affected(backend: Backend) {
    let databases = Databases::with_tables(backend).await;
    let rocket = with_databases(&databases)
        .attach(Settlement::new())
        .mount("/", routes![create]);
    let service = Launched::new(rocket).await;
    for status in [200, 409] {
        // The second note breaks a unique constraint, so it was not replayed.
        let request = service.http.request("POST /notes");
        let response = HttpResponse::of(request.header("Idempotency-Key", "k")).await;
        assert_eq!(response.status, status, "{response:?}");
    }
    service.close().await;
}

/// Without a word of the launch code, all clients share their keys.
async fn a_launch_that_does_not_say_whose_keys_they_are_warns(backend: Backend) {
    const WARNING: &str = "all clients share their idempotency keys";

    let init = idempotency::init::<Main>;
    for (keys, warnings) in [
        (init(), 1),
        (init().shared_keys(), 0),
        (init().caller(|_| Box::pin(async { Ok(String::new()) })), 0),
    ] {
        let databases = Databases::with_tables(backend).await;
        let rocket = with_databases(&databases)
            .attach(keys)
            .attach(Settlement::new());
        let (launched, log) = logged(Client::untracked(rocket)).await;
        launched.unwrap();
        assert_eq!(log.matches(WARNING).count(), warnings, "{log}");
        let line = format!("init::<{}>().caller(..)", std::any::type_name::<Main>());
        assert_eq!(log.matches(&line).count(), warnings, "{log}");
    }
}

/// The hook for the caller has begun a transaction.
async fn a_hook_that_begins_a_transaction_is_refused(backend: Backend) {
    let databases = Databases::with_tables(backend).await;
    let keys = idempotency::init::<Main>().caller(|request| {
        Box::pin(async move {
            let begun = request.guard::<Tx<Main>>().await;
            assert!(begun.is_success());
            assert!(request.guard::<&Outstanding>().await.is_success());
            Ok("caller".to_owned())
        })
    });
    let rocket = with_databases(&databases)
        .attach(keys)
        .attach(Settlement::new())
        .mount("/", idempotent::<Main>(routes![create]));
    is_refused(rocket, "/notes", "in the hook for the caller").await;
}

on_each_backend!(
    a_wrong_launch_is_refused_with_the_line_to_change,
    a_wrong_route_is_refused_with_the_line_to_change,
    other_routes_are_not_affected,
    a_launch_that_does_not_say_whose_keys_they_are_warns,
    a_hook_that_begins_a_transaction_is_refused,
);
