//! Which clients may read the operator pages of the reference service.

use std::sync::Arc;

use rocket::Config;
use rocket::figment::{Figment, Profile};
use rocket::http::uri::Host;
use rocket::http::{Header, Status};
use rocket::serde::json::Value;
use rocket_tx::testing::{self, App};

use crate::support::launch::refused;
use crate::support::{Backend, Databases, HttpResponse, Service};

const TOKEN: &str = "a token that is hard to guess";
/// The operator pages, except the feed: its response does not end, so it is tested separately.
const INSIDE: [&str; 4] = ["/registry", "/leases", "/metrics", "/console"];
const HERE: &str = "127.0.0.1:4000";
const ELSEWHERE: &str = "203.0.113.7:4000";

struct Release(App);

impl Release {
    async fn new(settings: &[(&str, &str)]) -> Self {
        let rocket = rocket_tx_service::service(figment(settings));
        Self(testing::launch(rocket).await)
    }

    async fn get(&self, path: &str, from: &str, headers: &[(&'static str, &str)]) -> Status {
        let mut request = self.0.get(path.to_owned()).remote(from.parse().unwrap());
        for (name, value) in headers {
            request.add_header(Header::new(*name, (*value).to_owned()));
        }
        let response = request.dispatch().await;
        let status = response.status();
        if status == Status::Forbidden {
            let problem: Value = response.into_json().await.unwrap();
            assert_eq!(problem["type"], "urn:rocket_tx:problem:operators-only");
            assert!(!problem.to_string().contains(TOKEN));
        }
        status
    }
}

fn figment(settings: &[(&str, &str)]) -> Figment {
    let mut figment = Config::figment()
        .merge(("log_level", "off"))
        .select(Profile::new("release"));
    for (key, value) in settings {
        figment = figment.merge((*key, *value));
    }
    figment
}

#[rocket::async_test]
async fn in_release_only_this_machine_sees_operator_pages() {
    let release = Release::new(&[]).await;
    for path in INSIDE {
        assert_eq!(release.get(path, HERE, &[]).await, Status::Ok);
        assert_eq!(release.get(path, "[::1]:4000", &[]).await, Status::Ok);
        let mapped = "[::ffff:127.0.0.1]:4000";
        assert_eq!(release.get(path, mapped, &[]).await, Status::Ok);
        let refused = Status::Forbidden;
        assert_eq!(release.get(path, ELSEWHERE, &[]).await, refused);
        for name in [
            "X-Real-IP",
            "X-Forwarded-For",
            "Forwarded",
            "Via",
            "x-real-ip",
        ] {
            let header = [(name, "127.0.0.1")];
            assert_eq!(
                release.get(path, ELSEWHERE, &header).await,
                refused,
                "{name}"
            );
            // The header shows that the request came through a proxy, from an unknown machine.
            assert_eq!(release.get(path, HERE, &header).await, refused, "{name}");
        }
        let guessed = [("Authorization", "Bearer ")];
        assert_eq!(release.get(path, ELSEWHERE, &guessed).await, refused);
    }
    // All other pages are public.
    for path in [
        "/",
        "/aggregates",
        "/static/todos.js",
        "/todos",
        "/aggregates/todos",
        "/audit",
    ] {
        assert_eq!(release.get(path, ELSEWHERE, &[]).await, Status::Ok);
    }
    assert_eq!(
        release.get("/healthz", ELSEWHERE, &[]).await,
        Status::NoContent
    );
    let feed = "/registry/events";
    assert_eq!(release.get(feed, ELSEWHERE, &[]).await, Status::Forbidden);
    let freeing = release.0.delete("/leases/x");
    let freeing = freeing.remote(ELSEWHERE.parse().unwrap());
    assert_eq!(freeing.dispatch().await.status(), Status::Forbidden);
}

/// The operator's browser shows a page of another site. The name of that site resolves to this
/// machine (DNS rebinding), or the page sends requests to another origin.
#[rocket::async_test]
async fn a_foreign_web_page_cannot_read_operator_pages() {
    let release = Release::new(&[]).await;
    for (host, status) in [
        ("localhost:8000", Status::Ok),
        ("LOCALHOST", Status::Ok),
        ("127.0.0.1:8000", Status::Ok),
        ("[::1]:8000", Status::Ok),
        ("rebound.example:8000", Status::Forbidden),
        ("localhost.example", Status::Forbidden),
        ("127.0.0.1.example", Status::Forbidden),
        ("a{b.example", Status::Forbidden),
        ("rebound.example:99999", Status::Forbidden),
        ("127.0.0.1, rebound.example", Status::Forbidden),
        ("rebound.example/", Status::Forbidden),
        ("", Status::Forbidden),
        ("203.0.113.7", Status::Forbidden),
    ] {
        // hyper and Rocket provide the host twice: as the raw header, and parsed if it is valid.
        let header = [("Host", host)];
        assert_eq!(
            release.get("/registry", HERE, &header).await,
            status,
            "{host}"
        );
        if let Ok(parsed) = Host::parse(host) {
            let request = release.0.get("/registry");
            let mut request = request.remote(HERE.parse().unwrap());
            request.inner_mut().set_host(parsed);
            assert_eq!(request.dispatch().await.status(), status, "{host}");
        }
    }
    for hosts in [
        ["127.0.0.1", "rebound.example"],
        ["rebound.example", "127.0.0.1"],
    ] {
        let headers = hosts.map(|host| ("Host", host));
        assert_eq!(
            release.get("/registry", HERE, &headers).await,
            Status::Forbidden
        );
    }
    for (path, is_shared) in [
        ("/todos", true),
        ("/aggregates/todos", true),
        ("/registry", false),
        ("/leases", false),
        ("/metrics", false),
        ("/console", false),
    ] {
        let request = release.0.get(path).remote(HERE.parse().unwrap());
        let response = request.dispatch().await;
        let shared = response.headers().contains("Access-Control-Allow-Origin");
        assert_eq!(shared, is_shared, "{path}");
    }
}

#[rocket::async_test]
async fn the_token_allows_access_from_elsewhere() {
    let release = Release::new(&[("admin_token", TOKEN)]).await;
    for path in INSIDE {
        for (credentials, status) in [
            (format!("Bearer {TOKEN}"), Status::Ok),
            (format!("bearer {TOKEN}"), Status::Ok),
            (format!("Bearer {TOKEN} "), Status::Forbidden),
            (format!("Bearer {}", &TOKEN[1..]), Status::Forbidden),
            (format!("Basic {TOKEN}"), Status::Forbidden),
            (TOKEN.to_owned(), Status::Forbidden),
        ] {
            let header = [("Authorization", credentials.as_str())];
            assert_eq!(
                release.get(path, ELSEWHERE, &header).await,
                status,
                "{credentials}"
            );
        }
        assert_eq!(release.get(path, HERE, &[]).await, Status::Ok);
        let credentials = format!("Bearer {TOKEN}");
        let headers = [
            ("X-Forwarded-For", "198.51.100.1"),
            ("Authorization", &credentials),
        ];
        assert_eq!(release.get(path, HERE, &headers).await, Status::Ok);
    }
}

#[rocket::async_test]
async fn access_from_anywhere_can_be_configured() {
    let release = Release::new(&[("admin_from", "anywhere")]).await;
    for path in INSIDE {
        assert_eq!(release.get(path, ELSEWHERE, &[]).await, Status::Ok);
    }
}

#[rocket::async_test]
async fn an_invalid_token_stops_the_launch_and_is_not_logged() {
    for (key, value) in [
        ("admin_token", "short secret"),
        ("admin_token", ""),
        ("admin_from", "everywhere"),
    ] {
        let rocket = rocket_tx_service::service(figment(&[(key, value)]));
        let (rocket, _databases) = testing::isolated(rocket);
        let log = refused(rocket).await;
        assert!(log.contains(&format!("`{key}`")), "{log}");
        assert!(!log.contains("secret"), "{log}");
    }
    let number = figment(&[]).merge(("admin_token", 1_234_567_890_123_456_i64));
    let (rocket, _databases) = testing::isolated(rocket_tx_service::service(number));
    let log = refused(rocket).await;
    assert!(log.contains("`admin_token`"), "{log}");
    assert!(!log.contains("1234567890123456"), "{log}");
}

/// Wrong tokens are not logged either, because they may be nearly right. This includes the logs of
/// Rocket and hyper.
#[rocket::async_test]
async fn tokens_are_not_logged() {
    let databases = Arc::new(Databases::new(Backend::Sqlite).await);
    let variables = [
        ("RUST_LOG", "trace"),
        ("ROCKET_PROFILE", "release"),
        ("ROCKET_LOG_LEVEL", "debug"),
        ("ROCKET_ADMIN_TOKEN", TOKEN),
    ];
    let service = Service::on(databases, &variables).await;
    let wrong = "nearly the token that is hard to guess";
    for (token, status) in [(TOKEN, 200), (wrong, 403)] {
        let request = service
            .http
            .request("GET /registry")
            .header("X-Forwarded-For", "203.0.113.7")
            .header("Authorization", format!("Bearer {token}"));
        assert_eq!(HttpResponse::of(request).await.status, status);
    }
    let log = service.log();
    assert!(log.contains("TRACE"), "{log}");
    for token in [TOKEN, wrong] {
        assert!(!log.contains(token), "{log}");
    }
}
