//! Work that survives a rollback: it runs after the settlement, in a transaction of its own. Beside
//! the request's own transaction it is refused where it would wait for itself.

use std::borrow::Cow;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rocket::fairing::AdHoc;
use rocket::http::Status;
use rocket::tokio::sync::Notify;
use rocket::{State, post, routes};
use rocket_tx::db::{TransactionPool, UrlPool};
use rocket_tx::{Error, Outstanding, Resource, Settlement, Tx};

use crate::support::stage::note;
use crate::support::{Backend, In, Main, Stage, WRITES, eventually};

/// Writes a note, records the attempt, and responds with a status.
#[post("/attempt/<code>")]
async fn attempt(
    code: u16,
    mut tx: Tx<Main>,
    main: &State<Main>,
    outstanding: &Outstanding,
) -> Result<(Status, ()), Error> {
    note(&mut tx, &format!("written {code}")).await?;
    let main = UrlPool::clone(main);
    outstanding.after_settlement(async move {
        let text = format!("attempt {code}");
        main.transaction(async |mut tx| Ok(note(&mut tx, &text).await?))
            .await
    })?;
    Ok((Status::new(code), ()))
}

#[post("/failing")]
async fn failing(main: &State<Main>, outstanding: &Outstanding) -> Result<(), Error> {
    let main = UrlPool::clone(main);
    outstanding.after_settlement(async move {
        main.transaction(async |mut tx| {
            note(&mut tx, "undone").await?;
            Err::<(), _>(Error::Conflict("on purpose".into()))
        })
        .await
    })?;
    outstanding.after_settlement(async {
        if true {
            panic!("in a hook");
        }
    })
}

#[post("/slow")]
async fn slow(outstanding: &Outstanding, go_on: &State<Arc<Notify>>) -> Result<(), Error> {
    let go_on = Arc::clone(go_on);
    outstanding.after_settlement(async move { go_on.notified().await })
}

/// Panics when it is dropped, at the end of the settlement.
struct Explosive;

#[rocket::async_trait]
impl Resource for Explosive {
    fn name(&self) -> Cow<'_, str> {
        "explosive".into()
    }

    async fn commit(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

impl Drop for Explosive {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("in the drop of a resource");
        }
    }
}

/// Records the attempt, and then prevents the settlement in some `way`, or waits.
#[post("/unsettled/<way>")]
async fn unsettled(
    way: &str,
    mut tx: Tx<Main>,
    main: &State<Main>,
    outstanding: &Outstanding,
    go_on: &State<Arc<Notify>>,
) -> Result<(), Error> {
    note(&mut tx, &format!("written {way}")).await?;
    let (main, text) = (UrlPool::clone(main), format!("attempt {way}"));
    outstanding.after_settlement(async move {
        main.transaction(async |mut tx| Ok(note(&mut tx, &text).await?))
            .await
    })?;
    match way {
        "drop" => outstanding.join(Explosive),
        "fairing" => Ok(()),
        _ => {
            go_on.notified().await;
            Err(Error::NotFound)
        }
    }
}

/// A response fairing that panics before `Settlement` runs.
fn panic_before_settlement() -> AdHoc {
    AdHoc::on_response("Panics", |request, _| {
        Box::pin(async {
            if request.uri().path() == "/unsettled/fairing" {
                panic!("in a fairing");
            }
        })
    })
}

/// Opens a second transaction beside the request's own.
#[post("/beside/<way>")]
async fn beside(way: &str, mut tx: Tx<Main>, main: &State<Main>) -> Result<(), Error> {
    note(&mut tx, "own").await?;
    match way {
        "open" => {
            let mut other = main.open(WRITES).await?;
            note(other.connection(), "beside").await?;
            Ok(other.commit().await?)
        }
        _ => {
            main.transaction(async |mut tx| Ok(note(&mut tx, "beside").await?))
                .await
        }
    }
}

async fn stage(backend: Backend, go_on: &Arc<Notify>) -> Stage {
    let settings = [
        ("settle_timeout", "\"1s\""),
        ("databases.main.connect_timeout", "60"),
    ];
    let managed = Arc::clone(go_on);
    Stage::with(backend, &settings, |rocket| {
        rocket
            .manage(managed)
            .mount("/", routes![attempt, failing, slow, unsettled, beside])
            .attach(panic_before_settlement())
            .attach(Settlement::new())
    })
    .await
}

