//! JSON bodies that are checked before the handler runs.

use rocket::Request;
use rocket::data::{Data, FromData, Outcome, ToByteUnit};
use rocket::http::Status;
use rocket::serde::json::serde_json::{self, error::Category};
use rocket_tx::Problem;
use rocket_tx_idempotency::{BodyError, read_body};
use serde::de::DeserializeOwned;

/// Rules for a body that its Rust type cannot express.
pub(crate) trait Rules {
    /// Checks the rules.
    ///
    /// # Errors
    ///
    /// The broken rule, in one sentence that names the field.
    fn check(&self) -> Result<(), String>;
}

/// A JSON body that keeps its rules, or the problem for the client.
///
/// The status of the problem is 415 for another content type, 413 for a body over the limit, 400 if
/// the body is not JSON, and 422 for JSON that breaks a rule.
pub(crate) type Body<T> = Result<Valid<T>, Problem>;

/// The content of a [`Body`].
pub(crate) struct Valid<T>(pub(crate) T);

#[rocket::async_trait]
impl<'r, T: DeserializeOwned + Rules> FromData<'r> for Valid<T> {
    type Error = Problem;

    async fn from_data(request: &'r Request<'_>, data: Data<'r>) -> Outcome<'r, Self> {
        match read(request, data).await {
            Ok(value) => Outcome::Success(Self(value)),
            Err(problem) => Outcome::Error((problem.status(), problem)),
        }
    }
}

async fn read<T: DeserializeOwned + Rules>(
    request: &Request<'_>,
    data: Data<'_>,
) -> Result<T, Problem> {
    if !request.content_type().is_some_and(|kind| kind.is_json()) {
        return Err(Problem::new(
            Status::UnsupportedMediaType,
            "unsupported-media-type",
            "Send the body as `Content-Type: application/json`.",
        ));
    }
    let limit = request.limits().get("json").unwrap_or(64.kibibytes());
    let bytes = read_body(request, data, limit).await;
    let bytes = bytes.map_err(|error| match error {
        BodyError::Unreadable(_) => Problem::new(
            Status::BadRequest,
            "bad-request",
            "The body ended before it was complete.",
        ),
        BodyError::Refused(error) => error.problem(),
    })?;
    if !bytes.is_complete() {
        return Err(Problem::new(
            Status::PayloadTooLarge,
            "too-large",
            format!("The body is larger than the limit of {limit}."),
        ));
    }
    let value: T = parse(&bytes)?;
    value.check().map_err(broken_rule)?;
    Ok(value)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let not_json = |error: serde_json::Error| {
        Problem::new(
            Status::BadRequest,
            "bad-request",
            format!("The body is not JSON: {error}"),
        )
    };
    // serde also accepts an array for a struct, with the values in the order of the fields. The
    // contract allows objects only.
    let is_object = bytes.trim_ascii_start().first() == Some(&b'{');
    let not_object = || broken_rule("the body must be an object".into());
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        let error = error.into_inner();
        match (error.classify(), field.as_str()) {
            (Category::Data, _) if !is_object => not_object(),
            (Category::Data, ".") => broken_rule(error.to_string()),
            (Category::Data, field) => broken_rule(format!("`{field}`: {error}")),
            (Category::Syntax | Category::Eof | Category::Io, _) => not_json(error),
        }
    })?;
    json.end().map_err(not_json)?;
    if is_object {
        Ok(value)
    } else {
        Err(not_object())
    }
}

pub(super) fn broken_rule(rule: String) -> Problem {
    Problem::new(Status::UnprocessableEntity, "validation", rule)
}
