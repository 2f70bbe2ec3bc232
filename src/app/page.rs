//! Paging by `?limit=` and `?after=`.

use std::str::FromStr;

use rocket::Request;
use rocket::request::{FromRequest, Outcome};

use crate::Problem;

use super::body::broken_rule;

/// Which part of a list is asked for.
pub(super) struct Page {
    /// How many at most: 1 to 200, default 50.
    pub(super) limit: i64,
    /// The id of the last one that the client has seen.
    pub(super) after: Option<i64>,
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Page {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Problem> {
        match Self::read(request) {
            Ok(page) => Outcome::Success(page),
            Err(problem) => Outcome::Error((problem.status(), problem)),
        }
    }
}

impl Page {
    fn read(request: &Request<'_>) -> Result<Self, Problem> {
        let limit = number(request, "limit")?.unwrap_or(50);
        if !(1..=200).contains(&limit) {
            return Err(broken_rule("`limit` must be from 1 to 200".into()));
        }
        Ok(Self {
            limit,
            after: number(request, "after")?,
        })
    }
}

fn number(request: &Request<'_>, name: &str) -> Result<Option<i64>, Problem> {
    match request.query_value::<&str>(name) {
        None => Ok(None),
        Some(Ok(text)) => i64::from_str(text)
            .map(Some)
            .map_err(|_| broken_rule(format!("`{name}` must be a whole number"))),
        Some(Err(_)) => Err(broken_rule(format!("`{name}` must be a whole number"))),
    }
}
