//! The service that `POST /todos/<id>/share` tells about a todo, and a stand-in for it.

use std::time::Duration;

use reqwest::Url;
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome};
use rocket::serde::json::serde_json;
use rocket::tokio::time::sleep;
use rocket::{Request, Route, State, post, routes};
use serde::Serialize;

use crate::Problem;

use super::config::Config;
use super::{faults, tls};

pub(super) fn routes() -> Vec<Route> {
    routes![stand_in]
}

/// As the contract names them.
#[derive(utoipa::OpenApi)]
#[openapi(paths(stand_in))]
pub(super) struct Paths;

/// Why the downstream service could not be told.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the downstream service answered {0}")]
    Refused(u16),
    #[error("the downstream service did not answer within {0:?}")]
    TimedOut(Duration),
    #[error("the downstream service cannot be reached")]
    Unreachable(#[source] reqwest::Error),
}

impl Error {
    pub(super) fn problem(&self) -> Problem {
        let status = match self {
            Self::TimedOut(_) => Status::GatewayTimeout,
            Self::Refused(_) | Self::Unreachable(_) => Status::BadGateway,
        };
        Problem::new(
            status,
            "downstream",
            format!("{self}; nothing was changed."),
        )
    }
}

/// One HTTP client for the whole service: it keeps connections open between calls.
pub(super) struct Client {
    http: reqwest::Client,
    timeout: Duration,
}

impl Client {
    pub(super) fn new(timeout: Duration) -> Self {
        tls::provide();
        Self {
            http: reqwest::Client::new(),
            timeout,
        }
    }
}

/// The downstream service, as a handler sees it.
pub(super) struct Downstream<'r> {
    client: &'r Client,
    url: Url,
}

impl Downstream<'_> {
    /// Tells it about `thing`.
    ///
    /// The caller waits, `downstream_timeout` at most, and whatever it holds waits too.
    pub(super) async fn tell(&self, thing: &impl Serialize) -> Result<(), Error> {
        let body = serde_json::to_vec(thing).unwrap_or_default();
        let request = self
            .client
            .http
            .post(self.url.clone())
            .header("Content-Type", "application/json")
            .timeout(self.client.timeout)
            .body(body);
        match request.send().await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(Error::Refused(answer.status().as_u16())),
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
        let (Some(client), Some(config)) = (
            request.rocket().state::<Client>(),
            Config::of(request.rocket()),
        ) else {
            return unavailable("The downstream service is not configured.");
        };
        let url = match (faults::downstream(request), &config.downstream_url) {
            (None, Some(url)) => Ok(url.clone()),
            (fault, _) => stand_in_url(request.rocket().config().port, fault),
        };
        match url {
            Ok(url) => Outcome::Success(Self { client, url }),
            Err(_) => unavailable("The downstream service has no address."),
        }
    }
}

/// The service's own stand-in, by loopback. Nothing of it comes from the client but the fault.
fn stand_in_url(
    port: u16,
    fault: Option<faults::Downstream>,
) -> Result<Url, <Url as std::str::FromStr>::Err> {
    let query = match fault {
        None => String::new(),
        Some(faults::Downstream::Status(status)) => format!("?answer={status}"),
        Some(faults::Downstream::Timeout) => "?answer=never".into(),
    };
    format!("http://127.0.0.1:{port}/downstream{query}").parse()
}

/// Stands in for the downstream service: takes everything, and with faults on fails as told.
#[utoipa::path(responses((status = 204, description = "Taken.")))]
#[post("/downstream?<answer>")]
async fn stand_in(answer: Option<&str>, config: &State<Config>) -> Status {
    match answer.filter(|_| config.faults) {
        Some("never") => {
            sleep(config.downstream_timeout * 2).await;
            Status::GatewayTimeout
        }
        Some(status) => status.parse().map_or(Status::NoContent, Status::new),
        None => Status::NoContent,
    }
}
