//! What is to be done with a request's transactions, and why.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use rocket::http::Status;
use serde::Serialize;

use super::request_id::RequestId;

/// Commit or roll back, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Everything outstanding is to be committed.
    Commit(Reason),
    /// Everything outstanding is to be rolled back.
    Rollback(Reason),
}

/// What is known of a request when its response is ready.
pub(in crate::tx) struct Facts {
    /// The databases whose transactions a guard still holds.
    pub(in crate::tx) leaked: Vec<String>,
    pub(in crate::tx) panicked: bool,
    /// A guard of this library failed.
    pub(in crate::tx) guard_failed: bool,
    /// Why the request was doomed.
    pub(in crate::tx) doomed: Option<Cow<'static, str>>,
    pub(in crate::tx) choice: Option<Choice>,
    /// The status that the response has now.
    pub(in crate::tx) status: Status,
}

impl Verdict {
    /// The first rule that applies decides. `vetoed` is asked only if no rule before it applies.
    pub(in crate::tx) fn of(facts: Facts, vetoed: impl FnOnce() -> bool) -> Self {
        let status = facts.status;
        if !facts.leaked.is_empty() {
            return Self::Rollback(Reason::Leaked(facts.leaked));
        }
        if facts.panicked {
            return Self::Rollback(Reason::Panicked);
        }
        if facts.guard_failed {
            return Self::Rollback(Reason::GuardFailed);
        }
        if let Some(reason) = facts.doomed {
            return Self::Rollback(Reason::Doomed(reason));
        }
        // It ends no request: the client would get another status, or no answer.
        if status.code < 200 {
            return Self::Rollback(Reason::Status(status));
        }
        match facts.choice {
            Some(Choice::Commit) if status.code < 500 => Self::Commit(Reason::Handler),
            Some(Choice::Rollback) => Self::Rollback(Reason::Handler),
            _ if vetoed() => Self::Rollback(Reason::Vetoed),
            _ if status.code < 400 => Self::Commit(Reason::Status(status)),
            _ => Self::Rollback(Reason::Status(status)),
        }
    }

    /// Why.
    pub fn reason(&self) -> &Reason {
        match self {
            Self::Commit(reason) | Self::Rollback(reason) => reason,
        }
    }
}

/// Why a verdict fell. They are asked for in this order, and the first that applies
/// decides; but a status below 200 comes before the handler's word, and so does one from 500 on if that
/// word is [`Commit`](super::Commit).
///
/// What the client is told for each is in `settlement/rewrite.rs`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// These transactions were still checked out when the response was ready.
    Leaked(Vec<String>),
    /// Something panicked.
    Panicked,
    /// A guard of this library failed.
    GuardFailed,
    /// `outstanding.doom(..)` was called, with this reason.
    Doomed(Cow<'static, str>),
    /// The handler said so by its type: [`Commit`](super::Commit) or [`Rollback`](super::Rollback).
    Handler,
    /// The service's veto.
    Vetoed,
    /// The status of the response.
    Status(Status),
}

impl Reason {
    /// Whether the client may be told `status` after a rollback for this reason. A success or a
    /// redirect stands only where the service itself asked for the rollback, by
    /// [`Rollback`](super::Rollback) or its veto.
    pub(in crate::tx) fn lets_stand(&self, status: Status) -> bool {
        match self {
            Self::Leaked(_) => false,
            Self::Handler | Self::Vetoed => status.code >= 200,
            Self::Panicked | Self::GuardFailed | Self::Doomed(_) | Self::Status(_) => {
                status.code >= 400
            }
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaked(names) => write!(f, "still checked out: {}", names.join(", ")),
            Self::Panicked => f.write_str("panic"),
            Self::GuardFailed => f.write_str("a guard failed"),
            Self::Doomed(reason) => write!(f, "doomed: {reason}"),
            Self::Handler => f.write_str("the handler's type"),
            Self::Vetoed => f.write_str("veto"),
            Self::Status(status) => write!(f, "status {}", status.code),
        }
    }
}

/// What really happened. The `Transaction-Outcome` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
pub enum Outcome {
    /// Everything was committed.
    Committed,
    /// Nothing was committed.
    RolledBack,
    /// One database was committed and another was not.
    Partial,
    /// COMMIT was sent, and its answer never came.
    Unknown,
}

impl Outcome {
    /// As the header says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::RolledBack => "rolled-back",
            Self::Partial => "partial",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a handler said by its return type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tx) enum Choice {
    Commit,
    Rollback,
}

/// What is done to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The last chance to refuse.
    Prepare,
    /// COMMIT, or a release's counterpart of it.
    Commit,
    /// ROLLBACK.
    Rollback,
}

