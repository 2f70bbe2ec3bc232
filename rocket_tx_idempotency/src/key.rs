//! The header `Idempotency-Key`.

use rocket::Request;

/// The name of the header.
pub(crate) const HEADER: &str = "Idempotency-Key";

/// The longest key, in characters.
const LONGEST: usize = 255;

/// The key of a request: 1 to 255 visible ASCII characters.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Key(String);

/// Why a request has no valid key, although it has the header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadKey {
    /// The header occurs more than once.
    Repeated,
    /// The value is not a key.
    Malformed,
}

impl Key {
    /// Returns the key of the request, or `None` if it has none.
    pub(crate) fn of(request: &Request<'_>) -> Result<Option<Self>, BadKey> {
        let mut values = request.headers().get(HEADER);
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => Self::parse(value).map(Some).ok_or(BadKey::Malformed),
            (Some(_), Some(_)) => Err(BadKey::Repeated),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads a string of
    /// [RFC 9651](https://www.rfc-editor.org/rfc/rfc9651#name-strings), or a bare key. A bare key
    /// has no character that separates or quotes values in headers, so two headers that a proxy has
    /// joined by a comma are not one key.
    fn parse(value: &str) -> Option<Self> {
        let value = value.trim_matches([' ', '\t']);
        let key = match value.strip_prefix('"') {
            Some(rest) => unquote(rest.strip_suffix('"')?)?,
            None if value.contains(['"', '\\', ',', ';']) => return None,
            None => value.to_owned(),
        };
        let is_key =
            (1..=LONGEST).contains(&key.len()) && key.bytes().all(|it| it.is_ascii_graphic());
        is_key.then_some(Self(key))
    }
}

/// Returns the text between the quotes of a string.
fn unquote(inner: &str) -> Option<String> {
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner.chars();
    while let Some(next) = rest.next() {
        text.push(match next {
            '\\' => rest.next().filter(|it| matches!(it, '"' | '\\'))?,
            '"' => return None,
            plain => plain,
        });
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_quoted_string_or_a_bare_text_of_visible_characters() {
        let longest = "k".repeat(255);
        for (value, key) in [
            ("a", "a"),
            (
                "8e03978e-40d5-43dd-bc93-6894a57f9324",
                "8e03978e-40d5-43dd-bc93-6894a57f9324",
            ),
            ("\"8e03978e\"", "8e03978e"),
            ("  \"a\"\t", "a"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            ("\"a,b;c\"", "a,b;c"),
            ("YWJj/+==", "YWJj/+=="),
            (&longest, &longest),
        ] {
            assert_eq!(Key::parse(value), Some(Key(key.to_owned())), "{value}");
        }
        let too_long = "k".repeat(256);
        for value in [
            "",
            "\"\"",
            "\"",
            "\"a",
            "a\"",
            "\"a\"b",
            "a b",
            "\"a b\"",
            "a,b",
            "\"a\", \"b\"",
            "\"a\";p=1",
            "a;p=1",
            r"a\b",
            r#""a\b""#,
            r#""a\""#,
            "\u{e9}",
            "\"\u{e9}\"",
            "a\u{7f}",
            &too_long,
        ] {
            assert_eq!(Key::parse(value), None, "{value:?}");
        }
    }
}
