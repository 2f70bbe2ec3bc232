//! Repositories outside of requests: in memory, and on each backend.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rocket::futures::future::join_all;
use rocket_db_pools::Pool;
use rocket_tx::db::UrlPool;
use rocket_tx_aggregates::aggregate::{
    Aggregate, AggregateError, Append, AsyncAggregateRepository, AsyncRepository,
    AsyncUnlockableRepository, EventRecord, EventStore, HeldLease, History, InMemoryEventStore,
    Queueable, QueuedRepository, SqlEventStore,
};
use rocket_tx_aggregates::lock::{
    AsyncLockManager, InMemoryAsyncLockManager, LockError, UrlLockManager,
};

use super::{Added, Counter};
use crate::support::{Backend, Databases, In, eventually};

const MS: Duration = Duration::from_millis(1);

type Counters<R> = AsyncAggregateRepository<R, Counter>;

async fn add<R: AsyncRepository>(counters: &Counters<R>, id: &str, number: i64) -> i64 {
    let mut counter = match counters.get(id).await.unwrap() {
        Some(counter) => counter,
        None => Counter::fresh(id).unwrap(),
    };
    counter.record(Added { number }).unwrap();
    counters.commit(&mut counter).await.unwrap();
    counter.total
}

async fn pool(databases: &Databases, which: In) -> UrlPool {
    let figment = databases.figment().focus(match which {
        In::Main => "databases.main",
        In::Audit => "databases.audit",
    });
    UrlPool::init(&figment.merge(("connect_timeout", 5)))
        .await
        .unwrap()
}

/// An event store with its tables, and a lock manager with its leases in the same database.
struct Stored {
    databases: Databases,
    pool: UrlPool,
    store: SqlEventStore<UrlPool>,
    locks: UrlLockManager,
}

impl Stored {
    async fn new(backend: Backend) -> Self {
        let databases = Databases::new(backend).await;
        let pool = pool(&databases, In::Main).await;
        let store = SqlEventStore::new(&pool).with_snapshot_every(3);
        store.migrate().await.unwrap();
        let locks = UrlLockManager::new(&pool).with_retry_interval(10 * MS);
        locks.migrate().await.unwrap();
        Self {
            databases,
            pool,
            store,
            locks,
        }
    }

    fn queued(&self) -> Counters<QueuedRepository<SqlEventStore<UrlPool>, UrlLockManager>> {
        Counters::new(self.store.clone().queued_async_with(self.locks.clone()))
    }
}

/// Asserts the promises of every event store.
async fn assert_store_contract<S: EventStore>(store: S) {
    let counters = Counters::new(store);
    assert!(counters.get("a").await.unwrap().is_none());
    assert_eq!(add(&counters, "a", 1).await, 1);
    let mut stale = counters.peek("a").await.unwrap().unwrap();
    assert_eq!(add(&counters, "a", 2).await, 3);

    // Another commit was first.
    stale.record(Added { number: 10 }).unwrap();
    let refused = counters.commit(&mut stale).await;
    assert!(matches!(refused, Err(AggregateError::Conflict(stream)) if stream == "counter:a"));
    assert_eq!((stale.total, stale.version()), (11, 2));

    // All or nothing.
    let mut other = Counter::fresh("b").unwrap();
    other.record(Added { number: 5 }).unwrap();
    let refused = counters.commit_all(&mut [&mut other, &mut stale]).await;
    assert!(matches!(refused, Err(AggregateError::Conflict(_))));
    assert!(counters.peek("b").await.unwrap().is_none());
    let mut fresh = counters.peek("a").await.unwrap().unwrap();
    for number in 1..=7 {
        fresh.record(Added { number }).unwrap();
    }
    counters
        .commit_all(&mut [&mut other, &mut fresh])
        .await
        .unwrap();
    assert!(fresh.entity().new_events().is_empty());

    // Loaded through its snapshot, if there is one.
    let loaded = counters.get("a").await.unwrap().unwrap();
    assert_eq!((loaded.total, loaded.version()), (31, 9));
    let both = counters.get_all(&["b", "none", "a"]).await.unwrap();
    let totals: Vec<_> = both
        .iter()
        .map(|it| it.as_ref().map(|it| it.total))
        .collect();
    assert_eq!(totals, [Some(5), None, Some(31)]);

    let page: Vec<EventRecord> = counters.events("a", 2, 3).await.unwrap();
    let sequences: Vec<u64> = page.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, [3, 4, 5]);
    assert!(page.iter().all(|event| event.recorded_at.is_some()));
    assert!(matches!(counters.get("").await, Err(AggregateError::Id)));
    assert!(matches!(Counter::fresh("a\n"), Err(AggregateError::Id)));
    // A commit without new events does nothing.
    counters.commit(&mut fresh).await.unwrap();
    assert_eq!(counters.events("a", 0, 100).await.unwrap().len(), 9);
    // Nothing of a new aggregate without events would be stored.
    let mut empty = Counter::fresh("empty").unwrap();
    let refused = counters.commit(&mut empty).await;
    assert!(
        matches!(refused, Err(AggregateError::NoEvents(_))),
        "{refused:?}"
    );
}

