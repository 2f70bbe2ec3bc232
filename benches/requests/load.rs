//! The load: a few clients with persistent connections. Each sends the next request as soon as it
//! has received a response.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rocket::tokio::net::TcpStream;
use rocket::tokio::spawn;
use rocket::tokio::task::JoinSet;

pub const CLIENTS: usize = 16;

/// The result of loading one route for one slice of time.
#[derive(Clone, Copy)]
pub struct Slice {
    pub responses: u64,
    pub per_second: f64,
    /// Milliseconds.
    pub p50: f64,
    pub p99: f64,
    /// The server's processor time per request, in microseconds; NaN until it is measured.
    pub cpu: f64,
}

/// Returns the number of rows that these responses have written.
pub fn written(what: &str, responses: u64) -> u64 {
    if what.starts_with("POST") {
        responses
    } else {
        0
    }
}

pub async fn run(port: u16, what: &'static str, time: Duration) -> Slice {
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(send_requests(port, what, client, started + time));
    }
    let mut all = Histogram::<u64>::new(3).unwrap();
    for micros in clients.join_all().await {
        all.add(micros).unwrap();
    }
    let millis = |quantile| all.value_at_quantile(quantile) as f64 / 1_000.0;
    Slice {
        responses: all.len(),
        per_second: all.len() as f64 / started.elapsed().as_secs_f64(),
        p50: millis(0.5),
        p99: millis(0.99),
        cpu: f64::NAN,
    }
}

async fn send_requests(port: u16, what: &str, client: usize, until: Instant) -> Histogram<u64> {
    let (method, path) = what.split_once(' ').unwrap();
    let expected = match method {
        "POST" => StatusCode::CREATED,
        _ => StatusCode::OK,
    };
    let mut connection = connect(port).await;
    let mut micros = Histogram::new(3).unwrap();
    for turn in 0.. {
        if Instant::now() >= until {
            break;
        }
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{path}/{}", (client * 61 + turn) % 1_000))
            .header("Host", "localhost");
        if path.starts_with("/keyed") {
            request = request.header("Idempotency-Key", new_key());
        }
        let request = request.body(Empty::new()).unwrap();
        let sent = Instant::now();
        connection.ready().await.unwrap();
        let response = connection.send_request(request).await.unwrap();
        assert_eq!(response.status(), expected, "{what}");
        response.into_body().collect().await.unwrap();
        micros
            .record(u64::try_from(sent.elapsed().as_micros()).unwrap())
            .unwrap();
    }
    micros
}

/// Returns a key that no other request of this benchmark has.
fn new_key() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);

    NEXT.fetch_add(1, Ordering::Relaxed)
}

async fn connect(port: u16) -> SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    spawn(connection);
    sender
}
