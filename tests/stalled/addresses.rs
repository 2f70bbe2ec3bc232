//! Whose connection is closed: the client's own, whatever it says of its address.

use rocket::fairing::{AdHoc, Fairing};

use super::*;
use crate::support::stage::figment;

const SETTINGS: [(&str, &str); 2] = [
    ("read_idle_timeout", "1"),
    ("databases.main.connect_timeout", "\"300ms\""),
];

/// Takes the address of a client from its own word, as behind a proxy.
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

/// A service that believes what clients say of their addresses.
async fn believing_scene(backend: Backend, is_late: bool) -> Scene {
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
    /// The client, which takes nothing, is cut off.
    async fn cuts(&self, mut client: Client) {
        self.is_freed().await;
        let rest = client.rest(LAST_CHUNK).await;
        assert!(!rest.ends_with(LAST_CHUNK), "it looks complete");
    }

    fn port(&self) -> u16 {
        let (_, port) = self.stage.http.base.rsplit_once(':').unwrap();
        port.parse().unwrap()
    }
}

impl Client {
    /// Asks, and says where it comes from.
    async fn ask_from(&mut self, address: SocketAddr, what: &str) {
        let request = format!("{what} HTTP/1.1\r\nHost: localhost\r\nForwarded: {address}\r\n\r\n");
        self.0.write_all(request.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        self.0.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 200", "{what}");
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

async fn a_client_does_not_hide_behind_another_address(backend: Backend) {
    for is_late in [false, true] {
        let scene = believing_scene(backend, is_late).await;
        let mut client = Client::of(&scene.stage.http).await;
        let elsewhere = "203.0.113.7:4711".parse().unwrap();
        client
            .ask_from(elsewhere, &format!("GET /stream/{CHUNKS}"))
            .await;
        scene.cuts(client).await;
    }
}

async fn nobody_has_the_connection_of_another_closed(backend: Backend) {
    for is_late in [false, true] {
        let scene = believing_scene(backend, is_late).await;
        let mut other = Client::asks(&scene.stage.http, "GET /waiting").await;
        let mut client = Client::of(&scene.stage.http).await;
        client
            .ask_from(other.address(), &format!("GET /stream/{CHUNKS}"))
            .await;
        scene.cuts(client).await;
        assert_eq!(scene.stage.send("POST /go-on").await.status, 200);
        let rest = other.rest(LAST_CHUNK).await;
        assert!(rest.contains(END) && rest.ends_with(LAST_CHUNK), "{rest}");
    }
}

/// A fairing before the databases and `Settlement`: no address is certain.
async fn nobody_is_cut_who_may_be_another(backend: Backend) {
    let databases = Databases::with_tables(backend).await;
    let bodies = Bodies::default();
    let rocket = rocket::custom(figment(&databases, &SETTINGS)).attach(proxied());
    let stage = Stage::from(databases, rocket, |rocket| service(rocket, &bodies)).await;
    let scene = Scene::of(backend, stage, bodies).await;
    let mut other = Client::asks(&scene.stage.http, "GET /waiting").await;
    let mut client = Client::of(&scene.stage.http).await;
    client
        .ask_from(other.address(), &format!("GET /stream/{CHUNKS}"))
        .await;
    sleep(3 * LIMIT).await;
    assert_eq!(scene.stage.send("POST /go-on").await.status, 200);
    let rest = other.rest(LAST_CHUNK).await;
    assert!(rest.contains(END) && rest.ends_with(LAST_CHUNK), "{rest}");
    let rest = client.rest(LAST_CHUNK).await;
    assert!(rest.ends_with(&format!("{END}{LAST_CHUNK}")));
    scene.is_freed().await;
}

/// From a port, to an address of the service.
async fn connect(from: u16, to: ([u8; 4], u16)) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    socket.bind(([127, 0, 0, 1], from).into()).unwrap();
    Client(socket.connect(to.into()).await.unwrap())
}

const ONE: [u8; 4] = [127, 0, 0, 1];
const OTHER: [u8; 4] = [127, 0, 0, 2];

/// One port of a client's machine may lead to two addresses of the service.
async fn of_two_connections_from_one_port_the_one_that_stands_still_is_cut(backend: Backend) {
    let databases = Databases::with_tables(backend).await;
    let bodies = Bodies::default();
    let [limit, patience] = SETTINGS;
    let everywhere = [limit, patience, ("address", "\"0.0.0.0\"")];
    let stage = Stage::on(databases, &everywhere, |rocket| service(rocket, &bodies)).await;
    let scene = Scene::of(backend, stage, bodies).await;
    let port = scene.port();
    let mut other = connect(0, (OTHER, port)).await;
    other.ask("GET /waiting").await;
    let mut client = connect(other.address().port(), (ONE, port)).await;
    client.ask(&format!("GET /stream/{CHUNKS}")).await;
    scene.cuts(client).await;
    assert_eq!(scene.stage.send("POST /go-on").await.status, 200);
    let rest = other.rest(LAST_CHUNK).await;
    assert!(rest.contains(END) && rest.ends_with(LAST_CHUNK), "{rest}");
    scene.is_freed().await;
}

/// Two services of one process have the same port on two addresses.
async fn a_connection_to_another_service_of_the_process_is_no_obstacle(backend: Backend) {
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
    // Both stand still: each service closes its own.
    let mut there = connect(0, (OTHER, port)).await;
    there.ask(&format!("GET /stream/{CHUNKS}")).await;
    let mut here = connect(there.address().port(), (ONE, port)).await;
    here.ask(&format!("GET /stream/{CHUNKS}")).await;
    scene.cuts(here).await;
    other.cuts(there).await;
}

on_each_backend!(
    a_client_does_not_hide_behind_another_address,
    nobody_has_the_connection_of_another_closed,
    nobody_is_cut_who_may_be_another,
    of_two_connections_from_one_port_the_one_that_stands_still_is_cut,
    a_connection_to_another_service_of_the_process_is_no_obstacle,
);
