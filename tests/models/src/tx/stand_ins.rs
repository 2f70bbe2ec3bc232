//! Stand-ins for the rest of a request, as far as the registry uses it.

pub mod request_id {
    #[derive(Clone, Copy)]
    pub struct RequestId;
}

pub mod failure {
    use crate::db::CommitError;

    #[derive(Clone)]
    pub struct Problem;

    #[derive(Debug)]
    pub enum Error {
        CheckedOut(&'static str),
        Isolation {
            database: &'static str,
            reason: &'static str,
        },
        NotAttached(&'static str),
        OutOfOrder(&'static str),
        SecondConnection(&'static str),
        Settled,
        Weaker(&'static str),
        Database(sqlx::Error),
        Commit(CommitError),
    }

    impl Error {
        pub fn of_commit(error: CommitError, _: &'static str) -> Self {
            Self::Commit(error)
        }
    }

    impl From<sqlx::Error> for Error {
        fn from(error: sqlx::Error) -> Self {
            Self::Database(error)
        }
    }

    impl From<CommitError> for Error {
        fn from(error: CommitError) -> Self {
            Self::Commit(error)
        }
    }
}

/// `retrying` is not modelled.
pub mod attempting {
    use std::borrow::Cow;

    use rocket::http::Status;

    use super::failure::Error;

    pub struct Attempting {
        pub database: &'static str,
        pub doom: Option<(Status, Cow<'static, str>)>,
    }

    impl Attempting {
        pub fn is_here(&self) -> bool {
            true
        }

        pub fn check_here(&self) -> Result<(), Error> {
            Ok(())
        }
    }
}

pub mod begin_step {
    use super::failure::Error;
    use crate::db::{Transaction, TransactionPool, TransactionalDatabase};
    use crate::tx::registry::Outstanding;

    #[derive(Clone, Default)]
    pub struct BeginSteps;

    impl BeginSteps {
        pub async fn run<D: TransactionalDatabase>(
            &self,
            _: &mut Transaction<<D::Pool as TransactionPool>::Session>,
        ) -> Result<(), Error> {
            Ok(())
        }
    }

    impl Outstanding {
        pub(crate) fn refused_by_step(&self, _: &Error) {}
    }
}

pub mod response_plan {
    #[derive(Default)]
    pub struct ResponsePlan;
}

pub mod hooks {
    use std::future::Future;

    pub trait HookOutput {}

    #[derive(Default)]
    pub struct Hooks;

    impl Hooks {
        pub fn after_commit(&mut self, _: impl Future<Output: HookOutput> + Send + 'static) {}
        pub fn after_settlement(&mut self, _: impl Future<Output: HookOutput> + Send + 'static) {}
        pub fn after_rollback(&mut self, _: impl Future<Output: HookOutput> + Send + 'static) {}
    }
}

pub mod monitor {
    use std::borrow::Cow;
    use std::time::Duration;

    use super::request_id::RequestId;

    #[derive(Clone, Default)]
    pub struct Live;
    pub struct LiveEntry;
    #[derive(Clone)]
    pub struct LiveFlags;

    impl Live {
        pub fn enter(
            &self,
            _: RequestId,
            _: Option<Cow<'static, str>>,
            _: Cow<'static, str>,
            _: &'static str,
        ) -> LiveEntry {
            LiveEntry
        }
    }

    impl LiveFlags {
        pub fn warn(&self) -> bool {
            false
        }

        pub fn condemn(&self) {}
    }

    impl LiveEntry {
        pub fn flags(&self) -> LiveFlags {
            LiveFlags
        }
    }

    pub trait Observer {
        fn began(&self, request: RequestId, database: &str, waited: Duration);
    }

    #[derive(Clone, Default)]
    pub struct Observers;

    impl Observers {
        pub fn notify(&self, _: impl Fn(&dyn Observer)) {}
    }
}

pub mod panics {
    pub struct PanicWatch;

    impl PanicWatch {
        pub fn here() -> Self {
            Self
        }

        pub fn mark(&self) {}

        pub fn has_panicked(&self) -> bool {
            false
        }
    }
}

pub mod resource {
    use std::any::Any;
    use std::borrow::Cow;

    use super::database::DatabaseTransaction;
    use super::failure::Error;
    use crate::db::Durability;

    pub enum Phase {
        Database,
        Release,
    }

    pub struct SettleContext<'a> {
        pub others: &'a mut [Option<Box<dyn Resource>>],
        pub last: &'a mut Option<usize>,
    }

    #[rocket::async_trait]
    pub trait Resource: Any + Send {
        fn name(&self) -> Cow<'_, str>;

        fn phase(&self) -> Phase {
            Phase::Release
        }

        async fn prepare(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
            Ok(())
        }

        async fn commit(&mut self) -> Result<(), Error>;

        fn durability(&mut self) -> Durability {
            Durability::reached()
        }

        async fn rollback(&mut self, _: &mut SettleContext<'_>) -> Result<(), Error> {
            Ok(())
        }

        fn as_database(&mut self) -> Option<&mut dyn DatabaseTransaction> {
            None
        }
    }

    impl SettleContext<'_> {
        pub fn has_other_databases(&self) -> bool {
            false
        }
    }
}

/// An open transaction as a part of an atomic commit: settlement is not modelled.
pub mod database {
    use super::super::registry::OpenTransaction;
    use crate::db::TransactionalDatabase;

    pub trait DatabaseTransaction {}

    impl<D: TransactionalDatabase> DatabaseTransaction for OpenTransaction<D> {}
}

pub mod verdict {
    #[derive(Clone, Copy)]
    pub enum Choice {}
}