async fn a_store_keeps_its_contract(backend: Backend) {
    let stored = Stored::new(backend).await;
    assert_store_contract(stored.store.clone()).await;
    let snapshots = "SELECT stream || ' ' || sequence FROM aggregate_snapshots";
    let snapshots = stored.databases.texts(In::Main, snapshots).await;
    assert_eq!(snapshots, ["counter:a 9"]);
}

/// Asserts that writers queue for the lock, so that none of them gets a conflict.
async fn queues<R: EventStore, M: AsyncLockManager>(counters: &Counters<QueuedRepository<R, M>>) {
    let work = |_| async {
        for _ in 0..5 {
            add(counters, "queued", 1).await;
        }
    };
    // Without a lease: an aggregate that does not exist yet is not leased.
    add(counters, "queued", 0).await;
    join_all((0..8).map(work)).await;
    let total = counters.peek("queued").await.unwrap().unwrap().total;
    assert_eq!(total, 40);

    // A lease is released by dropping, by `abort`, by `unlock`, and immediately if `get` finds
    // `None`.
    let held = counters.get("queued").await.unwrap().unwrap();
    assert!(held.entity().is_leased());
    drop(held);
    let mut held = counters.get("queued").await.unwrap().unwrap();
    held.record(Added { number: 100 }).unwrap();
    counters.abort(held).await.unwrap();
    let held = counters.get("queued").await.unwrap().unwrap();
    assert_eq!(held.total, 40);
    counters.unlock("queued").await.unwrap();
    let again = counters.get("queued").await.unwrap().unwrap();
    // The value from before `unlock` no longer owns the lease.
    drop(held);
    let peeked = counters.peek("queued").await.unwrap().unwrap();
    assert!(!peeked.entity().is_leased());
    counters.abort(peeked).await.unwrap();
    let waiting = counters.get("queued");
    let waited = tokio::time::timeout(50 * MS, waiting).await;
    assert!(waited.is_err(), "the aggregate is leased");
    drop(again);
    assert!(counters.get("none").await.unwrap().is_none());
    assert!(counters.get("none").await.unwrap().is_none());
    add(counters, "queued", 1).await;
}

#[rocket::async_test]
async fn stores_and_locks_in_memory_behave_the_same() {
    assert_store_contract(InMemoryEventStore::new()).await;
    assert_store_contract(InMemoryEventStore::new().with_snapshot_every(2)).await;
    let locks = InMemoryAsyncLockManager::new();
    let queued = InMemoryEventStore::new().queued_async_with(locks.clone());
    let counters = Counters::new(queued);
    queues(&counters).await;
    assert_eq!(locks.keys(), 0);
}

