//! Decides whether a settled request keeps its response, or which problem replaces it. The decision
//! depends only on the verdict, its result, and the status of the response.

use std::borrow::Cow;

use rocket::http::Status;

use crate::tx::failure::{Error, Problem};
use crate::tx::verdict::{Outcome, Reason, Verdict};

/// The details that the registry has recorded for the client during the request.
#[derive(Default)]
pub(super) struct Recorded {
    /// The status and the reason of the first doom.
    pub(super) doom: Option<(Status, Cow<'static, str>)>,
    /// The problem of the first guard that failed.
    pub(super) failure: Option<Problem>,
}

/// Returns the outcome of a settlement.
pub(super) fn outcome(verdict: &Verdict, result: &Result<(), Error>) -> Outcome {
    match (verdict, result) {
        (_, Err(error)) => error.outcome(),
        (Verdict::Commit(_), Ok(())) => Outcome::Committed,
        (Verdict::Rollback(_), Ok(())) => Outcome::RolledBack,
    }
}

/// Returns the problem that replaces a response with this `status`, or `None` if the response is
/// kept.
///
/// `result` is the result of carrying the verdict out.
pub(super) fn rewrite(
    verdict: &Verdict,
    result: Result<(), Error>,
    status: Status,
    recorded: Recorded,
) -> Option<Problem> {
    let error = match (result, verdict) {
        (Err(error), _) => error,
        (Ok(()), Verdict::Commit(_)) => return None,
        (Ok(()), Verdict::Rollback(reason)) if reason.keeps_response(status) => return None,
        (Ok(()), Verdict::Rollback(reason)) => match (reason, recorded.doom, recorded.failure) {
            (Reason::GuardFailed, _, Some(failure)) => return Some(failure),
            (Reason::Leaked(names), ..) => Error::Leaked(names.clone()),
            (Reason::Doomed(_), Some((status, reason)), _) => Error::Doomed { status, reason },
            (Reason::Panicked, ..) => Error::Panicked,
            // All reasons are listed, so that the compiler demands a case for a new one.
            (Reason::GuardFailed | Reason::Doomed(_) | Reason::Replayed, ..)
            | (Reason::Handler | Reason::Vetoed | Reason::Status(_), ..) => Error::NotFinal(status),
        },
    };
    error.log_wrong_status();
    Some(error.problem())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(verdict: &Verdict, result: Result<(), Error>, status: u16) -> (u16, Outcome) {
        let outcome = outcome(verdict, &result);
        let recorded = Recorded {
            doom: Some((Status::Conflict, "doomed".into())),
            failure: Some(Problem::new(Status::ServiceUnavailable, "busy", "busy")),
        };
        let problem = rewrite(verdict, result, Status::new(status), recorded);
        (problem.map_or(status, |it| it.status().code), outcome)
    }

    /// Each row is a case of the tables in `docs/promises.md`.
    #[test]
    fn a_response_is_kept_unless_it_contradicts_the_outcome() {
        use Outcome::{Committed, Partial, RolledBack, Unknown};

        let leaked = || Reason::Leaked(vec!["main".into()]);
        let doomed = || Reason::Doomed("doomed".into());
        let of = |status| Reason::Status(Status::new(status));
        let committed = || Ok(());
        let refused = || Err(Error::Aborted);
        let ended = || Err(Error::Ended { undone: false });
        let unknown = || Err(Error::Unknown(vec!["main".into()]));
        let partial = || {
            let (committed, refused) = (vec!["main".into()], vec!["audit".into()]);
            Err(Error::Partial { committed, refused })
        };
        let table = [
            (Verdict::Commit(of(201)), committed(), 201, (201, Committed)),
            (Verdict::Commit(of(303)), committed(), 303, (303, Committed)),
            (Verdict::Commit(of(201)), refused(), 201, (500, RolledBack)),
            (Verdict::Commit(of(201)), unknown(), 201, (500, Unknown)),
            (Verdict::Commit(of(201)), partial(), 201, (500, Partial)),
            (
                Verdict::Commit(Reason::Handler),
                committed(),
                404,
                (404, Committed),
            ),
            (
                Verdict::Commit(Reason::Handler),
                refused(),
                404,
                (500, RolledBack),
            ),
            (Verdict::Rollback(of(422)), Ok(()), 422, (422, RolledBack)),
            (Verdict::Rollback(of(503)), Ok(()), 503, (503, RolledBack)),
            (Verdict::Rollback(of(422)), ended(), 422, (500, Unknown)),
            (Verdict::Rollback(of(150)), Ok(()), 150, (500, RolledBack)),
            (
                Verdict::Rollback(Reason::Handler),
                Ok(()),
                200,
                (200, RolledBack),
            ),
            (
                Verdict::Rollback(Reason::Vetoed),
                Ok(()),
                303,
                (303, RolledBack),
            ),
            (
                Verdict::Rollback(Reason::Panicked),
                Ok(()),
                200,
                (500, RolledBack),
            ),
            (
                Verdict::Rollback(Reason::Panicked),
                Ok(()),
                418,
                (418, RolledBack),
            ),
            (
                Verdict::Rollback(Reason::GuardFailed),
                Ok(()),
                200,
                (503, RolledBack),
            ),
            (
                Verdict::Rollback(Reason::GuardFailed),
                Ok(()),
                404,
                (404, RolledBack),
            ),
            (Verdict::Rollback(doomed()), Ok(()), 200, (409, RolledBack)),
            (Verdict::Rollback(doomed()), Ok(()), 422, (422, RolledBack)),
            (Verdict::Rollback(leaked()), Ok(()), 201, (500, RolledBack)),
            (Verdict::Rollback(leaked()), Ok(()), 404, (500, RolledBack)),
        ];
        for (verdict, result, status, expected) in table {
            let what = format!("{verdict:?}, {result:?}, {status}");
            assert_eq!(rewritten(&verdict, result, status), expected, "{what}");
        }
    }
}
