//! A network that goes silent without closing connections, and a server that is down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rocket::http::Status;
use rocket::tokio::sync::{Barrier, Semaphore};
use rocket::{Build, Rocket, State, get, post, routes};
use rocket_tx::tx::bounded;
use rocket_tx::{Error, Read, Settlement, Tx, with_backend};

use crate::support::stage::{note, run};
use crate::support::{
    Audit, Backend, Databases, HttpResponse, In, Main, Newcomers, Proxy, Stage, eventually,
};

/// The number of connections that a database has in these tests.
const CONNECTIONS: usize = 4;

const CONNECT: Duration = Duration::from_secs(1);
const HANDLER: Duration = Duration::from_secs(3);
const SETTLE: Duration = Duration::from_secs(1);

/// Every request must get its response within this time, with 3 s of tolerance for a busy machine.
const BOUND: Duration =
    Duration::from_secs(CONNECT.as_secs() + HANDLER.as_secs() + SETTLE.as_secs() + 3);

#[post("/notes/<text>")]
async fn write(text: &str, mut main: Tx<Main>) -> Result<Status, Error> {
    note(&mut main, text).await?;
    Ok(Status::Created)
}

#[post("/both/<text>")]
async fn both(text: &str, mut main: Tx<Main>, mut audit: Tx<Audit>) -> Result<Status, Error> {
    note(&mut main, text).await?;
    note(&mut audit, text).await?;
    Ok(Status::Created)
}

#[get("/notes")]
async fn count(mut main: Read<Main>) -> Result<String, Error> {
    let count: i64 = with_backend!(main, |db| sqlx::query_scalar("SELECT count(*) FROM notes")
        .fetch_one(db)
        .await)?;
    Ok(count.to_string())
}

/// Opens all sessions of the pool: no request ends before all have begun.
#[post("/together")]
async fn together(mut main: Tx<Main>, all: &State<Barrier>) -> Result<(), Error> {
    run(&mut main, "SELECT 1").await?;
    all.wait().await;
    Ok(())
}

#[get("/together")]
async fn read_together(mut main: Read<Main>, all: &State<Barrier>) -> Result<(), Error> {
    run(&mut main, "SELECT 1").await?;
    all.wait().await;
    Ok(())
}

/// Lets the test act between the two steps of a handler.
struct Steps {
    first_done: Semaphore,
    go_on: Semaphore,
}

#[post("/steps")]
async fn steps(mut main: Tx<Main>, steps: &State<Arc<Steps>>) -> Result<Status, Error> {
    note(&mut main, "first").await?;
    steps.first_done.add_permits(1);
    if let Ok(permit) = steps.go_on.acquire().await {
        permit.forget();
    }
    note(&mut main, "second").await?;
    Ok(Status::Created)
}

fn service(rocket: Rocket<Build>, steps_between: &Arc<Steps>) -> Rocket<Build> {
    let routes = routes![write, both, count, together, read_together, steps];
    rocket
        .manage(Barrier::new(CONNECTIONS))
        .manage(Arc::clone(steps_between))
        .mount("/", bounded(routes, HANDLER))
        .attach(Settlement::new())
}

const SETTINGS: [(&str, &str); 3] = [
    ("settle_timeout", "\"1s\""),
    ("databases.main.connect_timeout", "\"1s\""),
    ("databases.audit.connect_timeout", "\"1s\""),
];

struct Scene {
    stage: Stage,
    proxy: Proxy,
    steps: Arc<Steps>,
}

/// Returns a service that reaches its database `main` through a proxy.
async fn scene() -> Scene {
    let mut databases = Databases::with_tables(Backend::Postgres).await;
    let proxy = databases.by_proxy(In::Main).await;
    let steps = Arc::new(Steps {
        first_done: Semaphore::new(0),
        go_on: Semaphore::new(0),
    });
    let stage = Stage::on(databases, &SETTINGS, |rocket| service(rocket, &steps)).await;
    Scene {
        stage,
        proxy,
        steps,
    }
}

impl Scene {
    /// Sends all requests at once.
    async fn at_once(&self, requests: impl IntoIterator<Item = String>) -> Vec<HttpResponse> {
        let requests = requests
            .into_iter()
            .map(async |request| self.timed(&request).await);
        rocket::futures::future::join_all(requests).await
    }

    /// Sends a request, and checks that the response comes in time.
    async fn timed(&self, request: &str) -> HttpResponse {
        let sent = Instant::now();
        let response = self.stage.send(request).await;
        let took = sent.elapsed();
        assert!(took < BOUND, "{request} took {took:?}: {response:?}");
        response
    }

    /// Opens every session of the pools, and leaves them idle.
    async fn open_all(&self) {
        for request in ["POST /together", "GET /together"] {
            let responses = self.at_once(vec![request.to_owned(); CONNECTIONS]).await;
            assert!(responses.iter().all(|response| response.status == 200));
        }
    }

