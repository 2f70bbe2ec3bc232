//! The error type of all handlers.

use rocket::http::Status;
use rocket::request::Request;
use rocket::response::{self, Responder};
use rocket::route::Outcome;
use rocket_tx::Problem;

/// A failure of a handler. A module that has its own error type implements `From` for this type, so
/// that handlers can use `?`.
#[derive(Debug)]
pub(crate) enum Error {
    /// The response is this problem, with its status.
    Problem(Problem),
    /// An error of the library, which selects the status.
    Transaction(rocket_tx::Error),
}

impl Error {
    /// Returns a 404.
    pub(crate) fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Problem(Problem::new(Status::NotFound, code, detail.into()))
    }

    /// Returns a 409.
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

/// Converts a problem to the outcome of a route, for handlers that wrap other handlers.
pub(crate) fn respond<'r>(request: &'r Request<'_>, problem: Problem) -> Outcome<'r> {
    match problem.respond_to(request) {
        Ok(response) => Outcome::Success(response),
        Err(status) => Outcome::Error(status),
    }
}
