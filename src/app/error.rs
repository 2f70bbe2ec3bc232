//! What a handler can fail with.

use rocket::http::Status;
use rocket::request::Request;
use rocket::response::{self, Responder};
use rocket::route::Outcome;

use crate::{Problem, aggregate};

use super::downstream;

/// Everything a handler of this service can fail with; `?` makes it of each part's own error.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// What the client sent breaks a rule.
    #[error("{}", .0.detail())]
    Input(Problem),

    /// 404.
    #[error("there is no todo {0}")]
    NoSuchTodo(i64),

    /// 404.
    #[error("there is no todo `{0}`")]
    NoSuchAggregate(String),

    /// 409.
    #[error("there is a todo `{0}` already")]
    TodoExists(String),

    /// 502 or 504.
    #[error(transparent)]
    Downstream(#[from] downstream::Error),

    /// By the failure table.
    #[error(transparent)]
    Transaction(#[from] crate::Error),
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Input(problem)
    }
}

impl From<aggregate::Error> for Error {
    fn from(error: aggregate::Error) -> Self {
        Self::Transaction(error.into())
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Transaction(error.into())
    }
}

impl<'r> Responder<'r, 'static> for Error {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        let problem = match self {
            Self::Transaction(error) => return error.respond_to(request),
            Self::Input(problem) => problem,
            Self::NoSuchTodo(_) | Self::NoSuchAggregate(_) => {
                Problem::new(Status::NotFound, "no-such-todo", self.to_string())
            }
            Self::TodoExists(_) => Problem::new(Status::Conflict, "exists", self.to_string()),
            Self::Downstream(error) => error.problem(),
        };
        problem.respond_to(request)
    }
}

/// For handlers that stand around others.
pub(super) fn answer<'r>(request: &'r Request<'_>, problem: Problem) -> Outcome<'r> {
    match problem.respond_to(request) {
        Ok(response) => Outcome::Success(response),
        Err(status) => Outcome::Error(status),
    }
}
