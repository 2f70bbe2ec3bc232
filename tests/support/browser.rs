//! A real browser: Chromium, controlled by chromedriver.

use std::fmt;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fantoccini::actions::{InputSource, KeyAction, KeyActions};
use fantoccini::key::Key;
use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rocket::serde::json::{Value, json};
use rocket::tokio::sync::{Semaphore, SemaphorePermit};

use super::{eventually, eventually_or};

/// Only one browser runs at a time: two of them on two cores would starve the services under test.
static TURN: Semaphore = Semaphore::const_new(1);

/// A browser with an empty profile. Dropping it closes the browser.
pub struct Browser {
    pub client: Client,
    session: String,
    driver: Driver,
    _profile: tempfile::TempDir,
    _turn: SemaphorePermit<'static>,
}

/// The process of chromedriver.
struct Driver {
    child: Child,
    port: u16,
}

impl Browser {
    /// Opens this address on a screen of this width and height.
    pub async fn at(url: &str, width: u32, height: u32) -> Self {
        let turn = TURN.acquire().await.unwrap();
        let profile = tempfile::tempdir().unwrap();
        let driver = Driver::start(&profile.path().join("driver.log")).await;
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities(profile.path()));
        let address = format!("http://127.0.0.1:{}", driver.port);
        let client = builder.connect(&address).await.unwrap();
        let session = client.session_id().await.unwrap().unwrap();
        let browser = Self {
            client,
            session,
            driver,
            _profile: profile,
            _turn: turn,
        };
        let screen =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        browser
            .devtools("Emulation.setDeviceMetricsOverride", screen)
            .await;
        browser.client.goto(url).await.unwrap();
        browser
    }

    /// Sends a command of the DevTools protocol, for features that WebDriver does not have.
    pub async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({"cmd": command, "params": parameters});
        self.command("goog/cdp/execute", body).await
    }

    /// Sets the preferred colour scheme: `light` or `dark`.
    pub async fn prefer(&self, scheme: &str) {
        let preferred = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", preferred).await;
    }

    /// Returns what the browser has logged since the last call. The kind `browser` is the console
    /// output of pages; `performance` is their network requests.
    pub async fn log(&self, kind: &str) -> Vec<Value> {
        let entries = self.command("se/log", json!({"type": kind})).await;
        entries.as_array().unwrap().clone()
    }

    async fn command(&self, path: &'static str, body: Value) -> Value {
        let command = Extension { path, body };
        self.client.issue_cmd(command).await.unwrap()
    }

    /// Returns the value of a JavaScript expression.
    pub async fn eval(&self, expression: &str) -> Value {
        let script = format!("return {expression}");
        self.client.execute(&script, Vec::new()).await.unwrap()
    }

    /// Waits until a JavaScript expression is true. Errors while a page unloads are ignored.
    pub async fn until(&self, expression: &str) {
        let script = format!("return Boolean({expression})");
        eventually(expression, async || {
            let value = self.client.execute(&script, Vec::new()).await;
            matches!(value, Ok(Value::Bool(true)))
        })
        .await;
    }

    /// Returns the text of each visible element that matches `css`.
    pub async fn texts(&self, css: &str) -> Vec<String> {
        let texts = self.eval(&shown(css)).await;
        let texts = texts.as_array().unwrap().iter();
        texts
            .map(|text| text.as_str().unwrap().to_owned())
            .collect()
    }

    /// Waits until the visible elements that match `css` have these texts.
    pub async fn shows(&self, css: &str, texts: &[&str]) {
        let wanted = format!("{css} shows {texts:?}");
        let script = format!("return {}", shown(css));
        let mut last = Value::Null;
        eventually_or(&wanted, &mut last, async |last| {
            // Scripts fail while a page unloads.
            match self.client.execute(&script, Vec::new()).await {
                Ok(value) => *last = value,
                Err(error) => *last = json!(error.to_string()),
            }
            *last == json!(texts)
        })
        .await;
    }

    /// Clicks an element when it is visible, enabled, and not covered by another.
    ///
    /// One script finds and clicks the element. With two commands, the page could redraw in
    /// between, and the second command would have an element that is no longer part of the page.
    pub async fn click(&self, css: &str) {
        self.once(
            css,
            "const { left, top, width, height } = element.getClientRects()[0];
             const above = document.elementFromPoint(left + width / 2, top + height / 2);
             if (!element.contains(above)) return false;
             element.focus({ preventScroll: true });
             if (document.activeElement !== element) document.activeElement.blur();
             // The change of focus may have made the page redraw.
             if (!element.isConnected) return false;
             element.click();
             return true;",
        )
        .await;
    }

    /// Types `text` after the present content of a field, as a user would.
    pub async fn type_in(&self, css: &str, text: &str) {
        self.once(
            css,
            "element.focus();
             element.setSelectionRange(element.value.length, element.value.length);
             return document.activeElement === element;",
        )
        .await;
        self.keys(text).await;
    }

    /// Types into the element that has focus.
    pub async fn keys(&self, text: &str) {
        let mut keys = KeyActions::new("keyboard".to_owned());
        for value in text.chars() {
            keys = keys.then(KeyAction::Down { value });
            keys = keys.then(KeyAction::Up { value });
        }
        self.client.perform_actions(keys).await.unwrap();
    }

    /// Presses keys in the element that has focus.
    pub async fn press(&self, keys: &[Key]) {
        let keys: String = keys.iter().map(|key| char::from(*key)).collect();
        self.keys(&keys).await;
    }

    /// Chooses the option of a `<select>` that has this text.
    pub async fn choose(&self, css: &str, label: &str) {
        let script = format!(
            "const option = [...element.options].find((one) => one.text.trim() === {});
             if (!option || option.disabled) return false;
             element.focus();
             option.selected = true;
             for (const name of ['input', 'change'])
                 element.dispatchEvent(new Event(name, {{ bubbles: true }}));
             return true;",
            json!(label)
        );
        self.once(css, &script).await;
    }

    /// Runs a function body on the first `element` that matches `css`, once it is visible and
    /// enabled. Repeats this until the body returns `true`.
    async fn once(&self, css: &str, body: &str) {
        let script = format!(
            "const element = document.querySelector({});
             if (!element?.checkVisibility() || element.matches(':disabled')) return false;
             element.scrollIntoView({{ block: 'nearest', behavior: 'instant' }});
             {body}",
            json!(css)
        );
        let mut last = Value::Null;
        eventually_or(css, &mut last, async |last| {
            let done = self.client.execute(&script, Vec::new()).await;
            // A click may load another page before the reply arrives.
            *last = done.unwrap_or_else(|error| json!(error.to_string()));
            *last == json!(true)
        })
        .await;
    }

    /// Returns all errors that pages have logged, except those of the network: the browser logs
    /// each response above 399, and tests cause such responses on purpose.
    pub async fn errors(&self) -> Vec<String> {
        let log = self.log("browser").await;
        let errors = log.iter().filter(|entry| entry["source"] != "network");
        errors.map(|entry| entry.to_string()).collect()
    }

    /// Returns the hosts that pages have sent requests to.
    pub async fn hosts(&self) -> Vec<String> {
        let log = self.log("performance").await;
        let urls = log.iter().filter_map(|entry| {
            let message: Value =
                rocket::serde::json::from_str(entry["message"].as_str().unwrap()).unwrap();
            let message = &message["message"];
            let url = message["params"]["request"]["url"].as_str()?;
            // The browser's own pages, such as the new tab page, do not have `http` addresses.
            let is_request = message["method"] == "Network.requestWillBeSent";
            (is_request && url.starts_with("http")).then(|| url.to_owned())
        });
        let mut hosts: Vec<String> = urls
            .filter_map(|url| url.split('/').nth(2).map(str::to_owned))
            .collect();
        hosts.sort();
        hosts.dedup();
        hosts
    }

    /// Saves a screenshot as PNG.
    pub async fn screenshot(&self, file: &Path) {
        let png = self.client.screenshot().await.unwrap();
        std::fs::write(file, png).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

impl Drop for Browser {
    /// Deletes the session, so that the driver closes the browser. Killing the driver would leave
    /// the browser running.
    fn drop(&mut self) {
        let request = format!(
            "DELETE /session/{} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            self.session
        );
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.driver.port)) {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
            let _ = stream.write_all(request.as_bytes());
            let _ = stream.read(&mut [0; 1024]);
        }
    }
}

