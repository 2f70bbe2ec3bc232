//! Who may use the addresses for operators: in development everybody; in release this machine, and
//! clients that send the token.

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

/// How an operator is known.
pub(crate) struct Operators {
    from: AdminFrom,
    token: Option<Token>,
}

/// `admin_from`: from where a request needs no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AdminFrom {
    /// From this machine.
    Loopback,
    /// From everywhere.
    Anywhere,
}

/// `admin_token`. Never logged.
struct Token(String);

impl Operators {
    pub(crate) fn read(figment: &Figment) -> Result<Self, String> {
        let default = if config::is_debug(figment) {
            AdminFrom::Anywhere
        } else {
            AdminFrom::Loopback
        };
        // The cause is not repeated: it quotes the value, and a log is no place for a token.
        let token: Option<String> = config::value(figment, "admin_token")
            .map_err(|_| "`admin_token`: it must be text; write it in quotes".to_owned())?;
        Ok(Self {
            from: config::value(figment, "admin_from")?.unwrap_or(default),
            token: token.map(Token::new).transpose()?,
        })
    }
}

impl Token {
    /// # Errors
    ///
    /// A short token can be guessed.
    fn new(text: String) -> Result<Self, String> {
        const SHORTEST: usize = 16;

        if text.len() < SHORTEST {
            return Err(format!(
                "`admin_token`: it must have {SHORTEST} characters at least"
            ));
        }
        Ok(Self(text))
    }

    /// Takes as long for a token that is nearly right as for any other of its length.
    fn is(&self, sent: &str) -> bool {
        self.0.as_bytes().ct_eq(sent.as_bytes()).into()
    }
}

/// Headers that proxies add. The client of a request with one of them is not the other end of the
/// connection.
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

/// The same endpoints, for operators only, also in the contract.
pub(crate) fn require_admin(mut endpoints: Endpoints) -> Endpoints {
    const SCHEME: &str = "operator";

    for (_, operation) in operations_of(&mut endpoints.contract) {
        let token = SecurityRequirement::new::<_, [&str; 0], &str>(SCHEME, []);
        operation.security = Some(vec![SecurityRequirement::default(), token]);
    }
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "`admin_token`. Not needed from where `admin_from` says.",
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
            "This is for operators: ask from the machine itself, as `localhost`, or send the token as \
             `Authorization: Bearer`.",
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

/// The connection comes from this machine: Rocket's `client_ip` would believe `X-Real-IP`. And the
/// client asks for this machine: a page from another host can have a name that leads to it.
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

/// A `Host` that cannot be parsed is remote: browsers accept hosts that Rocket's parser rejects.
fn asks_for_this_machine(request: &Request<'_>) -> bool {
    let mut hosts = request.headers().get("Host");
    hosts.all(|host| Host::parse(host).is_ok_and(|host| names_this_machine(&host)))
        && request.host().is_none_or(names_this_machine)
}

fn names_this_machine(host: &Host<'_>) -> bool {
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
