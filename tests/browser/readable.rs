//! The lanes can be read without a mouse, in light and dark, and by a screen reader.

use fantoccini::key::Key;
use rocket::serde::json::json;

use super::console::{CREATE, run};
use super::lanes::race_an_example;
use super::{open, wait_for_listener};
use crate::support::{Backend, Browser, Service};

/// The events can be stepped through by keyboard, and each is told in words.
async fn events_are_stepped_through_by_keyboard(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/console").await;
    run(&browser, CREATE, "nothing").await;
    browser
        .until("document.querySelector('.timeline').textContent.includes('committed; response')")
        .await;
    browser.eval("document.querySelector('.go').focus()").await;
    browser.press(&[Key::Tab]).await;
    browser
        .until("document.activeElement.matches('.request .lanes input')")
        .await;
    let current = "document.querySelector('.timeline [aria-current=step]')";
    for (key, line) in [
        (Key::Home, "first-child"),
        (Key::Right, "nth-child(2)"),
        (Key::End, "last-child"),
    ] {
        browser.press(&[key]).await;
        browser
            .until(&format!("{current}?.matches(':{line}')"))
            .await;
        browser
            .until(&format!(
                "document.activeElement.ariaValueText.includes({current}.children[1].textContent)
                 && document.querySelector('.caption').textContent === document.activeElement.ariaValueText"
            ))
            .await;
    }
    // A request of another client does not take the focus away.
    service.new_todo("another", "").await;
    browser
        .shows(".request .badge", &["committed", "committed"])
        .await;
    browser
        .until("document.activeElement.matches('.lanes input')")
        .await;
}

/// Every control of the pages has a name for screen readers, and so does every picture.
async fn everything_has_a_name_for_screen_readers(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/console").await;
    run(&browser, CREATE, "nothing").await;
    assert_named(&browser, 1).await;
    browser
        .client
        .goto(&format!("{}/aggregates", service.http.base))
        .await
        .unwrap();
    race_an_example(&browser).await;
    assert_named(&browser, 1).await;
}

async fn assert_named(browser: &Browser, pictures: usize) {
    let tree = browser
        .devtools("Accessibility.getFullAXTree", json!({}))
        .await;
    let mut found = 0;
    for node in tree["nodes"].as_array().unwrap() {
        let role = node["role"]["value"].as_str().unwrap_or_default();
        let name = node["name"]["value"].as_str().unwrap_or_default();
        let has_name = [
            "button", "combobox", "image", "img", "link", "slider", "textbox",
        ];
        if node["ignored"] != true && has_name.contains(&role) {
            assert!(!name.trim().is_empty(), "{node}");
            found += usize::from(matches!(role, "image" | "img") && name.contains("Verdict: "));
        }
    }
    assert_eq!(found, pictures);
}

/// All text of the pictures has enough contrast, by WCAG 2 at level AA.
async fn the_lanes_are_readable_in_light_and_dark(backend: Backend) {
    let service = Service::start(backend).await;
    let browser = open(&service, "/console").await;
    for fault in ["", "respond=502", "leak=4000"] {
        wait_for_listener(&service).await;
        service.new_todo("a", fault).await;
    }
    browser
        .until("document.querySelectorAll('.picture .verdict').length >= 3")
        .await;
    for scheme in ["light", "dark"] {
        browser.prefer(scheme).await;
        let poor = browser
            .eval(
                "(() => {
                    const light = (colour) => {
                        const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((part) => part / 255)
                            .map((part) => part <= .03928 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4);
                        return .2126 * r + .7152 * g + .0722 * b;
                    };
                    const ground = light(getComputedStyle(document.querySelector('.card')).backgroundColor);
                    const contrast = (text) => {
                        const ink = light(getComputedStyle(text).fill);
                        return (Math.max(ink, ground) + .05) / (Math.min(ink, ground) + .05);
                    };
                    return [...document.querySelectorAll('.picture text')].filter((text) => contrast(text) < 4.5)
                        .map((text) => `${text.textContent}: ${contrast(text).toFixed(1)}`);
                })()",
            )
            .await;
        assert_eq!(poor, json!([]), "{scheme}");
    }
}

on_each_backend!(
    events_are_stepped_through_by_keyboard,
    everything_has_a_name_for_screen_readers,
    the_lanes_are_readable_in_light_and_dark,
);
