//! Requests over a real socket.

use rocket::serde::json::{Value, serde_json};
use serde::de::DeserializeOwned;

/// A client of one service. Follows no redirects.
#[derive(Clone)]
pub struct Http {
    client: reqwest::Client,
    pub base: String,
    run: Option<&'static str>,
}

impl Http {
    pub fn new(port: u16) -> Self {
        // reqwest brings no TLS provider here; loopback needs none, but its builder does.
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
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

    /// `METHOD /path`, to be completed and sent.
    pub fn request(&self, what: &str) -> reqwest::RequestBuilder {
        let (method, path) = what.split_once(' ').unwrap();
        let url = format!("{}{path}", self.base);
        let request = self.client.request(method.parse().unwrap(), url);
        match self.run {
            Some(run) => request.header("X-Run", run),
            None => request,
        }
    }

    /// `METHOD /path`, without a body.
    pub async fn send(&self, what: &str) -> HttpResponse {
        HttpResponse::of(self.request(what)).await
    }

    /// `METHOD /path` with a JSON body.
    pub async fn json(&self, what: &str, body: &str) -> HttpResponse {
        let request = self
            .request(what)
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

    /// `Transaction-Outcome`.
    pub fn outcome(&self) -> Option<&str> {
        self.header("transaction-outcome")
    }

    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    /// What kind of problem it tells. Body and header must tell the same outcome.
    pub fn kind(&self) -> String {
        let problem: Value = self.json();
        assert_eq!(problem["outcome"].as_str(), self.outcome(), "{problem}");
        let kind = problem["type"].as_str().unwrap();
        kind.trim_start_matches("urn:rocket_tx:problem:").to_owned()
    }

    /// Status and outcome, for one assertion on both.
    pub fn summary(&self) -> (u16, Option<&str>) {
        (self.status, self.outcome())
    }
}
