//! The promises of the library that the reference service does not use.

use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rocket::http::{Header, Status};
use rocket::request::{FromRequest, Outcome, Request};
use rocket::response::stream::ByteStream;
use rocket::response::{self, Responder, Response};
use rocket::tokio::io::{AsyncReadExt, AsyncWriteExt};
use rocket::tokio::net::TcpStream;
use rocket::{State, post, routes};
use rocket_tx::{Begin, Commit, Error, Outstanding, Settlement};
use rocket_tx_idempotency::{self as idempotency, Bytes, idempotent};

use crate::support::stage::note;
use crate::support::{Backend, HttpResponse, In, Main, Stage, eventually};

/// A response with a body of a given size.
struct Sized(usize);

impl<'r> Responder<'r, 'static> for Sized {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'static> {
        let body = vec![b'x'; self.0];
        Response::build()
            .status(Status::Created)
            .header(Header::new("Location", "/notes/1"))
            .header(Header::new("ETag", "\"1\""))
            // These are not stored.
            .header(Header::new("Set-Cookie", "session=1"))
            .header(Header::new("Date", "Thu, 01 Jan 1970 00:00:00 GMT"))
            .header(Header::new("X-Request-Id", "1"))
            .header(Header::new("Access-Control-Allow-Origin", "*"))
            .header(Header::new("Keep-Alive", "timeout=5"))
            .sized_body(body.len(), Cursor::new(body))
            .ok()
    }
}

#[post("/notes/<text>?<size>")]
async fn sized(text: &str, size: usize, main: Begin<Main>) -> Result<Sized, Error> {
    let mut tx = main.begin().await?;
    note(&mut tx, text).await?;
    Ok(Sized(size))
}

#[post("/streams/<text>")]
async fn streamed(text: &str, main: Begin<Main>) -> Result<ByteStream![Vec<u8>], Error> {
    let mut tx = main.begin().await?;
    note(&mut tx, text).await?;
    Ok(ByteStream! { yield b"streamed".to_vec(); })
}

#[post("/attempts/<text>")]
async fn refused(text: &str, main: Begin<Main>) -> Result<Commit<(Status, &'static str)>, Error> {
    let mut tx = main.begin().await?;
    note(&mut tx, text).await?;
    Ok(Commit((Status::Unauthorized, "counted")))
}

/// Ignores the error of a replay, and reports a success of its own.
#[post("/careless/<text>")]
async fn careless(text: &str, main: Begin<Main>) -> String {
    match main.begin().await {
        Ok(mut tx) => {
            note(&mut tx, text).await.unwrap();
            format!("wrote {text}")
        }
        Err(error) => format!("ignored: {error}"),
    }
}

#[post("/long", data = "<body>")]
async fn long(body: Bytes, main: Begin<Main>) -> Result<String, Error> {
    let mut tx = main.begin().await?;
    note(&mut tx, "long").await?;
    Ok(body.0.len().to_string())
}

#[post("/hooked/<text>")]
async fn hooked(
    text: &str,
    outstanding: &Outstanding,
    runs: &State<Arc<AtomicUsize>>,
    main: Begin<Main>,
) -> Result<(), Error> {
    let runs = Arc::clone(runs);
    outstanding.after_commit(async move {
        runs.fetch_add(1, Ordering::SeqCst);
    })?;
    note(&mut *main.begin().await?, text).await?;
    Ok(())
}

struct User(String);

#[rocket::async_trait]
impl<'r> FromRequest<'r> for User {
    type Error = ();

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, ()> {
        match request.headers().get_one("X-User") {
            Some(user) => Outcome::Success(Self(user.to_owned())),
            None => Outcome::Error((Status::Unauthorized, ())),
        }
    }
}

/// Inserts a note for the user who sends the request.
#[post("/mine")]
async fn mine(user: User, main: Begin<Main>) -> Result<String, Error> {
    note(&mut *main.begin().await?, &user.0).await?;
    Ok(format!("a note of {}", user.0))
}

async fn stage(
    backend: Backend,
    set: impl FnOnce(idempotency::Initializer<Main>) -> idempotency::Initializer<Main>,
) -> Stage {
    Stage::new(backend, |rocket| {
        rocket
            .attach(set(idempotency::init::<Main>()))
            .attach(Settlement::new())
            .mount(
                "/",
                idempotent::<Main>(routes![sized, streamed, refused, careless, long, mine]),
            )
    })
    .await
}

async fn send(stage: &Stage, line: &str, key: &str) -> HttpResponse {
    let request = stage.http.request(line).header("Idempotency-Key", key);
    HttpResponse::of(request).await
}

