//! What is outstanding or condemned in the whole service, now.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use super::feed::{EventKind, Feed, Listener};
use crate::tx::request_id::RequestId;
use crate::tx::verdict::Outcome;

/// What is outstanding or condemned in the whole service. Managed by `Settlement`: ask for it as
/// `&State<Live>`.
#[derive(Clone, Default)]
pub struct Live(Arc<Inner>);

#[derive(Default)]
struct Inner {
    entries: Mutex<BTreeMap<u64, Entry>>,
    next: AtomicU64,
    settled: [AtomicU64; 4],
    hook_failures: AtomicU64,
    feed: Feed,
}

struct Entry {
    route: Option<Cow<'static, str>>,
    guard: &'static str,
    since: Instant,
    flags: Arc<Flags>,
}

/// Whose it is, and what guards say of themselves while they live.
struct Flags {
    live: Live,
    request: RequestId,
    resource: Cow<'static, str>,
    checked_out: AtomicBool,
    condemned: AtomicBool,
    /// It was warned that it is outstanding for long.
    warned: AtomicBool,
}

/// What is outstanding or condemned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
pub struct LiveTransaction {
    /// The request that it belongs to.
    pub request: String,
    /// The name of the route, where it has one.
    #[cfg_attr(feature = "utoipa", schema(required))]
    pub route: Option<String>,
    /// The database, or the name that the resource gives itself.
    pub resource: String,
    /// The type of the guard that began it.
    pub guard: String,
    /// Milliseconds since it was begun.
    pub age_ms: u64,
    /// A guard holds it at this moment.
    pub checked_out: bool,
    /// Its request was answered while a guard held it. It can never commit. On
    /// Postgres it is over; on SQLite it rolls back when its holder drops it.
    pub condemned: bool,
}

impl Live {
    /// Everything that is outstanding or condemned, oldest first.
    pub fn transactions(&self) -> Vec<LiveTransaction> {
        let entries = self.0.entries.lock();
        entries.values().map(Entry::line).collect()
    }

    /// What is outstanding for longer than `limit`, and was not warned about yet.
    pub(super) fn overdue(&self, limit: Duration) -> Vec<LiveTransaction> {
        let entries = self.0.entries.lock();
        let overdue = entries
            .values()
            .filter(|entry| entry.since.elapsed() > limit && entry.flags.warn());
        overdue.map(Entry::line).collect()
    }

    /// How many requests have ended in `outcome` since the launch.
    pub fn settled(&self, outcome: Outcome) -> u64 {
        self.0.settled[outcome as usize].load(Ordering::Relaxed)
    }

    /// Subscribes to all events from now on: transactions begun, checked out and in, verdicts, and
    /// every step of every settlement. Free without subscribers. A slow subscriber loses events and
    /// receives their number, as [`FeedItem::Lagged`](super::FeedItem::Lagged).
    pub fn listen(&self) -> Listener {
        self.0.feed.listen()
    }

    /// The number of subscribers.
    pub fn listeners(&self) -> usize {
        self.0.feed.listeners()
    }

    /// Publishes an event of the service about a request, as [`EventKind::Note`]. `data` runs only
    /// if there is a subscriber.
    pub fn publish(
        &self,
        request: RequestId,
        topic: &'static str,
        data: impl FnOnce() -> rocket::serde::json::Value,
    ) {
        self.emit(request, || EventKind::Note {
            topic: topic.into(),
            data: data(),
        });
    }

    pub(in crate::tx) fn emit(&self, request: RequestId, kind: impl FnOnce() -> EventKind) {
        self.0.feed.emit(request, kind);
    }

    /// How many hooks have failed or panicked since the launch.
    pub fn hook_failures(&self) -> u64 {
        self.0.hook_failures.load(Ordering::Relaxed)
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
        self.emit(request, || EventKind::Began {
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
    fn line(&self) -> LiveTransaction {
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
    /// Whether it is to be warned about: once.
    fn warn(&self) -> bool {
        !self.warned.swap(true, Ordering::Relaxed)
    }
}

/// A line in the list; dropping it takes the line away.
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

/// The part of a line that changes.
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
                true => EventKind::CheckedOut { resource },
                false => EventKind::CheckedIn { resource },
            }
        });
    }

    /// Whether it is to be warned about: once.
    pub(in crate::tx) fn warn(&self) -> bool {
        self.0.warn()
    }

    pub(in crate::tx) fn condemn(&self) {
        self.0.condemned.store(true, Ordering::Relaxed);
    }
}

/// `Tx<Main>` for `rocket_tx::tx::guard::Tx<service::Main>`.
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
    fn a_type_is_named_without_its_modules() {
        assert_eq!(
            short_type("rocket_tx::tx::guard::Tx<app::Main, a::b::C>"),
            "Tx<Main, C>"
        );
        assert_eq!(short_type("Tx<Main>"), "Tx<Main>");
    }
}
