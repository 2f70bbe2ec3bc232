//! Which parts of a response are stored, and how.

use rocket::http::Status;
use rocket::serde::json::serde_json;
use rocket_tx::tx::{FinalBody, FinalResponse, StoredResponse};

use crate::problems;
use crate::rows::{Row, Saved};

/// The header of a response that is sent again.
const REPLAYED: &str = "Idempotency-Replayed";

/// Headers that belong to one connection or one request, and not to the response. They are in lower
/// case.
const NOT_STORED: [&str; 15] = [
    // Hop-by-hop: https://www.rfc-editor.org/rfc/rfc9110#name-connection
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    // Made anew for each response.
    "content-length",
    "date",
    "server",
    "transaction-outcome",
    "x-request-id",
    // For one client only.
    "set-cookie",
];

fn is_stored(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // Whether another origin may read a response depends on the request that repeats it.
    let is_cors = name.starts_with("access-control-");
    !is_cors && !NOT_STORED.contains(&&*name)
}

/// Returns the row for a response.
pub(crate) fn save(response: &FinalResponse) -> Saved {
    let headers = response.headers.iter();
    let headers: Vec<_> = headers.filter(|(name, _)| is_stored(name)).collect();
    Saved {
        status: i32::from(response.status.code),
        headers: serde_json::json!(headers).to_string(),
        body: match &response.body {
            FinalBody::Bytes(bytes) => Some(bytes.clone()),
            _ => None, // too large, or a stream
        },
    }
}

/// Returns the response of a row, to be sent again.
pub(crate) fn replay(row: Row) -> StoredResponse {
    let headers = row.headers.as_deref();
    let headers = headers.and_then(|headers| serde_json::from_str(headers).ok());
    let headers: Vec<(String, String)> = headers.unwrap_or_default();
    let status = row.status.and_then(|status| u16::try_from(status).ok());
    match (status, row.body) {
        (Some(status), Some(body)) => {
            let response = StoredResponse::new(Status::new(status), body);
            let headers = headers.into_iter();
            let response = headers.fold(response, |response, (name, value)| {
                response.header(name, value)
            });
            response.header(REPLAYED, "true")
        }
        (_, _) => {
            let mut headers = headers.iter();
            let location = headers.find(|(name, _)| name.eq_ignore_ascii_case("location"));
            let location = location.map(|(_, value)| &**value);
            StoredResponse::problem(problems::not_stored(row.status, location))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_one_connection_or_one_request_are_not_stored() {
        for name in [
            "Location",
            "ETag",
            "Content-Type",
            "Link",
            "Vary",
            "Retry-After",
        ] {
            assert!(is_stored(name), "{name}");
        }
        for name in [
            "Connection",
            "Transfer-Encoding",
            "Date",
            "Set-Cookie",
            "X-Request-Id",
            "Access-Control-Allow-Origin",
            "Content-Length",
        ] {
            assert!(!is_stored(name), "{name}");
        }
    }
}