async fn a_response_that_cannot_be_stored_is_reported_with_its_location(backend: Backend) {
    let stage = stage(backend, |keys| keys.max_body(100)).await;
    let small = "POST /notes/small?size=100";
    let (first, again) = (
        send(&stage, small, "s").await,
        send(&stage, small, "s").await,
    );
    assert_eq!((first.status, again.status), (201, 201), "{again:?}");
    assert_eq!(first.body, again.body);
    assert_eq!(again.header("location"), Some("/notes/1"));
    assert_eq!(again.header("etag"), Some("\"1\""));
    assert_eq!(first.header("set-cookie"), Some("session=1"));
    assert_eq!(again.header("set-cookie"), None);
    for (line, key, status, location) in [
        ("POST /notes/large?size=101", "l", 201, Some("/notes/1")),
        ("POST /streams/streamed", "t", 200, None),
    ] {
        let first = send(&stage, line, key).await;
        assert_eq!(first.summary(), (status, Some("committed")), "{line}");
        assert!(
            first.body.len() == 101 || first.body == "streamed",
            "{line}"
        );
        let again = send(&stage, line, key).await;
        assert_eq!(again.summary(), (409, Some("committed")), "{again:?}");
        assert_eq!(again.kind(), "idempotency-response-not-stored");
        let problem: rocket::serde::json::Value = again.json();
        assert_eq!(problem["original"]["status"], status);
        assert_eq!(problem["original"]["location"].as_str(), location);
    }
    assert_eq!(stage.notes().await, ["large", "small", "streamed"]);
    stage.nothing_is_stuck().await;
    stage.close().await;
}

/// By default, 64 KiB of a body are stored.
async fn a_body_of_64_kib_is_stored_and_a_larger_one_is_not(backend: Backend) {
    let stage = stage(backend, |keys| keys).await;
    for (size, status) in [(64 * 1024, 201), (64 * 1024 + 1, 409)] {
        let line = format!("POST /notes/{size}?size={size}");
        let first = send(&stage, &line, "k").await;
        assert_eq!((first.status, first.body.len()), (201, size));
        let again = send(&stage, &line, "k").await;
        assert_eq!(again.status, status, "{size}");
        match status {
            201 => assert_eq!(again.body, first.body),
            _ => assert_eq!(again.kind(), "idempotency-response-not-stored"),
        }
    }
    assert_eq!(stage.notes().await, ["65536", "65537"]);
    stage.close().await;
}

async fn headers_of_one_request_are_not_stored(backend: Backend) {
    let stage = stage(backend, |keys| keys).await;
    let line = "POST /notes/one?size=1";
    let (first, again) = (send(&stage, line, "k").await, send(&stage, line, "k").await);
    assert_eq!((first.status, again.status), (201, 201), "{again:?}");
    let stored = "SELECT headers FROM idempotency_keys";
    let stored = stage.databases.texts(In::Main, stored).await.concat();
    for (name, is_stored) in [
        ("location", true),
        ("etag", true),
        ("set-cookie", false),
        ("date", false),
        ("x-request-id", false),
        ("access-control-allow-origin", false),
        ("keep-alive", false),
        ("transaction-outcome", false),
    ] {
        assert_eq!(
            stored.to_lowercase().contains(&format!("\"{name}\"")),
            is_stored,
            "{stored}"
        );
        match is_stored {
            true => assert_eq!(first.header(name), again.header(name), "{name}"),
            false => {
                let is_sent_again = again.header(name).is_some();
                let is_made_anew = ["date", "x-request-id", "transaction-outcome"].contains(&name);
                assert_eq!(is_sent_again, is_made_anew, "{name}: {again:?}");
            }
        }
    }
    assert_ne!(first.header("x-request-id"), again.header("x-request-id"));
    stage.close().await;
}

async fn hooks_do_not_run_again_for_a_stored_response(backend: Backend) {
    let runs = Arc::new(AtomicUsize::new(0));
    let stage = {
        let runs = Arc::clone(&runs);
        Stage::new(backend, |rocket| {
            rocket
                .attach(idempotency::init::<Main>().shared_keys())
                .attach(Settlement::new())
                .manage(runs)
                .mount("/", idempotent::<Main>(routes![hooked]))
        })
        .await
    };
    for (key, expected) in [("k", 1), ("k", 1), ("k", 1), ("other", 2)] {
        let response = send(&stage, &format!("POST /hooked/{key}"), key).await;
        assert_eq!(response.status, 200, "{response:?}");
        eventually("the hook has run", async || {
            runs.load(Ordering::SeqCst) >= expected
        })
        .await;
    }
    let databases = stage.close().await;
    // Shutdown waits for hooks.
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    assert_eq!(databases.notes(In::Main).await, ["k", "other"]);
}

async fn a_failure_that_the_handler_commits_is_stored(backend: Backend) {
    let stage = stage(backend, |keys| keys).await;
    let first = send(&stage, "POST /attempts/one", "k").await;
    assert_eq!(first.summary(), (401, Some("committed")), "{first:?}");
    let again = send(&stage, "POST /attempts/one", "k").await;
    assert_eq!(again.summary(), (401, Some("committed")), "{again:?}");
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(first.body, again.body);
    assert_eq!(stage.notes().await, ["one"]);
    stage.close().await;
}

async fn a_handler_that_ignores_errors_cannot_prevent_the_replay(backend: Backend) {
    let stage = stage(backend, |keys| keys).await;
    let first = send(&stage, "POST /careless/one", "k").await;
    let again = send(&stage, "POST /careless/one", "k").await;
    assert_eq!(
        (first.body, again.body.as_str()),
        (again.body.clone(), "wrote one")
    );
    assert_eq!(stage.notes().await, ["one"]);
    stage.close().await;
}

