//! How a handler fails.

use rocket::http::Status;
use rocket::request::Request;
use rocket::response::{self, Responder};
use rocket::route::Outcome;
use rocket_tx::Problem;

/// Every failure of a handler. `?` makes it from a part's own error: a part whose error is a
/// problem of its own implements `From` beside that error.
#[derive(Debug)]
pub(crate) enum Error {
    /// The client reads this problem, and the status is the problem's.
    Problem(Problem),
    /// The status follows the library's table of failures.
    Transaction(rocket_tx::Error),
}

impl Error {
    /// 404.
    pub(crate) fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Problem(Problem::new(Status::NotFound, code, detail.into()))
    }

    /// 409.
    pub(crate) fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Problem(Problem::new(Status::Conflict, code, detail.into()))
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<rocket_tx::Error> for Error {
    fn from(error: rocket_tx::Error) -> Self {
        Self::Transaction(error)
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Transaction(error.into())
    }
}

impl<'r> Responder<'r, 'static> for Error {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        match self {
            Self::Problem(problem) => problem.respond_to(request),
            Self::Transaction(error) => error.respond_to(request),
        }
    }
}

/// The problem as the outcome of a route, for a handler that stands around another.
pub(crate) fn respond<'r>(request: &'r Request<'_>, problem: Problem) -> Outcome<'r> {
    match problem.respond_to(request) {
        Ok(response) => Outcome::Success(response),
        Err(status) => Outcome::Error(status),
    }
}
