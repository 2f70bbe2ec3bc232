//! Who may look inside: operators, and in development everybody.
//!
//! In release the addresses that show the service's inside answer only to this machine, or to who
//! bears the token.

use std::net::IpAddr;

use rocket::http::Status;
use rocket::http::uri::Host;
use rocket::route::{Handler, Outcome};
use rocket::{Data, Request, Route};
use serde::Deserialize;
use subtle::ConstantTimeEq;

use crate::Problem;

use super::config::Config;
use super::decorate::decorate;
use super::error::answer;

/// From where the service's inside may be seen without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum AdminFrom {
    /// From this machine.
    Loopback,
    /// From everywhere.
    Anywhere,
}

/// What proves an operator. Never logged.
pub(super) struct Token(String);

impl Token {
    /// # Errors
    ///
    /// A token that can be guessed is none.
    pub(super) fn new(text: String) -> Result<Self, String> {
        const SHORTEST: usize = 16;

        match text.len() >= SHORTEST {
            true => Ok(Self(text)),
            false => Err(format!("it must have {SHORTEST} characters at least")),
        }
    }

    /// Takes as long for a token that is nearly right as for any other of its length.
    fn is(&self, told: &str) -> bool {
        self.0.as_bytes().ct_eq(told.as_bytes()).into()
    }
}

/// Headers that proxies add. Who bears one was not the other end of the connection.
const FORWARDED: [&str; 14] = [
    "CF-Connecting-IP",
    "Fastly-Client-IP",
    "Forwarded",
    "True-Client-IP",
    "Via",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "X-Envoy-External-Address",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Proto",
    "X-Forwarded-Server",
    "X-Real-IP",
];

/// The same routes, for operators only.
pub(super) fn only(routes: Vec<Route>) -> Vec<Route> {
    decorate(routes, Only)
}

#[derive(Clone)]
struct Only(Box<dyn Handler>);

#[rocket::async_trait]
impl Handler for Only {
    async fn handle<'r>(&self, request: &'r Request<'_>, data: Data<'r>) -> Outcome<'r> {
        if may_look(request) {
            return self.0.handle(request, data).await;
        }
        let problem = Problem::new(
            Status::Forbidden,
            "operators-only",
            "This is for operators: ask from the machine itself, as `localhost`, or send the token as \
             `Authorization: Bearer`.",
        );
        answer(request, problem)
    }
}

fn may_look(request: &Request<'_>) -> bool {
    let Some(config) = Config::of(request.rocket()) else {
        return false;
    };
    config.admin_from == AdminFrom::Anywhere || is_local(request) || has_token(request, config)
}

/// By the connection itself: Rocket's `client_ip` believes `X-Real-IP`. And by the host that was
/// asked for: a page from elsewhere whose name leads to this machine is not from this machine.
fn is_local(request: &Request<'_>) -> bool {
    let headers = request.headers();
    let ip_header = request.rocket().config().ip_header.as_ref();
    let is_forwarded = FORWARDED.iter().any(|name| headers.contains(name))
        || ip_header.is_some_and(|name| headers.contains(name.as_str()));
    let remote = request.remote();
    !is_forwarded
        && remote.is_some_and(|remote| remote.ip().to_canonical().is_loopback())
        && asks_for_this_machine(request)
}

/// A host that cannot be understood is not this machine: browsers send more than Rocket reads.
fn asks_for_this_machine(request: &Request<'_>) -> bool {
    let mut told = request.headers().get("Host");
    told.all(|host| Host::parse(host).is_ok_and(|host| names_this_machine(&host)))
        && request.host().is_none_or(names_this_machine)
}

fn names_this_machine(host: &Host<'_>) -> bool {
    let domain = host.domain().as_str();
    let address = domain.trim_start_matches('[').trim_end_matches(']');
    let address: Option<IpAddr> = address.parse().ok();
    address.is_some_and(|address| address.to_canonical().is_loopback())
        || domain.eq_ignore_ascii_case("localhost")
}

fn has_token(request: &Request<'_>, config: &Config) -> bool {
    let told = request.headers().get_one("Authorization");
    let told = told.and_then(|told| told.split_once(' '));
    match (&config.admin_token, told) {
        (Some(token), Some((scheme, told))) => {
            scheme.eq_ignore_ascii_case("Bearer") && token.is(told)
        }
        _ => false,
    }
}
