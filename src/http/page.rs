//! Paging by `?limit=` and `?after=`.

use std::str::FromStr;

use rocket::Request;
use rocket::request::{FromRequest, Outcome};
use rocket_tx::Problem;
use utoipa::IntoParams;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::openapi::schema::Object;

use super::body::broken_rule;
use super::field::{between, plain};

/// The part of a list that the client asks for. `K` is the type of the list's key.
pub(crate) struct Page<K> {
    /// The maximum number of entries: 1 to 200, default 50.
    pub(crate) limit: u32,
    /// The key of the last entry that the client has received.
    pub(crate) after: Option<K>,
}

#[rocket::async_trait]
impl<'r, K: FromStr> FromRequest<'r> for Page<K> {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Problem> {
        match Self::read(request) {
            Ok(page) => Outcome::Success(page),
            Err(problem) => Outcome::Error((problem.status(), problem)),
        }
    }
}

impl<K: FromStr> Page<K> {
    fn read(request: &Request<'_>) -> Result<Self, Problem> {
        let limit: i64 = value(request, "limit")?.unwrap_or(50);
        let limit = u32::try_from(limit)
            .ok()
            .filter(|it| (1..=200).contains(it));
        let limit = limit.ok_or_else(|| broken_rule("`limit` must be from 1 to 200".into()))?;
        Ok(Self {
            limit,
            after: value(request, "after")?,
        })
    }
}

/// Reads one query parameter, as text or as an integer.
///
/// Parsing as text never fails, so every parse error means that an integer was expected. Control
/// characters are refused because Postgres rejects NUL in text.
fn value<T: FromStr>(request: &Request<'_>, name: &str) -> Result<Option<T>, Problem> {
    let broken = |rule| broken_rule(format!("`{name}` must {rule}"));
    let Some(text) = request.query_value::<String>(name) else {
        return Ok(None);
    };
    let text = text.map_err(|_| broken("be a whole number"))?;
    if text.chars().any(char::is_control) {
        return Err(broken("not contain control characters"));
    }
    let value = text.parse().map_err(|_| broken("be a whole number"))?;
    Ok(Some(value))
}

/// The type of a list's key, with its schema in the contract.
pub(crate) trait Key {
    fn schema() -> Object;
}

impl Key for String {
    fn schema() -> Object {
        plain()
    }
}

impl Key for i64 {
    fn schema() -> Object {
        between(i64::MIN, i64::MAX).build()
    }
}

impl Key for u64 {
    fn schema() -> Object {
        between(0, u64::MAX).build()
    }
}

impl<K: Key> IntoParams for Page<K> {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let query = |name: &str, about: &str, schema: Object| {
            Parameter::builder()
                .name(name)
                .parameter_in(ParameterIn::Query)
                .required(Required::False)
                .description(Some(about))
                .schema(Some(schema))
                .build()
        };
        let limit = between(1, 200).default(Some(50.into())).build();
        vec![
            query("limit", "The maximum number of entries.", limit),
            query(
                "after",
                "The key of the last entry of the page before.",
                K::schema(),
            ),
        ]
    }
}
