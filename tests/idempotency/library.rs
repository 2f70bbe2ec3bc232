//! The promises of the library that the reference service does not use.

use std::io::Cursor;
use std::time::Duration;

use rocket::http::{Header, Status};
use rocket::request::{FromRequest, Outcome, Request};
use rocket::response::stream::ByteStream;
use rocket::response::{self, Responder, Response};
use rocket::tokio::io::{AsyncReadExt, AsyncWriteExt};
use rocket::tokio::net::TcpStream;
use rocket::{post, routes};
use rocket_tx::{Begin, Commit, Error, Settlement};
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
            .header(Header::new("Set-Cookie", "session=1"))
            .header(Header::new("ETag", "\"1\""))
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
                idempotent::<Main>(routes![sized, streamed, refused, careless, long]),
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
    let send = async |user: Option<&str>, size: u32| {
        let line = format!("POST /notes/{}?size={size}", user.unwrap_or("nobody"));
        let mut request = stage.http.request(&line).header("Idempotency-Key", "k");
        if let Some(user) = user {
            request = request.header("X-User", user);
        }
        HttpResponse::of(request).await
    };
    assert_eq!(send(Some("ann"), 1).await.status, 201);
    let again = send(Some("ann"), 1).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(send(None, 1).await.status, 401);
    let bob = send(Some("bob"), 1).await;
    assert_eq!(
        (bob.status, bob.header("idempotency-replayed")),
        (201, None)
    );
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
    a_failure_that_the_handler_commits_is_stored,
    a_handler_that_ignores_errors_cannot_prevent_the_replay,
    an_expired_key_is_a_new_request_and_its_row_is_deleted,
    an_expired_row_is_claimed_again,
    a_key_can_be_required,
    callers_do_not_share_keys_and_are_authenticated_first,
);
