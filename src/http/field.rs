//! Rules for the fields of a body. Each rule exists twice: as code that checks a value, and as a
//! schema in the contract.

use std::fmt;

use serde::de::{Deserializer, Error, Unexpected, Visitor};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{Object, RefOr};
use utoipa::{Number, PartialSchema, ToSchema};

/// Checks that `text` is not blank, has at most `longest` characters and no control characters.
///
/// # Errors
///
/// The broken rule, in one sentence that names the field.
pub(crate) fn check_text(field: &str, text: &str, longest: usize) -> Result<(), String> {
    if text.trim().is_empty() {
        Err(format!("`{field}` must not be empty"))
    } else if text.chars().count() > longest {
        Err(format!("`{field}` must have at most {longest} characters"))
    } else if text.chars().any(char::is_control) {
        Err(format!("`{field}` must not contain control characters"))
    } else {
        Ok(())
    }
}

/// The pattern of a text that is not blank: no control characters, and at least one character that
/// is not white space.
const NOT_BLANK: &str = concat!(
    r"^[^\u0000-\u001F\u007F-\u009F]*",
    r"[^\u0000-\u0020\u007F-\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000]",
    r"[^\u0000-\u001F\u007F-\u009F]*$",
);

/// The pattern of an aggregate's id. The code limits an id to 200 bytes, but a pattern can only
/// count characters. So this pattern is stricter than the code: up to 200 printable ASCII
/// characters, or up to 50 characters of any kind, each of which has at most 4 bytes.
const ID: &str = r"^(?!\.{1,2}$)([\u0020-\u007E]{1,200}|[^\u0000-\u001F\u007F-\u009F]{1,50})$";

/// The pattern of a text without control characters. Postgres rejects NUL in text.
const NO_CONTROL: &str = r"^[^\u0000-\u001F\u007F-\u009F]*$";

/// A title or a task: up to 500 characters.
pub(crate) enum SingleLineText {}

/// The name of a user: up to 200 characters.
pub(crate) enum ShortText {}

/// The id of an aggregate.
pub(crate) enum Id {}

impl ToSchema for SingleLineText {}
impl ToSchema for ShortText {}
impl ToSchema for Id {}

impl PartialSchema for SingleLineText {
    fn schema() -> RefOr<Schema> {
        let text = text(NOT_BLANK).description(Some("One line of text, not blank."));
        text.min_length(Some(1)).max_length(Some(500)).into()
    }
}

impl PartialSchema for ShortText {
    fn schema() -> RefOr<Schema> {
        let text = text(NOT_BLANK).description(Some("One short line of text, not blank."));
        text.min_length(Some(1)).max_length(Some(200)).into()
    }
}

impl PartialSchema for Id {
    fn schema() -> RefOr<Schema> {
        let rule = "1 to 200 bytes of UTF-8, without control characters; not `.` or `..`.";
        let text = text(ID).description(Some(rule));
        text.min_length(Some(1)).max_length(Some(200)).into()
    }
}

/// Returns the schema of a text without control characters.
pub(crate) fn plain() -> Object {
    text(NO_CONTROL).build()
}

fn text(pattern: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(pattern))
}

/// The greatest integer that every JSON parser reads exactly
/// ([RFC 7493](https://www.rfc-editor.org/rfc/rfc7493#section-2.2)).
const SAFE: i64 = 9_007_199_254_740_991;

/// An integer that every client reads exactly.
pub(crate) enum SafeInteger {}

impl ToSchema for SafeInteger {}

impl PartialSchema for SafeInteger {
    fn schema() -> RefOr<Schema> {
        between(-SAFE, SAFE).into()
    }
}

/// Returns the schema of an integer from `least` to `most`.
pub(crate) fn between(least: impl Into<Number>, most: impl Into<Number>) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(least))
        .maximum(Some(most))
}

/// Deserializes a [`SafeInteger`] or null. JSON has only one type of number, so `1.0` and `1e3` are
/// integers too.
pub(crate) fn safe_integer<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    struct SafeIntegerOrNull;

    impl Visitor<'_> for SafeIntegerOrNull {
        type Value = Option<i64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a whole number from -{SAFE} to {SAFE}")
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
            if (-SAFE..=SAFE).contains(&number) {
                Ok(Some(number))
            } else {
                Err(E::invalid_value(Unexpected::Signed(number), &self))
            }
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
            let signed = i64::try_from(number);
            self.visit_i64(signed.unwrap_or(i64::MAX))
        }

        fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
            if number.fract() == 0.0 && number.abs() <= SAFE as f64 {
                Ok(Some(number as i64))
            } else {
                Err(E::invalid_value(Unexpected::Float(number), &self))
            }
        }
    }

    from.deserialize_any(SafeIntegerOrNull)
}
