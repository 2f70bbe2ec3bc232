//! The faults of a request, and whether it may have any.

use rocket::Request;
use rocket::http::Status;
use rocket_tx::Problem;

use crate::config::FaultInjection;

use super::parse::{Fault, parse};

fn are_on(request: &Request<'_>) -> bool {
    let faults: Option<&FaultInjection> = request.rocket().state();
    faults.is_some_and(|faults| faults.0)
}

/// The faults of this request, if it may have any.
pub(super) fn admitted<'r>(request: &'r Request<'_>) -> Result<&'r [Fault], Problem> {
    let faults = requested(request).as_ref().map_err(Clone::clone)?;
    if faults.is_empty() || are_on(request) {
        return Ok(faults);
    }
    Err(Problem::new(
        Status::Forbidden,
        "faults-off",
        "Failure injection is off; the request was not executed. Launch with ROCKET_FAULTS=true.",
    ))
}

/// The faults that this request asks for, parsed once a request.
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
