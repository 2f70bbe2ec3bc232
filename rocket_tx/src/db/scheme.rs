//! The scheme of a database's URL.

/// Returns the scheme of `url` in lower case, and the rest of the URL without the colon. `None` if
/// `url` has no scheme: then it is a path.
///
/// A letter before a colon is a drive (`C:\data\main.db`), and a colon after a slash belongs to the
/// path (`./a:b.db`).
pub(super) fn split(url: &str) -> Option<(String, &str)> {
    let (scheme, rest) = url.split_once(':')?;
    let in_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    let is_scheme = scheme.len() > 1
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(in_scheme);
    is_scheme.then(|| (scheme.to_ascii_lowercase(), rest))
}

/// Returns the scheme of `url` in lower case.
pub(super) fn of(url: &str) -> Option<String> {
    split(url).map(|(scheme, _)| scheme)
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn a_path_has_no_scheme() {
        for path in [
            "data/main.db",
            "/var/lib/main.db",
            r"C:\data\main.db",
            "C:/data/main.db",
            "./a:b.db",
            "data/a:b.db",
            ":memory:",
            "",
        ] {
            assert_eq!(of(path), None, "{path}");
        }
    }

    #[test]
    fn a_scheme_is_compared_in_lower_case() {
        for (url, scheme) in [
            ("sqlite:main.db", "sqlite"),
            ("SQLite://main.db", "sqlite"),
            ("POSTGRES://localhost/x", "postgres"),
            ("postgresql://localhost/x", "postgresql"),
            ("file:main.db", "file"),
            ("mysql:x", "mysql"),
        ] {
            assert_eq!(of(url).as_deref(), Some(scheme), "{url}");
        }
    }
}
