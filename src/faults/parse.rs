//! Parses the text of `X-Fault` and `fault=`.

use std::time::Duration;

use rocket::http::Status;
use rocket_tx::Problem;

use crate::downstream::SimulatedFailure;

/// One failure that a request carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// Respond with this status, after the handler has done its work.
    Respond(Status),
    /// Panic after the handler has done its work.
    Panic,
    /// Wait this long after the handler, while everything stays outstanding.
    Delay(Duration),
    /// After an aggregate was loaded, wait this long, while the request holds only the lease.
    DelayLoaded(Duration),
    /// After an aggregate was loaded, give its lease to another holder.
    ExpireLease,
    /// Doom the request.
    Doom,
    /// Break a deferred constraint of `main`, so that the database refuses to commit.
    Commit,
    /// Run a statement on `main` that fails, and ignore the error.
    Swallow,
    /// Move the guard of `main` to a spawned task, which holds it for this long.
    Leak(Duration),
    /// Make the downstream service fail.
    Downstream(SimulatedFailure),
    /// End the Postgres session of `main` before settlement.
    Disconnect,
    /// Abort the process at this point.
    Crash(CrashPoint),
}

/// The point in a settlement where the process is aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CrashPoint {
    BeforeCommit,
    BetweenCommits,
    AfterCommit,
}

/// Parses one fault of the list in `X-Fault` or `fault=`.
pub(super) fn parse(word: &str) -> Result<Fault, Problem> {
    let (name, value) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word, None),
    };
    let fault = match (name, value) {
        ("respond", Some(value)) => status(value).map(Fault::Respond),
        ("panic", None) => Some(Fault::Panic),
        ("delay", Some(value)) => match value.strip_suffix("@loaded") {
            Some(value) => millis(value).map(Fault::DelayLoaded),
            None => millis(value).map(Fault::Delay),
        },
        ("expire-lease", None) => Some(Fault::ExpireLease),
        ("doom", None) => Some(Fault::Doom),
        ("commit", None) => Some(Fault::Commit),
        ("swallow", None) => Some(Fault::Swallow),
        ("leak", None) => Some(Fault::Leak(Duration::from_secs(1))),
        ("leak", Some(value)) => millis(value).map(Fault::Leak),
        ("downstream", Some("timeout")) => Some(Fault::Downstream(SimulatedFailure::Timeout)),
        ("downstream", Some(value)) => {
            let failure = |status: Status| SimulatedFailure::Status(status.code);
            status(value).map(|status| Fault::Downstream(failure(status)))
        }
        ("disconnect", None) => Some(Fault::Disconnect),
        ("crash", Some("before-commit")) => Some(Fault::Crash(CrashPoint::BeforeCommit)),
        ("crash", Some("between-commits")) => Some(Fault::Crash(CrashPoint::BetweenCommits)),
        ("crash", Some("after-commit")) => Some(Fault::Crash(CrashPoint::AfterCommit)),
        _ => None,
    };
    fault.ok_or_else(|| {
        Problem::new(
            Status::UnprocessableEntity,
            "validation",
            "`X-Fault` or `fault` must be a list of: respond=STATUS, panic, delay=MS, delay=MS@loaded, \
             expire-lease, doom, commit, swallow, leak[=MS], downstream=STATUS|timeout, \
             disconnect, crash=before-commit|between-commits|after-commit",
        )
    })
}

fn status(text: &str) -> Option<Status> {
    text.parse()
        .ok()
        .filter(|code| (200..600).contains(code))
        .map(Status::new)
}

/// Parses a duration in milliseconds. The limit is one minute, so that a fault cannot block the
/// service.
fn millis(text: &str) -> Option<Duration> {
    text.parse()
        .ok()
        .filter(|millis| *millis <= 60_000)
        .map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_parsed() {
        assert_eq!(
            parse("respond=502").unwrap(),
            Fault::Respond(Status::BadGateway)
        );
        assert_eq!(parse("leak").unwrap(), Fault::Leak(Duration::from_secs(1)));
        assert_eq!(
            parse("leak=5").unwrap(),
            Fault::Leak(Duration::from_millis(5))
        );
        assert_eq!(
            parse("delay=5@loaded").unwrap(),
            Fault::DelayLoaded(Duration::from_millis(5))
        );
        assert_eq!(
            parse("downstream=timeout").unwrap(),
            Fault::Downstream(SimulatedFailure::Timeout)
        );
    }

    #[test]
    fn any_other_text_is_refused() {
        for word in [
            "",
            "respond",
            "respond=99",
            "respond=x",
            "delay=-1",
            "delay=60001",
            "delay=@loaded",
            "delay=5@begun",
            "expire-lease=1",
            "crash",
            "boom",
        ] {
            assert!(parse(word).is_err(), "{word}");
        }
    }
}
