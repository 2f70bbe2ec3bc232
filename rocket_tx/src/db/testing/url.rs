//! Replaces the database in a URL.

/// Returns the URL with another database on the same server.
#[cfg(feature = "postgres")]
pub(super) fn with_database(url: &str, database: &str) -> String {
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let (scheme, rest) = address.split_once("://").unwrap_or(("postgres", address));
    let authority = rest.split('/').next().unwrap_or_default();
    let kept: Vec<&str> = query
        .split('&')
        .filter(|one| !one.is_empty() && !one.starts_with("dbname="))
        .collect();
    let separator = if kept.is_empty() { "" } else { "?" };
    format!(
        "{scheme}://{authority}/{database}{separator}{}",
        kept.join("&")
    )
}

/// Returns the URL with another file, or `None` if it names no file.
#[cfg(feature = "sqlite")]
pub(super) fn with_file(url: &str, file: &std::path::Path) -> Option<String> {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let path = path.trim_start_matches("sqlite:").trim_start_matches("//");
    if path.is_empty() || path == ":memory:" {
        return None;
    }
    let file = file.display().to_string();
    let file = file.replace('%', "%25").replace('?', "%3F");
    let separator = if query.is_empty() { "" } else { "?" };
    Some(format!("sqlite:{file}{separator}{query}"))
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "postgres")]
    #[test]
    fn a_url_gets_another_database() {
        let cases = [
            ("postgres://a:b@host:1/main", "postgres://a:b@host:1/own"),
            ("postgresql://host", "postgresql://host/own"),
            (
                "postgres:///main?host=/run/sockets&dbname=main&sslmode=disable",
                "postgres:///own?host=/run/sockets&sslmode=disable",
            ),
            ("postgres://host/main?dbname=other", "postgres://host/own"),
        ];
        for (url, expected) in cases {
            assert_eq!(super::with_database(url, "own"), expected);
        }
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn a_url_gets_another_file() {
        let own = std::path::Path::new("/tmp/50%?/own.db");
        let with_file = |url| super::with_file(url, own);
        let expected = Some("sqlite:/tmp/50%25%3F/own.db".to_owned());
        assert_eq!(with_file("sqlite:data/main.db"), expected);
        assert_eq!(with_file("sqlite:///data/main.db"), expected);
        assert_eq!(with_file("main.db"), expected);
        let with_query = with_file("sqlite:main.db?mode=rwc");
        assert_eq!(with_query, expected.map(|url| url + "?mode=rwc"));
        for unusable in ["sqlite::memory:", "sqlite:", ""] {
            assert_eq!(with_file(unusable), None, "{unusable}");
        }
    }
}