async fn it_is_stored_before_the_response_whatever_the_verdict(backend: Backend) {
    let stage = stage(backend, &Arc::default()).await;
    let mut expected = Vec::new();
    for (code, outcome) in [
        (201, "committed"),
        (401, "rolled-back"),
        (503, "rolled-back"),
    ] {
        let response = stage.send(&format!("POST /attempt/{code}")).await;
        assert_eq!(response.summary(), (code, Some(outcome)));
        expected.push(format!("attempt {code}"));
        let mut notes = stage.databases.notes(In::Main).await;
        notes.retain(|text| text.starts_with("attempt"));
        assert_eq!(notes, expected, "when the response is here");
    }
    let notes = stage.databases.notes(In::Main).await;
    assert!(notes.contains(&"written 201".to_owned()));
    assert_eq!(notes.len(), 4, "{notes:?}");
    stage.nothing_is_stuck().await;
}

async fn it_runs_also_if_the_settlement_fails(backend: Backend) {
    let stage = stage(backend, &Arc::default()).await;
    let response = stage.send("POST /unsettled/drop").await;
    assert_eq!(response.summary(), (500, Some("unknown")));
    // Rocket's task panics, so this client gets no response.
    let unsettled = stage.http.request("POST /unsettled/fairing");
    assert!(unsettled.send().await.is_err());
    eventually("both attempts are stored", async || {
        let mut notes = stage.databases.notes(In::Main).await;
        notes.retain(|text| text.starts_with("attempt"));
        notes == ["attempt drop", "attempt fairing"]
    })
    .await;
    let notes = stage.databases.notes(In::Main).await;
    assert!(!notes.contains(&"written fairing".to_owned()));
    stage.nothing_is_stuck().await;
}

/// A client that does not wait for the response is recorded too.
async fn it_runs_although_the_client_is_gone(backend: Backend) {
    let go_on = Arc::new(Notify::new());
    let stage = stage(backend, &go_on).await;
    let address = stage.http.base.trim_start_matches("http://").to_owned();
    let mut client = TcpStream::connect(address).unwrap();
    client
        .write_all(b"POST /unsettled/not HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    eventually("the handler runs", async || !stage.outstanding().is_empty()).await;
    drop(client);
    go_on.notify_one();
    eventually("the attempt is stored", async || {
        stage.databases.notes(In::Main).await == ["attempt not"]
    })
    .await;
    stage.nothing_is_stuck().await;
}

async fn its_failure_is_counted_and_changes_no_response(backend: Backend) {
    let stage = stage(backend, &Arc::default()).await;
    let response = stage.send("POST /failing").await;
    assert_eq!(response.status, 200);
    assert_eq!(stage.live.hook_failures(), 2);
    assert!(stage.notes().await.is_empty());
}

async fn the_response_waits_at_most_settle_timeout(backend: Backend) {
    let go_on = Arc::new(Notify::new());
    let stage = stage(backend, &go_on).await;
    let started = Instant::now();
    assert_eq!(stage.send("POST /slow").await.status, 200);
    assert!(
        started.elapsed() >= Duration::from_secs(1),
        "it has not waited"
    );
    assert!(started.elapsed() < Duration::from_secs(30));
    // Shutdown waits for the hook.
    let closing = rocket::tokio::spawn(stage.close());
    rocket::tokio::task::yield_now().await;
    go_on.notify_one();
    eventually("the service ends", async || closing.is_finished()).await;
}

async fn a_transaction_beside_its_own_is_refused_at_once(backend: Backend) {
    let stage = stage(backend, &Arc::default()).await;
    for way in ["open", "transaction"] {
        let started = Instant::now();
        let response = stage.send(&format!("POST /beside/{way}")).await;
        assert!(started.elapsed() < Duration::from_secs(45), "it has waited");
        match backend {
            Backend::Sqlite => {
                assert_eq!(response.summary(), (500, Some("rolled-back")));
                assert_eq!(response.kind(), "waits-for-itself");
            }
            Backend::Postgres => {
                assert_eq!(response.summary(), (200, Some("committed")), "{response:?}");
            }
        }
        stage.databases.empty().await;
    }
    // Another request, without a transaction of its own, waits as usual.
    let response = stage.send("POST /attempt/201").await;
    assert_eq!(response.summary(), (201, Some("committed")));
    stage.nothing_is_stuck().await;
}

on_each_backend!(
    it_is_stored_before_the_response_whatever_the_verdict,
    it_runs_also_if_the_settlement_fails,
    it_runs_although_the_client_is_gone,
    its_failure_is_counted_and_changes_no_response,
    the_response_waits_at_most_settle_timeout,
    a_transaction_beside_its_own_is_refused_at_once,
);
