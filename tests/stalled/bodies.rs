//! Bodies that hold a `Read`: which of them are cut off, and what their clients receive.

use super::*;

async fn reads_of_stalled_clients_are_freed_and_their_bodies_are_cut(backend: Backend) {
    let scene = scene(backend).await;
    let stage = &scene.stage;
    let mut clients = scene.stall("/stream").await;
    scene.is_freed().await;
    for client in &mut clients {
        let rest = client.rest(LAST_CHUNK).await;
        assert!(rest.len() < CHUNKS * CHUNK, "{}", rest.len());
        assert!(!rest.ends_with(LAST_CHUNK), "the response looks complete");
        assert!(!rest.contains(END));
    }
    // More requests than connections: all connections are free and usable.
    for _ in 0..2 * READERS {
        assert_eq!(stage.send("GET /count").await.body, "1");
    }
    stage.nothing_is_stuck().await;
}

async fn bodies_of_known_size_are_cut_too(backend: Backend) {
    let scene = scene(backend).await;
    let stage = &scene.stage;
    let size = CHUNKS * CHUNK + END.len();
    let response = stage.send(&format!("GET /sized/{CHUNKS}")).await;
    assert_eq!(
        response.header("content-length"),
        Some(size.to_string().as_str())
    );
    assert_eq!(response.body.len(), size);
    let mut clients = scene.stall("/sized").await;
    scene.is_freed().await;
    for client in &mut clients {
        let rest = client.rest(END).await;
        assert!(rest.len() < size, "{}", rest.len());
    }
    stage.nothing_is_stuck().await;
}

/// The client reads so slowly that the system's buffer rarely needs more data from the service.
async fn a_client_that_reads_slowly_gets_everything(backend: Backend) {
    let scene = scene(backend).await;
    let mut client = Client::requesting(&scene.stage.http, &format!("GET /stream/{CHUNKS}")).await;
    let (mut length, started) = (0, Instant::now());
    while started.elapsed() < 5 * LIMIT {
        let mut part = [0; 4 * 1024];
        client.0.read_exact(&mut part).await.unwrap();
        length += part.len();
        sleep(Duration::from_millis(40)).await;
    }
    let rest = client.rest(LAST_CHUNK).await;
    length += rest.len();
    assert!(length > CHUNKS * CHUNK, "{length}");
    assert!(rest.ends_with(&format!("{END}{LAST_CHUNK}")));
    scene.stage.nothing_is_stuck().await;
}

async fn a_body_that_does_not_wait_for_its_client_is_not_cut(backend: Backend) {
    let scene = scene(backend).await;
    let stage = &scene.stage;
    let mut client = Client::requesting(&stage.http, "GET /waiting").await;
    let beginning = client.rest("the beginning, \r\n").await;
    assert!(beginning.ends_with("the beginning, \r\n"));
    sleep(3 * LIMIT).await;
    assert_eq!(stage.send("POST /go-on").await.status, 200);
    let rest = client.rest(LAST_CHUNK).await;
    assert!(rest.contains(END) && rest.ends_with(LAST_CHUNK), "{rest}");
    stage.nothing_is_stuck().await;
}

async fn a_body_that_has_dropped_its_read_is_not_cut(backend: Backend) {
    let scene = scene(backend).await;
    let mut client = Client::requesting(&scene.stage.http, &format!("GET /early/{CHUNKS}")).await;
    sleep(3 * LIMIT).await;
    let rest = client.rest(LAST_CHUNK).await;
    assert!(rest.ends_with(&format!("{END}{LAST_CHUNK}")));
}

async fn a_body_is_not_cut_for_a_read_held_by_a_task(backend: Backend) {
    let scene = scene(backend).await;
    let mut client = Client::requesting(&scene.stage.http, &format!("GET /beside/{CHUNKS}")).await;
    sleep(3 * LIMIT).await;
    let rest = client.rest(END).await;
    assert!(rest.ends_with(END), "cut after {}", rest.len());
    assert_eq!(scene.stage.send("POST /go-on").await.status, 200);
    scene.stage.nothing_is_stuck().await;
}

/// The runtime of a test has one worker, so nothing else runs while a panic unwinds. Here the
/// connection can be served meanwhile by another worker.
async fn a_body_that_fails_does_not_look_complete(backend: Backend) {
    let mut workers = rocket::tokio::runtime::Builder::new_multi_thread();
    let workers = workers.worker_threads(4).enable_all().build().unwrap();
    let bodies =
        rocket::tokio::task::spawn_blocking(move || workers.block_on(failing_bodies(backend)));
    bodies.await.unwrap();
}

