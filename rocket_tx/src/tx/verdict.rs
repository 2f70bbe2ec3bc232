//! The verdict on a request's transactions, its reason, and the outcome.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use rocket::http::Status;
use serde::Serialize;

use super::request_id::RequestId;

/// The decision to commit or to roll back, with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Everything outstanding is committed.
    Commit(Reason),
    /// Everything outstanding is rolled back.
    Rollback(Reason),
}

/// The facts that decide the verdict, collected when the response is ready.
pub(in crate::tx) struct Facts {
    /// The databases whose transactions a guard still held when the response was ready.
    pub(in crate::tx) leaked: Vec<String>,
    /// Something panicked in the request.
    pub(in crate::tx) panicked: bool,
    /// The stored response of an earlier request is sent instead.
    pub(in crate::tx) replayed: bool,
    /// A guard of this library failed.
    pub(in crate::tx) guard_failed: bool,
    /// Why the request was doomed.
    pub(in crate::tx) doomed: Option<Cow<'static, str>>,
    /// The handler's decision by its return type.
    pub(in crate::tx) choice: Option<Choice>,
    /// The status that the response has now.
    pub(in crate::tx) status: Status,
}

impl Verdict {
    /// Decides by the rules that are listed at [`Reason`]. `vetoed` is called only if the rules
    /// before the veto do not apply.
    pub(in crate::tx) fn of(facts: Facts, vetoed: impl FnOnce() -> bool) -> Self {
        let status = facts.status;
        if !facts.leaked.is_empty() {
            return Self::Rollback(Reason::Leaked(facts.leaked));
        }
        if facts.panicked {
            return Self::Rollback(Reason::Panicked);
        }
        if facts.replayed {
            return Self::Rollback(Reason::Replayed);
        }
        if facts.guard_failed {
            return Self::Rollback(Reason::GuardFailed);
        }
        if let Some(reason) = facts.doomed {
            return Self::Rollback(Reason::Doomed(reason));
        }
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

    /// The reason of the verdict.
    pub fn reason(&self) -> &Reason {
        match self {
            Self::Commit(reason) | Self::Rollback(reason) => reason,
        }
    }
}

/// Why a verdict is commit or rollback.
///
/// # The rules
///
/// The rules are checked in this order, and the first rule that applies decides:
///
/// | | rule | verdict | reason |
/// | --- | --- | --- | --- |
/// | 1. | a guard still holds a transaction when the response is ready | rollback | [`Leaked`](Self::Leaked) |
/// | 2. | something panicked in the request | rollback | [`Panicked`](Self::Panicked) |
/// | 3. | an earlier request has done the work; its stored response is sent | rollback | [`Replayed`](Self::Replayed) |
/// | 4. | a guard of this library failed | rollback | [`GuardFailed`](Self::GuardFailed) |
/// | 5. | `outstanding.doom(..)` was called | rollback | [`Doomed`](Self::Doomed) |
/// | 6. | the status is below 200 | rollback | [`Status`](Self::Status) |
/// | 7. | the handler returned [`Commit`](super::Commit), and the status is below 500 | commit | [`Handler`](Self::Handler) |
/// | 8. | the handler returned [`Rollback`](super::Rollback) | rollback | [`Handler`](Self::Handler) |
/// | 9. | the service's veto returned `true`, or panicked | rollback | [`Vetoed`](Self::Vetoed) |
/// | 10. | the status is below 400 | commit | [`Status`](Self::Status) |
/// | 11. | the status is 400 or above | rollback | [`Status`](Self::Status) |
///
/// A status below 200 never commits, because it does not end a request: the client would receive
/// another status, or no response.
///
/// A request gets no verdict, and keeps its response, if it has begun or joined nothing, has not
/// tried to, was not doomed, and has added no hooks. There is one exception: after a panic, rule 2
/// also applies if the request has used a guard by which it could have begun something.
///
/// After a rollback, `settlement/rewrite.rs` decides by the reason whether the response is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The transactions of these databases were still checked out when the response was ready.
    Leaked(Vec<String>),
    /// Something panicked in the request.
    Panicked,
    /// An earlier request has done the work, and its
    /// [stored response](super::Outstanding::respond_with) is sent.
    Replayed,
    /// A guard of this library failed.
    GuardFailed,
    /// `outstanding.doom(..)` was called, with this reason.
    Doomed(Cow<'static, str>),
    /// The handler decided by its return type, [`Commit`](super::Commit) or
    /// [`Rollback`](super::Rollback).
    Handler,
    /// The service's veto returned `true`, or panicked.
    Vetoed,
    /// The status of the response decided: it is this one.
    Status(Status),
}

impl Reason {
    /// Returns `true` if a response with this `status` may be sent unchanged after a rollback for
    /// this reason. A success or a redirect may be sent only if the service itself requested the
    /// rollback, by [`Rollback`](super::Rollback) or by its veto.
    pub(in crate::tx) fn keeps_response(&self, status: Status) -> bool {
        match self {
            Self::Leaked(_) => false,
            Self::Handler | Self::Vetoed => status.code >= 200,
            Self::Panicked
            | Self::Replayed
            | Self::GuardFailed
            | Self::Doomed(_)
            | Self::Status(_) => status.code >= 400,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaked(names) => write!(f, "still checked out: {}", names.join(", ")),
            Self::Panicked => f.write_str("panic"),
            Self::Replayed => f.write_str("an earlier request has done it"),
            Self::GuardFailed => f.write_str("a guard failed"),
            Self::Doomed(reason) => write!(f, "doomed: {reason}"),
            Self::Handler => f.write_str("the handler's return type"),
            Self::Vetoed => f.write_str("veto"),
            Self::Status(status) => write!(f, "status {}", status.code),
        }
    }
}

/// What really happened to a request's transactions. The value of the `Transaction-Outcome` header.
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
    /// It is not known what was committed. For example, there was no reply to COMMIT, the disk may
    /// have lost the commit, or a handler may have ended a transaction itself.
    Unknown,
}

