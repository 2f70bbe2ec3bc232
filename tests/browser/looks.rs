//! The appearance of the pages: on a phone, in dark mode, and screenshots.

use std::path::{Path, PathBuf};

use super::lanes::race_an_example;
use super::{open, run_once};
use crate::support::{Backend, Browser, Service};

const PAGES: [&str; 4] = ["/", "/console", "/aggregates", "/contract"];

async fn pages_fit_a_phone(backend: Backend) {
    let service = Service::start(backend).await;
    service.new_todo(&"averylongword".repeat(20), "").await;
    for page in PAGES {
        let url = format!("{}{page}", service.http.base);
        let phone = Browser::at(&url, 360, 740).await;
        match page {
            "/console" => run_once(&phone).await,
            "/aggregates" => race_an_example(&phone).await,
            _ => {}
        }
        let wider = phone
            .eval("document.documentElement.scrollWidth - window.innerWidth")
            .await;
        assert!(
            wider.as_i64().unwrap() <= 0,
            "{page} is {wider} px too wide"
        );
        assert_eq!(phone.errors().await, [""; 0], "{page}");
    }
}

/// In dark mode, the background is darker than the text.
async fn dark_mode_is_light_text_on_dark(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/").await;
    let luminance = |property: &str| {
        format!(
            "getComputedStyle(document.body).{property}.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0)"
        )
    };
    for page in PAGES {
        browser
            .client
            .goto(&format!("{}{page}", service.http.base))
            .await
            .unwrap();
        for (is_dark, scheme) in [(false, "light"), (true, "dark")] {
            browser.prefer(scheme).await;
            let background = browser.eval(&luminance("backgroundColor")).await.as_u64();
            let text = browser.eval(&luminance("color")).await.as_u64();
            assert_eq!(
                background < text,
                is_dark,
                "{page} {scheme}: {background:?}, {text:?}"
            );
        }
    }
}

/// `SCREENSHOTS=docs/screenshots tests/run screenshots` writes the screenshots of the
/// documentation.
#[rocket::async_test]
async fn screenshots_are_made_and_the_readme_shows_one() {
    let elsewhere = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("SCREENSHOTS").map(PathBuf::from);
    let folder = folder.unwrap_or(elsewhere.path().to_owned());
    let service = Service::start(Backend::Sqlite).await;
    for title in ["buy milk", "bake bread", "call the bank"] {
        service.new_todo(title, "").await;
    }
    for (name, page, scheme, width, height) in [
        ("light", "/console", "light", 1200, 1060),
        ("dark", "/console", "dark", 1200, 1060),
        ("narrow", "/console", "light", 390, 1600),
        ("race", "/aggregates", "light", 1200, 1225),
    ] {
        let url = format!("{}{page}", service.http.base);
        let browser = Browser::at(&url, width, height).await;
        browser.prefer(scheme).await;
        match page {
            "/console" => run_once(&browser).await,
            _ => race_an_example(&browser).await,
        }
        let file = folder.join(format!("{name}.png"));
        browser.screenshot(&file).await;
        // Width and height are at fixed positions in the header of a PNG.
        let png = std::fs::read(&file).unwrap();
        let size = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
        assert_eq!((size(16), size(20)), (width, height));
    }
    let readme = std::fs::read_to_string("README.md").unwrap();
    assert!(readme.contains("](docs/screenshots/light.png)"));
    assert!(Path::new("docs/screenshots/light.png").exists());
}

on_each_backend!(pages_fit_a_phone, dark_mode_is_light_text_on_dark);