async fn writers_queue_without_conflicts(backend: Backend) {
    let stored = Stored::new(backend).await;
    queues(&stored.queued()).await;
    let in_memory = InMemoryAsyncLockManager::new();
    queues(&Counters::new(
        Stored::new(backend)
            .await
            .store
            .queued_async_with(in_memory),
    ))
    .await;
    eventually("no lease remains", async || {
        stored.locks.leases().await.unwrap().is_empty()
    })
    .await;
}

/// The commit deletes the lease in its own transaction, and so detects that the lease is gone.
async fn a_lost_lease_refuses_the_commit(backend: Backend) {
    let stored = Stored::new(backend).await;
    let counters = stored.queued();
    add(&counters, "a", 1).await;
    let mut late = counters.get("a").await.unwrap().unwrap();
    let token = stored.locks.leases().await.unwrap()[0].token.clone();
    assert!(stored.locks.free(&token).await.unwrap());
    late.record(Added { number: 1 }).unwrap();
    let refused = counters.commit(&mut late).await;
    assert!(
        matches!(refused, Err(AggregateError::Lock(LockError::Lost(_)))),
        "{refused:?}"
    );
    drop(late);
    assert_eq!(counters.peek("a").await.unwrap().unwrap().total, 1);
    add(&counters, "a", 1).await;
    assert!(stored.locks.leases().await.unwrap().is_empty());
}

/// The aggregate still owns its lease, which is still renewed.
async fn a_commit_that_failed_keeps_the_lease(backend: Backend) {
    let stored = Stored::new(backend).await;
    let locks = stored.locks.clone().with_lease_ttl(3_000 * MS);
    let counters = Counters::new(stored.store.clone().queued_async_with(locks));
    add(&counters, "a", 1).await;
    let mut fresh = Counter::fresh("a").unwrap();
    fresh.record(Added { number: 7 }).unwrap();
    let mut held = counters.get("a").await.unwrap().unwrap();
    held.record(Added { number: 1 }).unwrap();
    let refused = counters.commit_all(&mut [&mut held, &mut fresh]).await;
    assert!(matches!(refused, Err(AggregateError::Conflict(_))));
    tokio::time::sleep(4_500 * MS).await;
    let other = UrlLockManager::new(&pool(&stored.databases, In::Main).await);
    assert!(other.try_acquire("counter:a").await.unwrap().is_none());
    counters.commit(&mut held).await.unwrap();
    drop(other.acquire("counter:a").await.unwrap());
}

/// The locks are in another database, which goes away. The commit still succeeds, and the row of
/// the lease expires later.
async fn a_lost_lock_database_does_not_undo_a_commit(backend: Backend) {
    let stored = Stored::new(backend).await;
    let elsewhere = pool(&stored.databases, In::Audit).await;
    let locks = UrlLockManager::new(&elsewhere).with_lease_ttl(Duration::from_secs(10));
    locks.migrate().await.unwrap();
    let counters = Counters::new(stored.store.clone().queued_async_with(locks.clone()));
    for id in ["a", "b", "c"] {
        add(&counters, id, 1).await;
    }
    let mut single = counters.get("a").await.unwrap().unwrap();
    let batch = counters.get_all(&["b", "c"]).await.unwrap();
    let [Some(mut b), Some(mut c)]: [Option<Counter>; 2] = batch.try_into().unwrap() else {
        panic!("the aggregates do not exist");
    };
    for counter in [&mut single, &mut b, &mut c] {
        counter.record(Added { number: 1 }).unwrap();
    }
    match backend {
        Backend::Sqlite => elsewhere.close().await,
        Backend::Postgres => {
            // Refuse new sessions and terminate the existing ones.
            let database = stored
                .databases
                .audit
                .rsplit('/')
                .next()
                .unwrap()
                .to_owned();
            let sql = format!(
                "ALTER DATABASE {database} ALLOW_CONNECTIONS false; \
                 SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE datname = '{database}'"
            );
            let mut admin = stored.databases.postgres(In::Main).await;
            let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
            sql.execute(&mut admin).await.unwrap();
        }
    }
    let started = Instant::now();
    counters.commit(&mut single).await.unwrap();
    counters.commit_all(&mut [&mut b, &mut c]).await.unwrap();
    let took = started.elapsed();
    assert!(took < 9_000 * MS, "it waited for the locks: {took:?}");
    for id in ["a", "b", "c"] {
        assert_eq!(counters.peek(id).await.unwrap().unwrap().total, 2);
    }
    if backend == Backend::Sqlite {
        let again = pool(&stored.databases, In::Audit).await;
        let locks = UrlLockManager::new(&again).with_retry_interval(10 * MS);
        let locks = locks.with_max_wait(Some(Duration::from_secs(60)));
        assert_eq!(locks.leases().await.unwrap().len(), 3);
        assert!(locks.try_acquire("counter:a").await.unwrap().is_none());
        // The leases can be acquired once they have expired.
        locks
            .hold_all(&["counter:a", "counter:b", "counter:c"])
            .await
            .unwrap();
    }
    stored.pool.close().await;
}

