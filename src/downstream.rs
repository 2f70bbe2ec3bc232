//! The client of the downstream service, which `POST /todos/<id>/share` calls; and a stub of that
//! service.

use std::time::Duration;

use reqwest::Url;
use rocket::figment::Figment;
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome};
use rocket::serde::json::serde_json;
use rocket::tokio::time::sleep;
use rocket::{Request, State, post};
use rocket_tx::Problem;
use rocket_tx_idempotency::derived_key;
use serde::Serialize;

use crate::config::{self, FaultInjection};
use crate::http::{self, Endpoints, endpoints, install_tls_provider};

pub(crate) fn endpoints() -> Endpoints {
    endpoints!("downstream": stub)
}

/// The reasons why a call to the downstream service failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the downstream service responded with {0}")]
    Refused(u16),
    #[error("the downstream service did not respond within {0:?}")]
    TimedOut(Duration),
    #[error("the downstream service cannot be reached")]
    Unreachable(#[source] reqwest::Error),
}

impl From<Error> for http::Error {
    fn from(error: Error) -> Self {
        let status = match error {
            Error::TimedOut(_) => Status::GatewayTimeout,
            Error::Refused(_) | Error::Unreachable(_) => Status::BadGateway,
        };
        let detail = format!("{error}; nothing was changed.");
        Problem::new(status, "downstream", detail).into()
    }
}

/// The client of the downstream service. All requests share one, because its HTTP client keeps
/// connections open between calls.
pub(crate) struct Client {
    http: reqwest::Client,
    /// The key `downstream_url`. If it is `None`, the stub is called.
    url: Option<Url>,
    /// The key `downstream_timeout`: how long a call may take. On SQLite a handler that calls
    /// within a transaction blocks all other writers for that long.
    timeout: Duration,
}

impl Client {
    pub(crate) fn read(figment: &Figment) -> Result<Self, String> {
        let url: Option<String> = config::value(figment, "downstream_url")?;
        let url = url.map(|url| http_url(&url)).transpose();
        install_tls_provider();
        Ok(Self {
            http: reqwest::Client::new(),
            url: url.map_err(|error| format!("`downstream_url`: {error}"))?,
            timeout: config::duration(figment, "downstream_timeout", Duration::from_secs(1))?,
        })
    }
}

/// Parses a URL and checks its scheme. The check also rejects `host:port` without a scheme, which
/// parses as a URL whose scheme is the host name.
fn http_url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("{error}"))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err("the scheme must be http or https; write it as http://host:port/path".into()),
    }
}

/// A guard with which a handler calls the downstream service.
pub(crate) struct Downstream<'r> {
    client: &'r Client,
    url: Url,
    /// The key for the other service, if this request has a key.
    key: Option<String>,
}

impl Downstream<'_> {
    /// Sends `thing` to the downstream service, as JSON, and waits for the response.
    ///
    /// If this request has an `Idempotency-Key`, the other service receives a key that is derived
    /// from it: when the request is repeated, the other service does its part once.
    ///
    /// The wait ends after `downstream_timeout` at the latest. The caller's transactions stay open
    /// during the wait.
    ///
    /// # Errors
    ///
    /// The service did not respond in time, responded with a status other than 2xx, or cannot be
    /// reached.
    pub(crate) async fn notify(&self, thing: &impl Serialize) -> Result<(), Error> {
        let body = serde_json::to_vec(thing).unwrap_or_default();
        let request = self
            .client
            .http
            .post(self.url.clone())
            .header("Content-Type", "application/json")
            .timeout(self.client.timeout)
            .body(body);
        let request = match &self.key {
            Some(key) => request.header("Idempotency-Key", key),
            None => request,
        };
        match request.send().await {
            Ok(response) if response.status().is_success() => Ok(()),
            Ok(response) => Err(Error::Refused(response.status().as_u16())),
            Err(error) if error.is_timeout() => Err(Error::TimedOut(self.client.timeout)),
            Err(error) => Err(Error::Unreachable(error)),
        }
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Downstream<'r> {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Problem> {
        let unavailable = |why: &'static str| {
            let status = Status::InternalServerError;
            Outcome::Error((status, Problem::new(status, "downstream", why)))
        };
        let Some(client) = request.rocket().state::<Client>() else {
            return unavailable("The downstream service is not configured.");
        };
        let url = match (SimulatedFailure::of(request), &client.url) {
            (None, Some(url)) => Ok(url.clone()),
            (failure, _) => stub_url(request.rocket().config().port, failure),
        };
        match url {
            Ok(url) => Outcome::Success(Self {
                client,
                url,
                key: derived_key(request, "notify"),
            }),
            Err(_) => unavailable("The downstream service has no address."),
        }
    }
}

/// A failure of the downstream service, simulated for one request. Failure injection sets it before
/// the handler runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SimulatedFailure {
    /// The service responds with this status.
    Status(u16),
    /// The service does not respond in time.
    Timeout,
}

impl SimulatedFailure {
    /// Makes the downstream calls of `request` fail. If several failures are set, the first one
    /// wins.
    pub(crate) fn set(self, request: &Request<'_>) {
        request.local_cache(|| Some(self));
    }

    fn of(request: &Request<'_>) -> Option<Self> {
        *request.local_cache(|| None)
    }
}

/// Returns the URL of the stub: an endpoint of this service, called over loopback. The client of
/// the request controls only the simulated failure, not the address.
fn stub_url(
    port: u16,
    failure: Option<SimulatedFailure>,
) -> Result<Url, <Url as std::str::FromStr>::Err> {
    let query = match failure {
        None => String::new(),
        Some(SimulatedFailure::Status(status)) => format!("?answer={status}"),
        Some(SimulatedFailure::Timeout) => "?answer=never".into(),
    };
    format!("http://127.0.0.1:{port}/downstream{query}").parse()
}

/// A stub of the downstream service, which accepts every body.
///
/// If failure injection is on, `answer` makes the stub fail. A number is the status of the
/// response. With `never`, the stub responds only after the caller has timed out.
#[utoipa::path(responses((status = 204, description = "Accepted.")))]
#[post("/downstream?<answer>")]
async fn stub(
    answer: Option<&str>,
    client: &State<Client>,
    faults: &State<FaultInjection>,
) -> Status {
    match answer.filter(|_| faults.0) {
        Some("never") => {
            sleep(client.timeout * 2).await;
            Status::GatewayTimeout
        }
        Some(status) => status.parse().map_or(Status::NoContent, Status::new),
        None => Status::NoContent,
    }
}
