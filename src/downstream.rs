//! The other service that `POST /todos/<id>/share` calls, and a stub of it.

use std::time::Duration;

use reqwest::Url;
use rocket::figment::Figment;
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome};
use rocket::serde::json::serde_json;
use rocket::tokio::time::sleep;
use rocket::{Request, State, post};
use rocket_tx::Problem;
use serde::Serialize;

use crate::config::{self, FaultInjection};
use crate::http::{self, Endpoints, endpoints, install_tls_provider};

pub(crate) fn endpoints() -> Endpoints {
    endpoints!("downstream": stub)
}

/// Why the other service did not take a call.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the downstream service answered {0}")]
    Refused(u16),
    #[error("the downstream service did not answer within {0:?}")]
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

/// How to call the other service. There is one for all requests, because its HTTP client keeps
/// connections open between calls.
pub(crate) struct Client {
    http: reqwest::Client,
    /// `downstream_url`; `None` is the stub.
    url: Option<Url>,
    /// `downstream_timeout`: how long a call may take. SQLite's writer is held meanwhile.
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

/// `host:port` without a scheme is a URL too: its scheme is the name of the host.
fn http_url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("{error}"))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err("it is no address to call; write it as http://host:port/path".into()),
    }
}

/// The other service, for a handler.
pub(crate) struct Downstream<'r> {
    client: &'r Client,
    url: Url,
}

impl Downstream<'_> {
    /// Tells the other service about `thing`.
    ///
    /// The caller waits `downstream_timeout` at most, and keeps what it holds meanwhile.
    pub(crate) async fn notify(&self, thing: &impl Serialize) -> Result<(), Error> {
        let body = serde_json::to_vec(thing).unwrap_or_default();
        let request = self
            .client
            .http
            .post(self.url.clone())
            .header("Content-Type", "application/json")
            .timeout(self.client.timeout)
            .body(body);
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
            Ok(url) => Outcome::Success(Self { client, url }),
            Err(_) => unavailable("The downstream service has no address."),
        }
    }
}

/// How the other service fails for one request. Failure injection sets it before the handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SimulatedFailure {
    /// It responds with this status.
    Status(u16),
    /// It does not respond in time.
    Timeout,
}

impl SimulatedFailure {
    /// Has the calls of `request` fail. The first failure that is set counts.
    pub(crate) fn set(self, request: &Request<'_>) {
        request.local_cache(|| Some(self));
    }

    fn of(request: &Request<'_>) -> Option<Self> {
        *request.local_cache(|| None)
    }
}

/// The stub is this service itself, by loopback. Only the failure comes from the client.
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

/// Stands in for the downstream service: takes everything, and with faults on fails as told.
#[utoipa::path(responses((status = 204, description = "Taken.")))]
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
