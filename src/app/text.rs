//! Text that clients send: its rules as the service keeps them, and as the contract says them.

use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{Object, RefOr};
use utoipa::{PartialSchema, ToSchema};

/// # Errors
///
/// One sentence that names the field and the rule.
pub(super) fn check_text(field: &str, text: &str, longest: usize) -> Result<(), String> {
    if text.trim().is_empty() {
        Err(format!("`{field}` must not be empty"))
    } else if text.chars().count() > longest {
        Err(format!("`{field}` must be {longest} characters at most"))
    } else if text.chars().any(char::is_control) {
        Err(format!("`{field}` must not contain control characters"))
    } else {
        Ok(())
    }
}

/// No control characters, and one at least that is not white space.
const NOT_BLANK: &str = concat!(
    r"^[^\u0000-\u001F\u007F-\u009F]*",
    r"[^\u0000-\u0020\u007F-\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000]",
    r"[^\u0000-\u001F\u007F-\u009F]*$",
);

/// The rule counts bytes, which a pattern cannot. What keeps this keeps the rule.
const ID: &str = r"^([\u0020-\u007E]{1,200}|[^\u0000-\u001F\u007F-\u009F]{1,50})$";

/// What Postgres can compare a text with.
const NO_CONTROL: &str = r"^[^\u0000-\u001F\u007F-\u009F]*$";

/// A title, or a task.
pub(super) enum Line {}

/// The name of a user.
pub(super) enum Name {}

/// What an aggregate is told apart by.
pub(super) enum Id {}

impl ToSchema for Line {}
impl ToSchema for Name {}
impl ToSchema for Id {}

impl PartialSchema for Line {
    fn schema() -> RefOr<Schema> {
        let text = text(NOT_BLANK).description(Some("One line of text, not blank."));
        text.min_length(Some(1)).max_length(Some(500)).into()
    }
}

impl PartialSchema for Name {
    fn schema() -> RefOr<Schema> {
        let text = text(NOT_BLANK).description(Some("One short line of text, not blank."));
        text.min_length(Some(1)).max_length(Some(200)).into()
    }
}

impl PartialSchema for Id {
    fn schema() -> RefOr<Schema> {
        let rule = "1 to 200 bytes of UTF-8, without control characters.";
        let text = text(ID).description(Some(rule));
        text.min_length(Some(1)).max_length(Some(200)).into()
    }
}

/// Any text without control characters.
pub(super) fn plain() -> Object {
    text(NO_CONTROL).build()
}

fn text(pattern: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(pattern))
}