/// A repository with its own `abort`.
struct Hooked {
    inner: QueuedRepository<InMemoryEventStore, InMemoryAsyncLockManager>,
    aborted: AtomicU32,
    unlocked: AtomicU32,
}

impl AsyncRepository for Hooked {
    async fn lease(&self, streams: &[&str]) -> Result<Vec<Option<HeldLease>>, AggregateError> {
        self.inner.lease(streams).await
    }

    async fn load(&self, stream: &str, version: Option<u32>) -> Result<History, AggregateError> {
        self.inner.load(stream, version).await
    }

    async fn append(&self, batch: Vec<Append>) -> Result<(), AggregateError> {
        self.inner.append(batch).await
    }

    async fn page(
        &self,
        stream: &str,
        after: u64,
        limit: u32,
    ) -> Result<Vec<EventRecord>, AggregateError> {
        self.inner.page(stream, after, limit).await
    }

    fn snapshot_every(&self) -> u64 {
        0
    }
}

impl AsyncUnlockableRepository for Hooked {
    async fn unlock(&self, stream: &str) -> Result<(), AggregateError> {
        self.unlocked.fetch_add(1, Ordering::SeqCst);
        self.inner.unlock(stream).await
    }

    async fn abort(&self, stream: &str, lease: Option<HeldLease>) -> Result<(), AggregateError> {
        self.aborted.fetch_add(1, Ordering::SeqCst);
        self.inner.abort(stream, lease).await
    }
}

#[rocket::async_test]
async fn an_abort_method_of_a_repository_is_called() {
    let counters = Counters::new(Hooked {
        inner: InMemoryEventStore::new().queued_async_with(InMemoryAsyncLockManager::new()),
        aborted: AtomicU32::new(0),
        unlocked: AtomicU32::new(0),
    });
    add(&counters, "a", 1).await;
    let held = counters.get("a").await.unwrap().unwrap();
    counters.abort(held).await.unwrap();
    let hooked = counters.repository();
    assert_eq!(hooked.aborted.load(Ordering::SeqCst), 1);
    assert_eq!(hooked.unlocked.load(Ordering::SeqCst), 0);
    let held = counters.get("a").await.unwrap().unwrap();
    counters.unlock("a").await.unwrap();
    assert_eq!(hooked.unlocked.load(Ordering::SeqCst), 1);
    drop(held);
    add(&counters, "a", 1).await;
}

on_each_backend!(
    a_store_keeps_its_contract,
    writers_queue_without_conflicts,
    a_lost_lease_refuses_the_commit,
    a_commit_that_failed_keeps_the_lease,
    a_lost_lock_database_does_not_undo_a_commit,
);
