//! The connection that is closed is that of the stalled client, even if the client claims another
//! address.

use rocket::fairing::{AdHoc, Fairing};

use super::*;
use crate::support::stage::figment;

const SETTINGS: [(&str, &str); 2] = [
    ("read_idle_timeout", "1"),
    ("databases.main.connect_timeout", "\"300ms\""),
];

/// Takes the address of a client from a header of its request, as a service behind a proxy does.
fn proxied() -> impl Fairing {
    AdHoc::on_request("Proxied", |request, _| {
        Box::pin(async move {
            let address = request.headers().get_one("Forwarded");
            if let Some(address) = address.and_then(|address| address.parse().ok()) {
                request.set_remote(address);
            }
        })
    })
}

/// Returns a service that trusts the addresses in the headers of clients.
async fn trusting_scene(backend: Backend, is_late: bool) -> Scene {
    let databases = Databases::with_tables(backend).await;
    let bodies = Bodies::default();
    let stage = Stage::on(databases, &SETTINGS, |rocket| match is_late {
        true => service(rocket, &bodies).attach(proxied()),
        false => service(rocket.attach(proxied()), &bodies),
    })
    .await;
    Scene::of(backend, stage, bodies).await
}

impl Scene {
    /// Checks that the client, which does not read, is disconnected.
    async fn cuts(&self, mut client: Client) {
        self.is_freed().await;
        let rest = client.rest(LAST_CHUNK).await;
        assert!(!rest.ends_with(LAST_CHUNK), "the response looks complete");
    }

    fn port(&self) -> u16 {
        let (_, port) = self.stage.http.base.rsplit_once(':').unwrap();
        port.parse().unwrap()
    }
}

impl Client {
    /// Sends a request that claims an address, and reads the beginning of the response.
    async fn request_from(&mut self, address: SocketAddr, request: &str) {
        let head = format!("{request} HTTP/1.1\r\nHost: localhost\r\nForwarded: {address}\r\n\r\n");
        self.0.write_all(head.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        self.0.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 200", "{request}");
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

async fn a_forged_address_does_not_protect_a_stalled_client(backend: Backend) {
    for is_late in [false, true] {
        let scene = trusting_scene(backend, is_late).await;
        let mut client = Client::of(&scene.stage.http).await;
        let elsewhere = "203.0.113.7:4711".parse().unwrap();
        client
            .request_from(elsewhere, &format!("GET /stream/{CHUNKS}"))
            .await;
        scene.cuts(client).await;
    }
}

async fn a_forged_address_closes_no_other_connection(backend: Backend) {
    for is_late in [false, true] {
        let scene = trusting_scene(backend, is_late).await;
        let mut other = Client::requesting(&scene.stage.http, "GET /waiting").await;
        let mut client = Client::of(&scene.stage.http).await;
        client
            .request_from(other.address(), &format!("GET /stream/{CHUNKS}"))
            .await;
        scene.cuts(client).await;
        assert_eq!(scene.stage.send("POST /go-on").await.status, 200);
        let rest = other.rest(LAST_CHUNK).await;
        assert!(rest.contains(END) && rest.ends_with(LAST_CHUNK), "{rest}");
    }
}

/// The fairing is attached before the databases and `Settlement`, so no address is certain.
async fn no_connection_is_closed_if_its_address_is_uncertain(backend: Backend) {
    let databases = Databases::with_tables(backend).await;
    let bodies = Bodies::default();
    let rocket = rocket::custom(figment(&databases, &SETTINGS)).attach(proxied());
    let stage = Stage::from(databases, rocket, |rocket| service(rocket, &bodies)).await;
    let scene = Scene::of(backend, stage, bodies).await;
    let mut other = Client::requesting(&scene.stage.http, "GET /waiting").await;
    let mut client = Client::of(&scene.stage.http).await;
    client
        .request_from(other.address(), &format!("GET /stream/{CHUNKS}"))
        .await;
    sleep(3 * LIMIT).await;
    assert_eq!(scene.stage.send("POST /go-on").await.status, 200);
    let rest = other.rest(LAST_CHUNK).await;
    assert!(rest.contains(END) && rest.ends_with(LAST_CHUNK), "{rest}");
    let rest = client.rest(LAST_CHUNK).await;
    assert!(rest.ends_with(&format!("{END}{LAST_CHUNK}")));
    scene.is_freed().await;
}

/// Connects from a local port to an address of the service.
async fn connect(from: u16, to: ([u8; 4], u16)) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    socket.bind(([127, 0, 0, 1], from).into()).unwrap();
    Client(socket.connect(to.into()).await.unwrap())
}

const ONE: [u8; 4] = [127, 0, 0, 1];
const OTHER: [u8; 4] = [127, 0, 0, 2];

/// One port of a client's machine may have connections to two addresses of the service.
async fn of_two_connections_from_one_port_only_the_stalled_one_is_closed(backend: Backend) {
    let databases = Databases::with_tables(backend).await;
    let bodies = Bodies::default();
    let [limit, patience] = SETTINGS;
    let everywhere = [limit, patience, ("address", "\"0.0.0.0\"")];
    let stage = Stage::on(databases, &everywhere, |rocket| service(rocket, &bodies)).await;
    let scene = Scene::of(backend, stage, bodies).await;
    let port = scene.port();
    let mut other = connect(0, (OTHER, port)).await;
    other.request("GET /waiting").await;
    let mut client = connect(other.address().port(), (ONE, port)).await;
    client.request(&format!("GET /stream/{CHUNKS}")).await;
    scene.cuts(client).await;
    assert_eq!(scene.stage.send("POST /go-on").await.status, 200);
    let rest = other.rest(LAST_CHUNK).await;
    assert!(rest.contains(END) && rest.ends_with(LAST_CHUNK), "{rest}");
    scene.is_freed().await;
}

/// Two services in one process use the same port on two addresses.
async fn two_services_of_one_process_each_close_their_own_connection(backend: Backend) {
    let scene = scene(backend).await;
    let port = scene.port();
    let at_other = [
        ("read_idle_timeout", "1"),
        ("address", "\"127.0.0.2\""),
        ("port", &port.to_string()),
    ];
    let bodies = Bodies::default();
    let databases = Databases::with_tables(backend).await;
    let other = Stage::on(databases, &at_other, |rocket| service(rocket, &bodies)).await;
    let other = Scene::of(backend, other, bodies).await;
    // Both clients stall. Each service closes its own connection.
    let mut there = connect(0, (OTHER, port)).await;
    there.request(&format!("GET /stream/{CHUNKS}")).await;
    let mut here = connect(there.address().port(), (ONE, port)).await;
    here.request(&format!("GET /stream/{CHUNKS}")).await;
    scene.cuts(here).await;
    other.cuts(there).await;
}

on_each_backend!(
    a_forged_address_does_not_protect_a_stalled_client,
    a_forged_address_closes_no_other_connection,
    no_connection_is_closed_if_its_address_is_uncertain,
    of_two_connections_from_one_port_only_the_stalled_one_is_closed,
    two_services_of_one_process_each_close_their_own_connection,
);
