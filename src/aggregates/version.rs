//! The version of an aggregate in the headers `ETag` and `If-Match`
//! ([RFC 9110](https://www.rfc-editor.org/rfc/rfc9110#section-13.1.1)).

use std::convert::Infallible;

use rocket::Request;
use rocket::http::{Header, Status};
use rocket::request::{FromRequest, Outcome};
use rocket::response::{self, Responder};
use rocket::serde::json::Json;
use rocket_tx::Problem;
use rocket_tx_aggregates::aggregate::Aggregate;
use serde::{Serialize, Serializer};
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::openapi::{Object, Required, Type};
use utoipa::{IntoParams, ToSchema};

use super::todo::Todo;

/// A response with a todo, its id and its version. The header `ETag` carries the version too.
pub(super) struct Versioned(pub(super) Todo);

/// An event-sourced todo, as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = Aggregate)]
pub(super) struct TodoView<'a> {
    id: &'a str,
    /// The number of its events.
    version: u64,
    #[serde(flatten)]
    todo: &'a Todo,
}

impl Serialize for Versioned {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let view = TodoView {
            id: self.0.id(),
            version: self.0.version(),
            todo: &self.0,
        };
        view.serialize(serializer)
    }
}

impl<'r> Responder<'r, 'static> for Versioned {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        let mut response = Json(&self).respond_to(request)?;
        response.set_header(Header::new("ETag", tag(&self.0)));
        Ok(response)
    }
}

fn tag(todo: &Todo) -> String {
    format!("\"{}\"", todo.version())
}

/// The request header `If-Match`: the versions that the client accepts. Without the header, the
/// client accepts every version.
pub(super) struct IfMatch<'r>(Vec<&'r str>);

impl IfMatch<'_> {
    /// Checks that the client accepts the current version of `todo`.
    ///
    /// # Errors
    ///
    /// 412 if the todo has another version now.
    pub(super) fn check(&self, todo: &Todo) -> Result<(), Problem> {
        let tag = tag(todo);
        let mut wanted = self
            .0
            .iter()
            .flat_map(|list| list.split(','))
            .map(str::trim);
        if self.0.is_empty() || wanted.any(|wanted| wanted == "*" || wanted == tag) {
            return Ok(());
        }
        let detail = format!("The todo is now at version {tag}; read it again.");
        Err(Problem::new(Status::PreconditionFailed, "version", detail))
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for IfMatch<'r> {
    type Error = Infallible;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Infallible> {
        Outcome::Success(Self(request.headers().get("If-Match").collect()))
    }
}

impl IntoParams for IfMatch<'_> {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let header = Parameter::builder()
            .name("If-Match")
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some(
                "The `ETag`s that the client accepts, separated by commas, or `*`.",
            ))
            .schema(Some(Object::with_type(Type::String)))
            .example(Some("*".into()));
        vec![header.build()]
    }
}