async fn failing_bodies(backend: Backend) {
    let scene = scene(backend).await;
    // The race with the end of the response is lost only now and then.
    for request in ["GET /broken/fails", "GET /broken/panics"].repeat(50) {
        let mut client = Client::of(&scene.stage.http).await;
        client.send(request).await;
        let rest = client.rest(LAST_CHUNK).await;
        assert!(!rest.ends_with(LAST_CHUNK), "{request}: {rest}");
    }
    scene.stage.nothing_is_stuck().await;
}

async fn a_connection_that_waits_between_two_requests_is_not_cut(backend: Backend) {
    let scene = scene(backend).await;
    let stage = &scene.stage;
    let mut client = Client::requesting(&stage.http, "GET /stream/1").await;
    for _ in 0..2 {
        let rest = client.rest(LAST_CHUNK).await;
        assert!(rest.ends_with(LAST_CHUNK), "{rest}");
        sleep(2 * LIMIT).await;
        client.request("GET /stream/1").await;
    }
}

/// The timeout is the longest possible, so it is not the reason why the connections become free.
async fn head_requests_and_disconnected_clients_keep_no_connection(backend: Backend) {
    let scene = scene_with(backend, "\"24days\"").await;
    let stage = &scene.stage;
    let tasks = || {
        rocket::tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    scene.is_freed().await;
    stage.nothing_is_stuck().await;
    let before = tasks();
    for _ in 0..2 * READERS {
        for path in ["stream", "sized"] {
            let response = stage.send(&format!("HEAD /{path}/{CHUNKS}")).await;
            assert_eq!(
                (response.summary(), response.body.as_str()),
                ((200, None), "")
            );
        }
    }
    scene.is_freed().await;
    for path in ["/stream", "/sized"] {
        drop(scene.stall(path).await);
        scene.is_freed().await;
    }
    stage.nothing_is_stuck().await;
    // A few tasks remain for connections that are kept alive for the next request.
    eventually("no task watches these 24 bodies", async || {
        tasks() < before + 2 * READERS
    })
    .await;
}

mod files {
    use super::*;

    /// Returns whether a checkpoint can copy the whole WAL into the database and truncate it.
    async fn is_reset(databases: &Databases) -> bool {
        let mut connection = databases.sqlite(In::Main).await;
        sqlx::query("PRAGMA busy_timeout = 0")
            .execute(&mut connection)
            .await
            .unwrap();
        let (busy, ..): (i64, i64, i64) = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        busy == 0
    }

    #[rocket::async_test]
    async fn a_stalled_client_does_not_keep_the_wal_growing() {
        let scene = scene(Backend::Sqlite).await;
        let stage = &scene.stage;
        let _clients = scene.stall("/stream").await;
        let response = stage.send("POST /notes/after").await;
        assert_eq!(response.summary(), (200, Some("committed")));
        assert!(
            !is_reset(&stage.databases).await,
            "the readers keep the WAL"
        );
        eventually("the WAL is truncated", async || {
            is_reset(&stage.databases).await
        })
        .await;
    }
}

/// Runs on one thread, because the log is captured per thread.
#[test]
fn each_closed_connection_is_logged_once() {
    let runtime = rocket::tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let log = logged_here(|| {
        runtime.block_on(async {
            let scene = scene(Backend::Sqlite).await;
            let clients = scene.stall("/stream").await;
            scene.is_freed().await;
            // The other connections are closed independently.
            for mut client in clients {
                client.rest(LAST_CHUNK).await;
            }
        });
    });
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("read_idle_timeout"))
        .collect();
    assert_eq!(lines.len(), READERS, "{log}");
    for line in lines {
        for field in [
            "WARN",
            "id=",
            "route=\"stream\"",
            "main",
            "client=127.0.0.1:",
        ] {
            assert!(line.contains(field), "{field} is missing from {line}");
        }
    }
}

on_each_backend!(
    reads_of_stalled_clients_are_freed_and_their_bodies_are_cut,
    bodies_of_known_size_are_cut_too,
    a_client_that_reads_slowly_gets_everything,
    a_body_that_does_not_wait_for_its_client_is_not_cut,
    a_body_that_has_dropped_its_read_is_not_cut,
    a_body_is_not_cut_for_a_read_held_by_a_task,
    a_body_that_fails_does_not_look_complete,
    a_connection_that_waits_between_two_requests_is_not_cut,
    head_requests_and_disconnected_clients_keep_no_connection,
);
