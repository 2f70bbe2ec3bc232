//! The live list: what is outstanding or condemned in the whole service now.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
#[cfg(feature = "testing")]
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use super::feed::{Feed, FeedEventKind, Listener};
use crate::db::Recovery;
use crate::tx::request_id::RequestId;
use crate::tx::verdict::Outcome;

/// The list of what is outstanding or condemned in the whole service, with counters and the feed.
///
/// A transaction is condemned if its request has ended while a guard holds it: it can never commit.
/// `Settlement` puts the list into Rocket's managed state: a handler takes it as `&State<Live>`.
#[derive(Clone, Default)]
pub struct Live(Arc<Inner>);

#[derive(Default)]
struct Inner {
    entries: Mutex<BTreeMap<u64, Entry>>,
    next: AtomicU64,
    settled: [AtomicU64; 4],
    hook_failures: AtomicU64,
    /// The requests whose hooks are running.
    #[cfg(feature = "testing")]
    running_hooks: TaskTracker,
    feed: Feed,
    /// Set at launch, if the service commits several databases atomically.
    recovery: OnceLock<Arc<Recovery>>,
}

struct Entry {
    route: Option<Cow<'static, str>>,
    guard: &'static str,
    since: Instant,
    flags: Arc<Flags>,
}

/// The request and the resource of an entry, and its flags.
struct Flags {
    live: Live,
    request: RequestId,
    resource: Cow<'static, str>,
    checked_out: AtomicBool,
    condemned: AtomicBool,
    /// A warning that it is outstanding for too long was logged.
    warned: AtomicBool,
}

/// A transaction, or another resource, that is outstanding or condemned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct LiveTransaction {
    /// The id of the request that it belongs to.
    pub request: String,
    /// The name of the route, if the route has one.
    #[cfg_attr(feature = "utoipa", schema(required))]
    pub route: Option<String>,
    /// The database, or the name that the resource gives itself.
    pub resource: String,
    /// The type of the guard that began it, or of the resource that joined.
    pub guard: String,
    /// Milliseconds since it began or joined.
    pub age_ms: u64,
    /// `true` while a guard holds it.
    pub checked_out: bool,
    /// Its request ended while a guard held it. It can never commit. On Postgres, settlement ends
    /// it at the server; on SQLite, it is rolled back when the guard is dropped.
    pub condemned: bool,
}

/// A prepared transaction of an atomic commit that is in doubt: its request has ended, and nobody
/// has committed it or rolled it back yet. It keeps its locks until then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct PreparedTransaction {
    /// Its name, as `pg_prepared_xacts` lists it.
    pub name: String,
    /// The database that has prepared it.
    pub database: String,
    /// The database that stores the decision. `null` if it is not attached: another service must
    /// finish the transaction.
    #[cfg_attr(feature = "utoipa", schema(required))]
    pub decider: Option<String>,
    /// Milliseconds since it was prepared.
    pub age_ms: u64,
}

impl Live {
    /// Returns the prepared transactions that are in doubt, as the last pass of recovery has found
    /// them. Recovery looks for them every 30 s on average, and at once after a failed commit.
    pub fn in_doubt(&self) -> Vec<PreparedTransaction> {
        let unfinished = self.0.recovery.get().map(|recovery| recovery.unfinished());
        let unfinished = unfinished.into_iter().flatten();
        unfinished
            .map(|one| PreparedTransaction {
                name: one.prepared.id.to_string(),
                database: one.database.to_owned(),
                decider: one.decider.map(str::to_owned),
                age_ms: u64::try_from(one.age().as_millis()).unwrap_or(u64::MAX),
            })
            .collect()
    }

    pub(in crate::tx) fn set_recovery(&self, recovery: Arc<Recovery>) {
        let _only_once = self.0.recovery.set(recovery);
    }

    /// Returns everything that is outstanding or condemned, oldest first.
    pub fn transactions(&self) -> Vec<LiveTransaction> {
        let entries = self.0.entries.lock();
        entries.values().map(Entry::describe).collect()
    }

    /// Returns the entries that are older than `limit`, except those that a warning was already
    /// logged about. The caller must log a warning about the returned ones.
    pub(super) fn overdue(&self, limit: Duration) -> Vec<LiveTransaction> {
        let entries = self.0.entries.lock();
        let overdue = entries
            .values()
            .filter(|entry| entry.since.elapsed() > limit && entry.flags.warn());
        overdue.map(Entry::describe).collect()
    }

    /// Returns how many requests have ended with `outcome` since the launch.
    pub fn settled(&self, outcome: Outcome) -> u64 {
        self.0.settled[outcome as usize].load(Ordering::Relaxed)
    }

    /// Subscribes to all events from now on: transactions begun, checked out and in, verdicts, and
    /// every step of every settlement. Events cost nearly nothing without subscribers. A slow
    /// subscriber loses events and receives their number as
    /// [`FeedItem::Lagged`](super::FeedItem::Lagged).
    pub fn listen(&self) -> Listener {
        self.0.feed.listen()
    }

    /// Returns the number of subscribers.
    pub fn listeners(&self) -> usize {
        self.0.feed.listeners()
    }

