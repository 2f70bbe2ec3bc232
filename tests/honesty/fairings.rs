//! Settlement runs after all other response fairings, wherever and whenever they are attached.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rocket::fairing::{AdHoc, Fairing};
use rocket::http::{Header, Status};
use rocket::tokio::time::timeout;
use rocket::{Build, Request, Response, Rocket, get, post, routes};
use rocket_tx::{Error, Observer, Settlement, Tx, db, problem_catchers};

use crate::support::launch::{logged, refused};
use crate::support::stage::{figment, note, run};
use crate::support::{Audit, Backend, Databases, HttpResponse, Main, Stage};

#[post("/status/<code>")]
async fn status(code: u16, mut main: Tx<Main>) -> Result<(Status, ()), Error> {
    note(&mut main, "written").await?;
    Ok((Status::new(code), ()))
}

/// Turns 202 into 503, and 418 into 200.
fn turns() -> AdHoc {
    AdHoc::on_response("Turns", |_, response| {
        Box::pin(async move {
            match response.status().code {
                202 => response.set_status(Status::ServiceUnavailable),
                418 => response.set_status(Status::Ok),
                _ => {}
            }
        })
    })
}

/// A stage (an ignite fairing) that attaches `turns`, through `depth - 1` further stages.
fn stage_of(depth: usize) -> AdHoc {
    AdHoc::on_ignite("A stage", move |rocket| async move {
        match depth {
            1 => rocket.attach(turns()),
            _ => rocket.attach(stage_of(depth - 1)),
        }
    })
}

/// Asserts that the status after `turns`, not the handler's status, decides about the commit.
async fn assert_settled_by_final_status(stage: &Stage, case: &str) {
    let failed = stage.send("POST /status/202").await;
    assert_eq!(failed.summary(), (503, Some("rolled-back")), "{case}");
    assert_eq!(stage.notes().await, [""; 0], "{case}");

    let succeeded = stage.send("POST /status/418").await;
    assert_eq!(succeeded.summary(), (200, Some("committed")), "{case}");
    assert_eq!(stage.notes().await, ["written"], "{case}");
    stage.databases.empty().await;
}

async fn fairings_attached_on_ignite_run_before_settlement(backend: Backend) {
    for depth in [1, 2, 3] {
        for stage_is_first in [true, false] {
            let stage = Stage::new(backend, |rocket| {
                let rocket = rocket.mount("/", routes![status]);
                match stage_is_first {
                    true => rocket.attach(stage_of(depth)).attach(Settlement::new()),
                    false => rocket.attach(Settlement::new()).attach(stage_of(depth)),
                }
            })
            .await;
            assert_settled_by_final_status(&stage, &format!("{depth}, {stage_is_first}")).await;
        }
    }
}

async fn fairings_of_the_launch_code_run_before_settlement(backend: Backend) {
    let stage = Stage::new(backend, |rocket| {
        rocket
            .mount("/", routes![status])
            .attach(Settlement::new())
            .attach(turns())
    })
    .await;
    assert_settled_by_final_status(&stage, "the launch code").await;
}

fn launching(databases: &Databases, last: impl Fairing) -> Rocket<Build> {
    rocket::custom(figment(databases, &[]))
        .attach(db::init::<Main>())
        .attach(db::init::<Audit>())
        .attach(Settlement::new())
        .attach(last)
        .register("/", problem_catchers())
}

async fn a_fairing_attached_too_late_stops_the_launch(backend: Backend) {
    let databases = Databases::with_tables(backend).await;
    let rocket = launching(&databases, stage_of(12)).mount("/", routes![status]);
    let log = refused(rocket).await;
    assert!(log.contains("`Turns`"), "{log}");
    assert!(log.contains("attach it in the launch code"), "{log}");
}

