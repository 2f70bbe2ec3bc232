//! Pools with one connection each, which count their transactions. The scenarios of the registry
//! use them in place of the library's pools.

use std::future::Future;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rocket::figment::Figment;
use rocket_db_pools::Database;
use shuttle::future::yield_now;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Attachment, WaitPolicy};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isolation {
    Configured,
    RepeatableRead,
    Serializable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

#[derive(Debug, Clone, Copy)]
pub struct BeginOptions {
    pub isolation: Isolation,
    pub access: Access,
    pub wait: WaitPolicy,
}

#[derive(Debug)]
pub struct CommitError;

pub struct Durability;

impl Durability {
    pub fn reached() -> Self {
        Self
    }
}

pub trait Session: Send + Sync + 'static {
    type Connection: Send + Sync + 'static;
}

pub trait TransactionPool: rocket_db_pools::Pool<Error = sqlx::Error> + Clone {
    type Session: Session;

    fn open(
        &self,
        options: BeginOptions,
    ) -> impl Future<Output = sqlx::Result<Transaction<Self::Session>>> + Send;

    fn attachment(&self) -> &OnceLock<Attachment>;
}

pub trait TransactionalDatabase: Database<Pool: TransactionPool> {}

impl<D> TransactionalDatabase for D where D: Database<Pool: TransactionPool> {}

/// Counts how the transactions of a scenario ended.
#[derive(Clone, Default)]
pub struct Transactions(Arc<Mutex<Ends>>);

#[derive(Default)]
struct Ends {
    begun: usize,
    committed: usize,
    rolled_back: usize,
    /// Those of the rolled-back transactions that a handler had written to.
    lost: usize,
    /// The number of open transactions of each database, by rank.
    open: [usize; 2],
}

impl Transactions {
    /// Waits until every transaction has ended, and checks that `committed` of them were committed.
    /// If the outcome committed is reported to the client, no transaction that was written to may
    /// have been rolled back. A task that keeps a guard drops it without further action.
    pub async fn wait_until_all_have_ended(&self, committed: usize, reported_committed: bool) {
        loop {
            {
                let ends = self.0.lock();
                if ends.begun == ends.committed + ends.rolled_back {
                    assert_eq!(ends.committed, committed);
                    assert!(
                        !reported_committed || ends.lost == 0,
                        "the outcome committed was reported, but a write was rolled back"
                    );
                    return;
                }
            }
            yield_now().await;
        }
    }
}

/// A pool with one connection.
#[derive(Clone)]
pub struct Pool {
    attachment: Arc<OnceLock<Attachment>>,
    rank: usize,
    one: Arc<Semaphore>,
    transactions: Transactions,
}

impl Pool {
    pub fn new(rank: usize, transactions: &Transactions) -> Self {
        let attachment = OnceLock::new();
        let _ = attachment.set(Attachment {
            rank,
            settle_timeout: Arc::default(),
            health: super::health::Health,
        });
        Self {
            attachment: Arc::new(attachment),
            rank,
            one: Arc::new(Semaphore::new(1)),
            transactions: transactions.clone(),
        }
    }
}

#[rocket::async_trait]
impl rocket_db_pools::Pool for Pool {
    type Connection = ();
    type Error = sqlx::Error;

    async fn init(_: &Figment) -> sqlx::Result<Self> {
        Err(sqlx::Error::PoolClosed)
    }

    async fn get(&self) -> sqlx::Result<()> {
        Ok(())
    }

    async fn close(&self) {}
}

pub struct Connected;

impl Session for Connected {
    type Connection = ();
}

impl TransactionPool for Pool {
    type Session = Connected;

    async fn open(&self, options: BeginOptions) -> sqlx::Result<Transaction<Connected>> {
        let one = Arc::clone(&self.one);
        let permit = match options.wait.queues() {
            true => one.acquire_owned().await.ok(),
            false => one.try_acquire_owned().ok(),
        };
        let permit = permit.ok_or(sqlx::Error::PoolTimedOut)?;
        let transaction = Transaction::new(self, permit);
        // BEGIN is being sent.
        yield_now().await;
        Ok(transaction)
    }

    fn attachment(&self) -> &OnceLock<Attachment> {
        &self.attachment
    }
}

/// Does nothing: no task commits by itself in these scenarios.
#[derive(Clone)]
pub struct Ending;

pub struct Transaction<S> {
    transactions: Transactions,
    rank: usize,
    has_ended: bool,
    is_written: bool,
    _permit: OwnedSemaphorePermit,
    session: PhantomData<S>,
}

impl<S> Transaction<S> {
    fn new(pool: &Pool, permit: OwnedSemaphorePermit) -> Self {
        let mut ends = pool.transactions.0.lock();
        ends.begun += 1;
        ends.open[pool.rank] += 1;
        assert_eq!(ends.open[pool.rank], 1, "two transactions of one database");
        drop(ends);
        Self {
            transactions: pool.transactions.clone(),
            rank: pool.rank,
            has_ended: false,
            is_written: false,
            _permit: permit,
            session: PhantomData,
        }
    }

    /// A statement of a handler.
    pub fn write(&mut self) {
        assert!(!self.has_ended, "a transaction is written to after its end");
        self.is_written = true;
    }

    pub fn ending(&self) -> Ending {
        Ending
    }

    pub fn hold_for_request(&mut self) {}

    pub async fn detect_conflict(&mut self) -> sqlx::Result<()> {
        Ok(())
    }

    pub async fn prepare(&mut self) -> Result<(), CommitError> {
        Ok(())
    }

    pub async fn prepare_among_several(&mut self) -> Result<(), CommitError> {
        Ok(())
    }

    pub async fn commit_without_waiting(&mut self) -> Result<Durability, CommitError> {
        yield_now().await;
        self.end(true);
        Ok(Durability)
    }

    pub async fn rollback(&mut self) -> Result<(), CommitError> {
        self.end(false);
        Ok(())
    }

    pub fn abandon(&mut self) {}

    fn end(&mut self, commits: bool) {
        assert!(!self.has_ended, "a transaction ends twice");
        self.has_ended = true;
        let mut ends = self.transactions.0.lock();
        ends.open[self.rank] -= 1;
        match commits {
            true => ends.committed += 1,
            false => {
                ends.rolled_back += 1;
                ends.lost += usize::from(self.is_written);
            }
        }
    }
}

impl<S> Drop for Transaction<S> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.end(false);
        }
    }
}

macro_rules! databases {
    ($($database:ident = $name:literal),+) => {
        $(
            pub struct $database(Pool);

            impl From<Pool> for $database {
                fn from(pool: Pool) -> Self {
                    Self(pool)
                }
            }

            impl Deref for $database {
                type Target = Pool;

                fn deref(&self) -> &Pool {
                    &self.0
                }
            }

            impl DerefMut for $database {
                fn deref_mut(&mut self) -> &mut Pool {
                    &mut self.0
                }
            }

            impl rocket_db_pools::Database for $database {
                type Pool = Pool;
                const NAME: &'static str = $name;
            }
        )+
    };
}

databases!(First = "first", Second = "second");