impl Outcome {
    /// The value of the header.
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

/// The decision that a handler makes by its return type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tx) enum Choice {
    Commit,
    Rollback,
}

/// A step of a settlement on one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Action {
    /// The resource gets its last chance to refuse.
    Prepare,
    /// The resource commits. See [`Phase`](super::Phase) for the order.
    Commit,
    /// The resource is rolled back.
    Rollback,
    /// PREPARE TRANSACTION: the database can commit later, also after a crash. In an atomic commit
    /// over several databases.
    PrepareTransaction,
    /// COMMIT of the database that decides, together with the decision.
    Decide,
    /// COMMIT PREPARED: commits what was prepared, as decided.
    CommitPrepared,
}

/// The result of the settlement of one request.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SettlementReport {
    /// The request.
    pub request: RequestId,
    /// The decision, and its reason.
    pub verdict: Verdict,
    /// What really happened.
    pub outcome: Outcome,
    /// The outcome of each database in which the request had a transaction. Condemned transactions
    /// (a guard held them when the request ended) come first, then the others; both in joining
    /// order. A condemned transaction counts as rolled back, unless its holder may have committed
    /// it.
    pub databases: Vec<(String, Outcome)>,
    /// The databases whose commit is decided but was not carried out yet, because they could not be
    /// reached. They count as committed: recovery commits them.
    pub pending: Vec<String>,
    /// The status that the client receives.
    pub status: Status,
    /// How long the settlement took.
    pub took: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(status: u16) -> Facts {
        Facts {
            leaked: Vec::new(),
            panicked: false,
            replayed: false,
            guard_failed: false,
            doomed: None,
            choice: None,
            status: Status::new(status),
        }
    }

    /// All combinations of facts, each with the result of the veto.
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
    fn a_success_is_sent_only_after_a_commit_or_a_rollback_that_the_service_requested() {
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
                Verdict::Rollback(reason) if reason.keeps_response(status) && status.code < 400 => {
                    assert!(status.code >= 200, "{what}");
                    let requested = choice == Some(Choice::Rollback) || vetoed;
                    assert!(requested, "{what}");
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
