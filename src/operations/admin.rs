//! Access control for the paths that only operators may use.
//!
//! By default every client may use them in the debug profile. In the release profile only clients
//! on this machine may, and clients that send the token.

use std::net::IpAddr;

use rocket::figment::Figment;
use rocket::http::Status;
use rocket::http::uri::Host;
use rocket::route::{Handler, Outcome};
use rocket::{Data, Request};
use rocket_tx::Problem;
use serde::Deserialize;
use subtle::ConstantTimeEq;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};

use crate::config;
use crate::http::{Endpoints, decorate, operations_of, respond};

/// The settings that decide which requests come from operators.
pub(crate) struct Operators {
    from: AdminFrom,
    token: Option<Token>,
}

/// The key `admin_from`: the machines whose requests need no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AdminFrom {
    /// This machine.
    Loopback,
    /// Any machine.
    Anywhere,
}

/// The key `admin_token`. It is never logged.
struct Token(String);

impl Operators {
    pub(crate) fn read(figment: &Figment) -> Result<Self, String> {
        let default = if config::is_debug(figment) {
            AdminFrom::Anywhere
        } else {
            AdminFrom::Loopback
        };
        // The cause is left out: it quotes the value, and a token must not be logged.
        let token: Option<String> = config::value(figment, "admin_token")
            .map_err(|_| "`admin_token`: must be a string; write it in quotes".to_owned())?;
        Ok(Self {
            from: config::value(figment, "admin_from")?.unwrap_or(default),
            token: token.map(Token::new).transpose()?,
        })
    }
}

impl Token {
    /// # Errors
    ///
    /// The token is so short that it could be guessed.
    fn new(text: String) -> Result<Self, String> {
        const SHORTEST: usize = 16;

        if text.len() < SHORTEST {
            return Err(format!(
                "`admin_token`: must have at least {SHORTEST} characters"
            ));
        }
        Ok(Self(text))
    }

    /// Compares in constant time: the duration does not depend on how much of the token is right.
    fn is(&self, sent: &str) -> bool {
        self.0.as_bytes().ct_eq(sent.as_bytes()).into()
    }
}

/// Headers that proxies add. If a request has one of them, the peer of the connection is taken for
/// a proxy and not for the client.
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

/// Restricts endpoints to operators, and says so in the contract.
pub(crate) fn require_admin(mut endpoints: Endpoints) -> Endpoints {
    const SCHEME: &str = "operator";

    for (_, operation) in operations_of(&mut endpoints.contract) {
        let token = SecurityRequirement::new::<_, [&str; 0], &str>(SCHEME, []);
        operation.security = Some(vec![SecurityRequirement::default(), token]);
    }
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "The value of `admin_token`. Not needed from the machines that `admin_from` allows.",
        ));
    let components = endpoints.contract.components.get_or_insert_default();
    components.add_security_scheme(SCHEME, SecurityScheme::Http(bearer.build()));
    Endpoints {
        routes: decorate(endpoints.routes, RequireAdmin),
        ..endpoints
    }
}

#[derive(Clone)]
struct RequireAdmin(Box<dyn Handler>);

#[rocket::async_trait]
impl Handler for RequireAdmin {
    async fn handle<'r>(&self, request: &'r Request<'_>, data: Data<'r>) -> Outcome<'r> {
        if is_admin(request) {
            return self.0.handle(request, data).await;
        }
        let problem = Problem::new(
            Status::Forbidden,
            "operators-only",
            "Only operators may use this path. Send the request from the machine itself to \
             `localhost`, or send `admin_token` as `Authorization: Bearer`.",
        );
        respond(request, problem)
    }
}

fn is_admin(request: &Request<'_>) -> bool {
    let operators: Option<&Operators> = request.rocket().state();
    operators.is_some_and(|operators| {
        operators.from == AdminFrom::Anywhere || is_local(request) || has_token(request, operators)
    })
}

/// Returns `true` if the connection comes from this machine and the request names this machine.
///
/// The peer's address is checked, because Rocket's `client_ip` trusts `X-Real-IP`. `Host` is
/// checked too, because a foreign page can use a DNS name that resolves to this machine (DNS
/// rebinding).
fn is_local(request: &Request<'_>) -> bool {
    let headers = request.headers();
    let ip_header = request.rocket().config().ip_header.as_ref();
    let is_forwarded = FORWARDED.iter().any(|name| headers.contains(name))
        || ip_header.is_some_and(|name| headers.contains(name.as_str()));
    let remote = request.remote();
    !is_forwarded
        && remote.is_some_and(|remote| remote.ip().to_canonical().is_loopback())
        && host_is_local(request)
}

/// Treats a `Host` that cannot be parsed as remote: browsers accept hosts that Rocket's parser
/// rejects.
fn host_is_local(request: &Request<'_>) -> bool {
    let mut hosts = request.headers().get("Host");
    hosts.all(|host| Host::parse(host).is_ok_and(|host| is_loopback(&host)))
        && request.host().is_none_or(is_loopback)
}

fn is_loopback(host: &Host<'_>) -> bool {
    let domain = host.domain().as_str();
    let address = domain.trim_start_matches('[').trim_end_matches(']');
    let address: Option<IpAddr> = address.parse().ok();
    address.is_some_and(|address| address.to_canonical().is_loopback())
        || domain.eq_ignore_ascii_case("localhost")
}

fn has_token(request: &Request<'_>, operators: &Operators) -> bool {
    let sent = request.headers().get_one("Authorization");
    let sent = sent.and_then(|sent| sent.split_once(' '));
    match (&operators.token, sent) {
        (Some(token), Some((scheme, sent))) => {
            scheme.eq_ignore_ascii_case("Bearer") && token.is(sent)
        }
        _ => false,
    }
}