    /// Publishes the service's own event about a request, as [`FeedEventKind::Note`]. `data` is called
    /// only if there is a subscriber.
    pub fn publish(
        &self,
        request: RequestId,
        topic: &'static str,
        data: impl FnOnce() -> rocket::serde::json::Value,
    ) {
        self.emit(request, || FeedEventKind::Note {
            topic: topic.into(),
            data: data(),
        });
    }

    pub(in crate::tx) fn emit(&self, request: RequestId, kind: impl FnOnce() -> FeedEventKind) {
        self.0.feed.emit(request, kind);
    }

    /// Returns how many hooks have failed or panicked since the launch.
    pub fn hook_failures(&self) -> u64 {
        self.0.hook_failures.load(Ordering::Relaxed)
    }

    /// Returns a token. [`hooks_have_run`](Self::hooks_have_run) waits until it is dropped.
    #[cfg(feature = "testing")]
    pub(in crate::tx) fn hooks_begin(&self) -> TaskTrackerToken {
        self.0.running_hooks.token()
    }

    /// Returns the number of requests whose hooks are running.
    #[cfg(feature = "testing")]
    pub(crate) fn running_hooks(&self) -> usize {
        self.0.running_hooks.len()
    }

    /// Waits until no hooks are running.
    #[cfg(feature = "testing")]
    pub(crate) async fn hooks_have_run(&self) {
        // A closed tracker still accepts tokens.
        self.0.running_hooks.close();
        self.0.running_hooks.wait().await;
    }

    pub(in crate::tx) fn count_hook_failure(&self) {
        self.0.hook_failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::tx) fn count(&self, outcome: Outcome) {
        self.0.settled[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::tx) fn enter(
        &self,
        request: RequestId,
        route: Option<Cow<'static, str>>,
        resource: Cow<'static, str>,
        guard: &'static str,
    ) -> LiveEntry {
        self.emit(request, || FeedEventKind::Began {
            resource: resource.clone(),
            guard: short_type(guard),
            route: route.clone(),
        });
        let key = self.0.next.fetch_add(1, Ordering::Relaxed);
        let flags = Arc::new(Flags {
            live: self.clone(),
            request,
            resource,
            checked_out: AtomicBool::new(false),
            condemned: AtomicBool::new(false),
            warned: AtomicBool::new(false),
        });
        let entry = Entry {
            route,
            guard,
            since: Instant::now(),
            flags: Arc::clone(&flags),
        };
        self.0.entries.lock().insert(key, entry);
        LiveEntry {
            live: self.clone(),
            key,
            flags: LiveFlags(flags),
        }
    }
}

impl Entry {
    fn describe(&self) -> LiveTransaction {
        LiveTransaction {
            request: self.flags.request.to_string(),
            route: self.route.as_deref().map(str::to_owned),
            resource: self.flags.resource.clone().into_owned(),
            guard: short_type(self.guard),
            age_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            checked_out: self.flags.checked_out.load(Ordering::Relaxed),
            condemned: self.flags.condemned.load(Ordering::Relaxed),
        }
    }
}

impl Flags {
    /// Records that a warning is logged. Returns `true` for the first call only.
    fn warn(&self) -> bool {
        !self.warned.swap(true, Ordering::Relaxed)
    }
}

/// Keeps an entry in the live list. Dropping it removes the entry.
pub(in crate::tx) struct LiveEntry {
    live: Live,
    key: u64,
    flags: LiveFlags,
}

impl LiveEntry {
    pub(in crate::tx) fn flags(&self) -> LiveFlags {
        self.flags.clone()
    }
}

impl Drop for LiveEntry {
    fn drop(&mut self) {
        self.live.0.entries.lock().remove(&self.key);
    }
}

/// The flags of an entry, for the guards and the settlement that change them.
#[derive(Clone)]
pub(in crate::tx) struct LiveFlags(Arc<Flags>);

impl LiveFlags {
    pub(in crate::tx) fn checked_out(&self, checked_out: bool) {
        let Flags {
            live,
            request,
            resource,
            ..
        } = &*self.0;
        self.0.checked_out.store(checked_out, Ordering::Relaxed);
        live.emit(*request, || {
            let resource = resource.clone();
            match checked_out {
                true => FeedEventKind::CheckedOut { resource },
                false => FeedEventKind::CheckedIn { resource },
            }
        });
    }

    /// Records that a warning is logged. Returns `true` for the first call only.
    pub(in crate::tx) fn warn(&self) -> bool {
        self.0.warn()
    }

    pub(in crate::tx) fn condemn(&self) {
        self.0.condemned.store(true, Ordering::Relaxed);
    }
}

/// Removes module paths from a type name: `rocket_tx::tx::guard::Tx<service::Main>` becomes
/// `Tx<Main>`.
pub(in crate::tx) fn short_type(name: &str) -> String {
    let mut short = String::new();
    for part in name.split_inclusive(['<', '>', ',', ' ']) {
        short.push_str(part.rsplit("::").next().unwrap_or(part));
    }
    short
}

#[cfg(test)]
mod tests {
    use super::short_type;

    #[test]
    fn short_type_removes_module_paths() {
        assert_eq!(
            short_type("rocket_tx::tx::guard::Tx<app::Main, a::b::C>"),
            "Tx<Main, C>"
        );
        assert_eq!(short_type("Tx<Main>"), "Tx<Main>");
    }
}
