//! Requests over a real socket.

use std::time::Duration;

use rocket::serde::json::{Value, serde_json};
use serde::de::DeserializeOwned;

/// A server that sends nothing for this long has forgotten the request.
const LONGEST_SILENCE: Duration = Duration::from_secs(120);

/// A client of one service. It does not follow redirects.
#[derive(Clone)]
pub struct Http {
    client: reqwest::Client,
    pub base: String,
    run: Option<&'static str>,
}

impl Http {
    pub fn new(port: u16) -> Self {
        // Loopback needs no TLS, but the builder of reqwest panics without a TLS provider.
        let _already_installed = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .read_timeout(LONGEST_SILENCE)
            .build()
            .unwrap();
        Self {
            client,
            base: format!("http://127.0.0.1:{port}"),
            run: None,
        }
    }

    /// The same client, with `X-Run: run` in each request.
    pub fn in_run(&self, run: &'static str) -> Self {
        Self {
            run: Some(run),
            ..self.clone()
        }
    }

    /// Returns a request builder. `line` is `METHOD /path`.
    pub fn request(&self, line: &str) -> reqwest::RequestBuilder {
        let (method, path) = line.split_once(' ').unwrap();
        let url = format!("{}{path}", self.base);
        let request = self.client.request(method.parse().unwrap(), url);
        match self.run {
            Some(run) => request.header("X-Run", run),
            None => request,
        }
    }

    /// Sends a request without a body. `line` is `METHOD /path`.
    pub async fn send(&self, line: &str) -> HttpResponse {
        HttpResponse::of(self.request(line)).await
    }

    /// Sends a request with a JSON body. `line` is `METHOD /path`.
    pub async fn json(&self, line: &str, body: &str) -> HttpResponse {
        let request = self
            .request(line)
            .header("Content-Type", "application/json")
            .body(body.to_owned());
        HttpResponse::of(request).await
    }
}

#[derive(Debug)]
pub struct HttpResponse {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: String,
}

impl HttpResponse {
    pub async fn of(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self {
            status,
            headers,
            body: response.text().await.unwrap(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns the header `Transaction-Outcome`.
    pub fn outcome(&self) -> Option<&str> {
        self.header("transaction-outcome")
    }

    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    /// Returns the kind of the problem in the body, from its `type`. The outcomes in body and
    /// header must be equal.
    pub fn kind(&self) -> String {
        let problem: Value = self.json();
        assert_eq!(problem["outcome"].as_str(), self.outcome(), "{problem}");
        let kind = problem["type"].as_str().unwrap();
        kind.trim_start_matches("urn:rocket_tx:problem:").to_owned()
    }

    /// Returns status and outcome, for a single assertion on both.
    pub fn summary(&self) -> (u16, Option<&str>) {
        (self.status, self.outcome())
    }
}