impl Driver {
    async fn start(log: &Path) -> Self {
        let output = std::fs::File::create(log).unwrap();
        let child = Command::new("chromedriver")
            .args(["--port=0", "--log-level=WARNING"])
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .stdin(Stdio::null())
            .spawn()
            .expect("chromedriver was not found; run tests/run, which installs it");
        let mut driver = Self { child, port: 0 };
        eventually("the driver logs its port", async || {
            let log = std::fs::read_to_string(log).unwrap();
            let port = log.split("started successfully on port ").nth(1);
            let port = port.and_then(|rest| rest.split_once('.'));
            driver.port = port.map_or(0, |(port, _)| port.parse().unwrap());
            driver.port != 0
        })
        .await;
        driver
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _ = self.child.wait();
    }
}

fn capabilities(profile: &Path) -> Capabilities {
    let arguments = [
        "--headless=new".to_owned(),
        // The sandbox does not work for root, nor in most containers. Only our own pages are
        // opened.
        "--no-sandbox".to_owned(),
        "--disable-gpu".to_owned(),
        "--disable-dev-shm-usage".to_owned(),
        "--disable-background-networking".to_owned(),
        "--disable-component-update".to_owned(),
        "--disable-sync".to_owned(),
        "--hide-scrollbars".to_owned(),
        "--no-first-run".to_owned(),
        format!("--user-data-dir={}", profile.join("profile").display()),
    ];
    let capabilities = json!({
        "goog:chromeOptions": {"args": arguments},
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
    });
    capabilities.as_object().unwrap().clone()
}

/// A JavaScript expression for the texts of the visible elements that match `css`.
fn shown(css: &str) -> String {
    let css = json!(css);
    format!(
        "[...document.querySelectorAll({css})].filter((e) => e.checkVisibility()).map((e) => e.innerText.trim())"
    )
}

/// A command of Chromium's driver that is not in the WebDriver standard.
struct Extension {
    path: &'static str,
    body: Value,
}

impl fmt::Debug for Extension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path)
    }
}

impl WebDriverCompatibleCommand for Extension {
    fn endpoint(
        &self,
        base: &reqwest::Url,
        session: Option<&str>,
    ) -> Result<reqwest::Url, <reqwest::Url as std::str::FromStr>::Err> {
        base.join(&format!("session/{}/{}", session.unwrap(), self.path))
    }

    fn method_and_body(&self, _: &reqwest::Url) -> (hyper::Method, Option<String>) {
        (hyper::Method::POST, Some(self.body.to_string()))
    }
}