async fn an_expired_key_is_a_new_request_and_its_row_is_deleted(backend: Backend) {
    let expiry = Duration::from_millis(300);
    let stage = stage(backend, |keys| {
        keys.expiry(expiry)
            .sweep_interval(Duration::from_millis(50))
    })
    .await;
    assert_eq!(
        send(&stage, "POST /notes/one?size=1", "k").await.status,
        201
    );
    eventually("the row is deleted", async || {
        let rows = "SELECT CAST(status AS TEXT) FROM idempotency_keys";
        stage.databases.texts(In::Main, rows).await.is_empty()
    })
    .await;
    // The note exists, so the handler's own statement refuses: the request ran again.
    assert_eq!(
        send(&stage, "POST /notes/one?size=1", "k").await.status,
        409
    );
    stage.close().await;
}

/// The row has expired, and no sweep has deleted it.
async fn an_expired_row_is_claimed_again(backend: Backend) {
    let stage = stage(backend, |keys| keys).await;
    assert_eq!(
        send(&stage, "POST /notes/one?size=1", "k").await.status,
        201
    );
    let expire = "UPDATE idempotency_keys SET expires_at = 1";
    stage.databases.execute(In::Main, expire).await;
    stage.databases.execute(In::Main, "DELETE FROM notes").await;
    let again = send(&stage, "POST /notes/one?size=1", "k").await;
    assert_eq!(
        (again.status, again.header("idempotency-replayed")),
        (201, None)
    );
    assert_eq!(stage.notes().await, ["one"]);
    stage.close().await;
}

async fn a_key_can_be_required(backend: Backend) {
    let stage = stage(backend, idempotency::Initializer::required).await;
    let missing = stage.send("POST /notes/one?size=1").await;
    assert_eq!(
        (missing.status, &*missing.kind()),
        (400, "idempotency-key-missing")
    );
    assert_eq!(
        send(&stage, "POST /notes/one?size=1", "k").await.status,
        201
    );
    stage.close().await;
}

async fn callers_do_not_share_keys_and_are_authenticated_first(backend: Backend) {
    let stage = stage(backend, |keys| {
        keys.caller(|request| {
            Box::pin(async move {
                match request.guard::<User>().await {
                    Outcome::Success(User(name)) => Ok(name),
                    Outcome::Error((status, ())) | Outcome::Forward(status) => Err(status),
                }
            })
        })
    })
    .await;
    let send = async |user: Option<&str>| {
        let mut request = stage
            .http
            .request("POST /mine")
            .header("Idempotency-Key", "k");
        if let Some(user) = user {
            request = request.header("X-User", user);
        }
        HttpResponse::of(request).await
    };
    // All requests are equal, except for the caller.
    for user in ["ann", "bob"] {
        for replayed in [None, Some("true")] {
            let response = send(Some(user)).await;
            assert_eq!(response.body, format!("a note of {user}"), "{response:?}");
            assert_eq!(response.header("idempotency-replayed"), replayed, "{user}");
        }
    }
    let refused = send(None).await;
    assert_eq!(refused.status, 401, "{refused:?}");
    assert_eq!(refused.header("idempotency-replayed"), None);
    assert_eq!(stage.notes().await, ["ann", "bob"]);
    stage.close().await;
}

async fn a_slow_body_holds_no_connection(backend: Backend) {
    let stage = stage(backend, |keys| keys).await;
    let address = stage.http.base.trim_start_matches("http://").to_owned();
    let mut slow = TcpStream::connect(address).await.unwrap();
    let head = "POST /long HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: k\r\n\
                Content-Length: 2000\r\nConnection: close\r\n\r\n";
    slow.write_all(head.as_bytes()).await.unwrap();
    slow.write_all(&[b'x'; 1_000]).await.unwrap();
    eventually("the request has a key", async || {
        !stage.outstanding().is_empty()
    })
    .await;
    let outstanding = stage.outstanding();
    assert_eq!(outstanding.len(), 1, "{outstanding:?}");
    assert_eq!(outstanding[0].resource, "idempotency key in main");
    slow.write_all(&[b'x'; 1_000]).await.unwrap();
    let mut response = String::new();
    slow.read_to_string(&mut response).await.unwrap();
    assert!(
        response.starts_with("HTTP/1.1 200") && response.ends_with("2000"),
        "{response}"
    );
    assert_eq!(stage.notes().await, ["long"]);
    stage.close().await;
}

on_each_backend!(
    a_slow_body_holds_no_connection,
    a_response_that_cannot_be_stored_is_reported_with_its_location,
    a_body_of_64_kib_is_stored_and_a_larger_one_is_not,
    headers_of_one_request_are_not_stored,
    hooks_do_not_run_again_for_a_stored_response,
    a_failure_that_the_handler_commits_is_stored,
    a_handler_that_ignores_errors_cannot_prevent_the_replay,
    an_expired_key_is_a_new_request_and_its_row_is_deleted,
    an_expired_row_is_claimed_again,
    a_key_can_be_required,
    callers_do_not_share_keys_and_are_authenticated_first,
);