/// No handler has a guard of the library in its signature, so no guard can refuse the launch.
async fn a_fairing_attached_too_late_stops_a_service_without_guards(backend: Backend) {
    let databases = Databases::with_tables(backend).await;
    let rocket = launching(&databases, stage_of(12));
    let launch = timeout(Duration::from_secs(20), rocket.launch());
    let (ended, log) = logged(launch).await;
    let ended = ended.expect("the service kept running");
    drop(ended.unwrap());
    assert!(log.contains("`Turns`"), "{log}");
}

/// Status and outcome of a response.
type Seen = (u16, Option<String>);

/// An observer that records status and outcome of each response.
#[derive(Clone, Default)]
struct Watches(Arc<Mutex<Vec<Seen>>>);

impl Observer for Watches {
    fn responded(&self, _: &Request<'_>, response: &Response<'_>) {
        let outcome = response.headers().get_one("Transaction-Outcome");
        let seen = (response.status().code, outcome.map(str::to_owned));
        self.0.lock().push(seen);
    }
}

#[post("/constraint")]
async fn constraint(mut main: Tx<Main>) -> Result<Status, Error> {
    run(&mut main, "INSERT INTO pairs (id, partner) VALUES (1, 2)").await?;
    Ok(Status::Created)
}

async fn an_observer_sees_the_final_response(backend: Backend) {
    let watches = Watches::default();
    let stage = Stage::new(backend, |rocket| {
        rocket
            .mount("/", routes![status, constraint])
            .attach(Settlement::new().observer(watches.clone()))
            .attach(stage_of(1))
    })
    .await;
    for path in ["POST /constraint", "POST /status/418", "GET /nowhere"] {
        let response = stage.send(path).await;
        let (status, outcome) = response.summary();
        let seen = std::mem::take(&mut *watches.0.lock());
        assert_eq!(seen, [(status, outcome.map(str::to_owned))], "{path}");
    }
}

#[get("/forged?<code>")]
fn forged(code: u16) -> Forged {
    Forged(Status::new(code))
}

#[post("/forged?<code>")]
async fn forged_with_tx(code: u16, mut main: Tx<Main>) -> Result<Forged, Error> {
    note(&mut main, "written").await?;
    Ok(Forged(Status::new(code)))
}

/// A response with headers that only the library may set.
struct Forged(Status);

impl<'r> rocket::response::Responder<'r, 'static> for Forged {
    fn respond_to(self, _: &'r rocket::Request<'_>) -> rocket::response::Result<'static> {
        let mut response = rocket::Response::build();
        response.status(self.0);
        for outcome in ["committed", "rolled-back"] {
            response.header_adjoin(Header::new("Transaction-Outcome", outcome));
            response.header_adjoin(Header::new("x-request-id", "mine"));
        }
        response.ok()
    }
}

fn all(response: &HttpResponse, name: &str) -> Vec<String> {
    let values = response.headers.get_all(name).iter();
    values.map(|it| it.to_str().unwrap().to_owned()).collect()
}

async fn only_settlement_sets_its_headers(backend: Backend) {
    let stage = Stage::new(backend, |rocket| {
        rocket
            .mount("/", routes![forged, forged_with_tx])
            .attach(Settlement::new())
    })
    .await;
    for code in [200, 404, 500] {
        let response = stage.send(&format!("GET /forged?code={code}")).await;
        assert_eq!(response.summary(), (code, None), "nothing was outstanding");
        let ids = all(&response, "x-request-id");
        assert!(ids.len() == 1 && ids[0] != "mine", "{ids:?}");

        let response = stage.send(&format!("POST /forged?code={code}")).await;
        let outcome = match code {
            200 => "committed",
            _ => "rolled-back",
        };
        assert_eq!(all(&response, "transaction-outcome"), [outcome]);
        let ids = all(&response, "x-request-id");
        assert!(ids.len() == 1 && ids[0] != "mine", "{ids:?}");
    }
}

on_each_backend!(
    fairings_attached_on_ignite_run_before_settlement,
    fairings_of_the_launch_code_run_before_settlement,
    a_fairing_attached_too_late_stops_the_launch,
    a_fairing_attached_too_late_stops_a_service_without_guards,
    an_observer_sees_the_final_response,
    only_settlement_sets_its_headers,
);