/// What a request's settlement came to.
#[derive(Debug, Clone)]
pub struct SettlementReport {
    /// The request.
    pub request: RequestId,
    /// What was to be done, and why.
    pub verdict: Verdict,
    /// What really happened.
    pub outcome: Outcome,
    /// What happened in each database that the request had a transaction of, in joining order. One
    /// that is condemned counts as rolled back, unless its holder may have committed it.
    pub databases: Vec<(String, Outcome)>,
    /// The status that the client is told.
    pub status: Status,
    /// How long settling took.
    pub took: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(status: u16) -> Facts {
        Facts {
            leaked: Vec::new(),
            panicked: false,
            guard_failed: false,
            doomed: None,
            choice: None,
            status: Status::new(status),
        }
    }

    /// Everything that can be known, together.
    fn every_fact() -> Vec<(Facts, bool)> {
        let mut all = Vec::new();
        for status in [
            0, 100, 101, 199, 200, 204, 303, 304, 399, 400, 404, 499, 500, 503, 999,
        ] {
            for bits in 0..32 {
                let bit = |n: u32| bits & (1 << n) != 0;
                for choice in [None, Some(Choice::Commit), Some(Choice::Rollback)] {
                    let facts = Facts {
                        leaked: bit(0).then(|| "main".to_owned()).into_iter().collect(),
                        panicked: bit(1),
                        guard_failed: bit(2),
                        doomed: bit(3).then_some("doomed".into()),
                        choice,
                        ..facts(status)
                    };
                    all.push((facts, bit(4)));
                }
            }
        }
        all
    }

    #[test]
    fn a_success_stands_only_with_a_commit_or_by_the_services_own_word() {
        for (facts, vetoed) in every_fact() {
            let (status, choice) = (facts.status, facts.choice);
            let verdict = Verdict::of(facts, || vetoed);
            let what = format!("{verdict:?} of {status}, {choice:?}, {vetoed}");
            match &verdict {
                Verdict::Commit(Reason::Handler) => {
                    assert!((200..500).contains(&status.code), "{what}");
                }
                Verdict::Commit(reason) => {
                    assert_eq!(*reason, Reason::Status(status), "{what}");
                    assert!((200..400).contains(&status.code), "{what}");
                }
                Verdict::Rollback(reason) if reason.lets_stand(status) && status.code < 400 => {
                    assert!(status.code >= 200, "{what}");
                    let asked_for = choice == Some(Choice::Rollback) || vetoed;
                    assert!(asked_for, "{what}");
                    assert!(matches!(reason, Reason::Handler | Reason::Vetoed), "{what}");
                }
                Verdict::Rollback(_) => {}
            }
        }
    }

    #[test]
    fn the_first_rule_that_applies_decides() {
        let leaked = || vec!["main".to_owned()];
        let (panicked, guard_failed) = (true, true);
        let doomed = || Some(Cow::from("doomed"));
        let choice = Some(Choice::Commit);
        let table = [
            (
                Facts {
                    leaked: leaked(),
                    panicked,
                    guard_failed,
                    doomed: doomed(),
                    choice,
                    ..facts(200)
                },
                Verdict::Rollback(Reason::Leaked(leaked())),
            ),
            (
                Facts {
                    panicked,
                    guard_failed,
                    doomed: doomed(),
                    choice,
                    ..facts(200)
                },
                Verdict::Rollback(Reason::Panicked),
            ),
            (
                Facts {
                    guard_failed,
                    doomed: doomed(),
                    choice,
                    ..facts(200)
                },
                Verdict::Rollback(Reason::GuardFailed),
            ),
            (
                Facts {
                    doomed: doomed(),
                    choice,
                    ..facts(200)
                },
                Verdict::Rollback(Reason::Doomed("doomed".into())),
            ),
            (
                Facts {
                    choice,
                    ..facts(404)
                },
                Verdict::Commit(Reason::Handler),
            ),
            (
                Facts {
                    choice,
                    ..facts(500)
                },
                Verdict::Rollback(Reason::Vetoed),
            ),
            (facts(201), Verdict::Rollback(Reason::Vetoed)),
            (
                facts(150),
                Verdict::Rollback(Reason::Status(Status::new(150))),
            ),
        ];
        for (facts, expected) in table {
            assert_eq!(Verdict::of(facts, || true), expected);
        }
        for (status, commits) in [
            (200, true),
            (303, true),
            (304, true),
            (400, false),
            (500, false),
        ] {
            let reason = Reason::Status(Status::new(status));
            let expected = match commits {
                true => Verdict::Commit(reason),
                false => Verdict::Rollback(reason),
            };
            assert_eq!(Verdict::of(facts(status), || false), expected);
        }
    }
}
