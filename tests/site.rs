//! The pages of the service: their headers, and the files that they load.

use crate::support::{Backend, Service};

#[rocket::async_test]
async fn pages_may_load_nothing_from_other_origins() {
    let service = Service::start(Backend::Sqlite).await;
    for page in [
        "/",
        "/console",
        "/aggregates",
        "/contract",
        "/todos",
        "/nothing",
    ] {
        let response = service.get(page).await;
        let policy = response.header("content-security-policy").unwrap();
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self';"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "SAMEORIGIN"),
            ("referrer-policy", "no-referrer"),
        ] {
            assert_eq!(response.header(name), Some(value), "{page}");
        }
    }
}

/// Every address in a page is on this service and exists.
#[rocket::async_test]
async fn every_address_in_a_page_exists() {
    let service = Service::start(Backend::Sqlite).await;
    let mut wanted = vec![];
    for page in ["/", "/console", "/aggregates", "/contract"] {
        let response = service.get(page).await;
        assert_eq!(response.status, 200, "{page}");
        assert_eq!(
            response.header("content-type"),
            Some("text/html; charset=utf-8")
        );
        assert!(
            !response.body.contains("style=") && !response.body.contains("<script>"),
            "{page}"
        );
        let addresses = response
            .body
            .split('"')
            .filter(|part| part.starts_with('/'));
        wanted.extend(addresses.map(str::to_owned));
    }
    wanted.sort();
    wanted.dedup();
    assert!(wanted.len() > 8, "{wanted:?}");
    for path in wanted {
        if path.contains("fault=") {
            continue; // the page of the todo app, with a parameter for its script
        }
        let response = service.get(&path).await;
        assert_eq!(response.status, 200, "{path}");
        let kind = response.header("content-type").unwrap();
        match path.rsplit_once('.') {
            Some((_, "js")) => assert_eq!(kind, "text/javascript"),
            Some((_, "css")) => assert_eq!(kind, "text/css; charset=utf-8"),
            Some((_, "svg")) => assert_eq!(kind, "image/svg+xml"),
            _ => {}
        }
    }
    for path in [
        "/static/",
        "/static/nothing.js",
        "/static/..%2fCargo.toml",
        "/static/../Cargo.toml",
    ] {
        assert_eq!(service.get(path).await.status, 404, "{path}");
    }
}
