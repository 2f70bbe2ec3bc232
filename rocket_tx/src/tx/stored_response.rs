//! The response of an earlier request, to be sent again.

use std::io::Cursor;

use rocket::http::{Header, Status};
use rocket::{Request, Response};

use super::failure::Problem;
use super::verdict::Outcome;

/// The response of an earlier request that was committed. Passed to
/// [`Outstanding::respond_with`](super::Outstanding::respond_with).
///
/// ```
/// use rocket::http::Status;
/// use rocket_tx::tx::StoredResponse;
///
/// let stored = StoredResponse::new(Status::Created, b"{\"id\":1}".to_vec())
///     .header("Content-Type", "application/json")
///     .header("Location", "/todos/1");
/// ```
#[derive(Debug, Clone)]
pub struct StoredResponse {
    content: Content,
    headers: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
enum Content {
    Bytes(Status, Vec<u8>),
    Problem(Box<Problem>),
}

impl StoredResponse {
    /// Creates a response without headers.
    pub fn new(status: Status, body: Vec<u8>) -> Self {
        Self {
            content: Content::Bytes(status, body),
            headers: Vec::new(),
        }
    }

    /// Creates a response that tells the client that the earlier request was committed, but that
    /// its response cannot be sent again.
    pub fn problem(problem: Problem) -> Self {
        Self {
            content: Content::Problem(Box::new(problem)),
            headers: Vec::new(),
        }
    }

    /// Adds a header. A name may be added more than once. The headers replace those that the
    /// current response has under the same names.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Puts the response into `response`, which must have no body any more.
    pub(in crate::tx) fn write(self, request: &Request<'_>, response: &mut Response<'_>) {
        for (name, _) in &self.headers {
            response.remove_header(name);
        }
        for (name, value) in self.headers {
            response.adjoin_header(Header::new(name, value));
        }
        match self.content {
            Content::Bytes(status, body) => {
                response.set_status(status);
                if !body.is_empty() {
                    response.set_sized_body(body.len(), Cursor::new(body));
                }
            }
            Content::Problem(problem) => {
                problem
                    .with_outcome(Outcome::Committed)
                    .write(request, response);
            }
        }
    }
}