    /// Waits until writes and reads work again, at most for `within`.
    async fn recovers(&self, within: Duration) {
        let broken = Instant::now();
        for (request, status) in [("POST /notes/recovered", 201), ("GET /notes", 200)] {
            eventually("the request works again", async || {
                self.timed(request).await.status == status
            })
            .await;
        }
        let took = broken.elapsed();
        println!("recovered after {took:?}");
        assert!(took < within, "the recovery took {took:?}");
        // The row is stored, and only once: the table has a unique key.
        let notes = self.stage.databases.notes(In::Main).await;
        assert!(notes.contains(&"recovered".to_owned()), "{notes:?}");
    }
}

/// Checks that the response is a refusal after which the client may retry.
fn is_refused(response: &HttpResponse, kind: &str, request: &str) {
    assert_eq!(response.status, 503, "{request}: {response:?}");
    assert_ne!(
        response.outcome(),
        Some("unknown"),
        "{request}: {response:?}"
    );
    assert_eq!(response.kind(), kind, "{request}: {}", response.body);
    assert!(response.header("retry-after").is_some(), "{request}");
}

mod postgres {
    use super::*;

    /// The old connections carry no more packets; new connections work.
    #[rocket::async_test]
    async fn connections_that_died_silently_are_detected_and_replaced() {
        let scene = scene().await;
        scene.open_all().await;
        scene.proxy.freeze();
        let broken = Instant::now();
        let writes = (0..2 * CONNECTIONS).map(|number| format!("POST /notes/{number}"));
        let reads = (0..2 * CONNECTIONS).map(|_| "GET /notes".to_owned());
        let responses = scene.at_once(writes.chain(reads)).await;
        println!("all responses received in {:?}", broken.elapsed());
        let mut written = Vec::new();
        for (number, response) in responses.iter().enumerate() {
            match (response.status, response.outcome()) {
                (201, Some("committed")) => written.push(number.to_string()),
                (200, None) => {}
                (503, Some("rolled-back") | None) => {}
                other => panic!("request {number}: unexpected {other:?}: {response:?}"),
            }
        }
        scene.recovers(Duration::from_secs(10)).await;
        written.push("recovered".into());
        written.sort();
        assert_eq!(scene.stage.databases.notes(In::Main).await, written);
        scene.proxy.thaw();
        scene.stage.nothing_is_stuck().await;
    }

    /// Neither old nor new connections get a reply.
    #[rocket::async_test]
    async fn a_database_behind_a_dead_network_cannot_be_reached_and_recovers_with_it() {
        let scene = scene().await;
        scene.open_all().await;
        scene.proxy.freeze();
        scene.proxy.newcomers(Newcomers::Ignored).await;
        // First, requests detect that the open sessions are dead.
        let requests = (0..3 * CONNECTIONS).map(|number| format!("POST /notes/{number}"));
        for response in scene.at_once(requests).await {
            assert_eq!(response.status, 503, "{response:?}");
        }
        for request in ["POST /notes/1", "POST /both/1", "GET /notes"] {
            is_refused(&scene.timed(request).await, "unreachable", request);
        }
        assert_eq!(scene.stage.notes().await, [""; 0]);
        scene.proxy.newcomers(Newcomers::Served).await;
        scene.recovers(Duration::from_secs(5)).await;
        scene.proxy.thaw();
        scene.stage.nothing_is_stuck().await;
    }

    #[rocket::async_test]
    async fn a_statement_without_a_reply_is_abandoned_with_its_handler() {
        let scene = scene().await;
        let test = async {
            scene.steps.first_done.acquire().await.unwrap().forget();
            scene.proxy.freeze();
            scene.steps.go_on.add_permits(1);
        };
        let (response, ()) = rocket::tokio::join!(scene.timed("POST /steps"), test);
        assert_eq!(
            response.summary(),
            (503, Some("rolled-back")),
            "{}",
            response.body
        );
        is_refused(&response, "handler-timeout", "a statement");
        scene.recovers(Duration::from_secs(5)).await;
        scene.proxy.thaw();
        scene.stage.nothing_is_stuck().await;
        assert_eq!(scene.stage.notes().await, ["recovered"]);
    }

    #[rocket::async_test]
    async fn a_server_that_is_down_is_reported_as_unreachable_and_not_as_busy() {
        let scene = scene().await;
        scene.open_all().await;
        scene.proxy.newcomers(Newcomers::Refused).await;
        scene.proxy.cut();
        for _ in 0..2 {
            for request in ["POST /notes/1", "POST /both/1", "GET /notes"] {
                let response = scene.timed(request).await;
                is_refused(&response, "unreachable", request);
                assert!(
                    response.body.contains("cannot be reached"),
                    "{}",
                    response.body
                );
                assert!(!response.body.contains("busy"), "{}", response.body);
            }
        }
        scene.proxy.newcomers(Newcomers::Served).await;
        scene.recovers(Duration::from_secs(5)).await;
        scene.stage.nothing_is_stuck().await;
    }
}
