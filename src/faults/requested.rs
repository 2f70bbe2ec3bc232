//! Reads the faults of a request, and checks that failure injection is on.

use rocket::Request;
use rocket::http::Status;
use rocket_tx::Problem;

use crate::config::FaultInjection;

use super::parse::{Fault, parse};

fn are_on(request: &Request<'_>) -> bool {
    let faults: Option<&FaultInjection> = request.rocket().state();
    faults.is_some_and(|faults| faults.0)
}

/// Returns the faults of this request.
///
/// # Errors
///
/// 422 if a fault cannot be parsed; 403 if the request has faults and failure injection is off.
pub(super) fn admitted<'r>(request: &'r Request<'_>) -> Result<&'r [Fault], Problem> {
    let faults = requested(request).as_ref().map_err(Clone::clone)?;
    if faults.is_empty() || are_on(request) {
        return Ok(faults);
    }
    Err(Problem::new(
        Status::Forbidden,
        "faults-off",
        "Failure injection is off, so the request was not executed. To turn it on, launch the \
         service with ROCKET_FAULTS=true.",
    ))
}

/// Returns the faults that this request carries. They are parsed once per request.
fn requested<'r>(request: &'r Request<'_>) -> &'r Result<Vec<Fault>, Problem> {
    request.local_cache(|| {
        let header = request.headers().get("X-Fault");
        let query = request.uri().query().into_iter().flat_map(|query| {
            query
                .segments()
                .filter(|(key, _)| *key == "fault")
                .map(|(_, value)| value)
        });
        header
            .chain(query)
            .flat_map(|list| list.split(','))
            .map(str::trim)
            .filter(|word| !word.is_empty())
            .map(parse)
            .collect()
    })
}
