//! The rest of a request, as far as the registry asks for it.

use std::marker::PhantomData;

/// The name of a guard.
pub struct Begin<D>(PhantomData<D>);

pub mod context {
    use std::sync::Arc;

    use rocket::Request;

    use super::super::Outstanding;

    #[derive(Clone, Copy)]
    pub struct RequestId;

    /// One for each registry, kept for good.
    pub struct RequestContext {
        pub id: RequestId,
    }

    impl RequestContext {
        pub fn of<'r>(_: &'r Request<'_>) -> Option<&'r Self> {
            Some(&Self { id: RequestId })
        }

        pub fn is_entered(&self) -> bool {
            true
        }

        pub fn outstanding_or(
            &self,
            make: impl FnOnce() -> Arc<Outstanding>,
        ) -> &'static Arc<Outstanding> {
            Box::leak(Box::new(make()))
        }
    }
}

pub mod error {
    use crate::db::CommitError;

    #[derive(Debug)]
    pub enum Error {
        CheckedOut(&'static str),
        Isolation(&'static str),
        NoSettlement,
        NotAttached(&'static str),
        NotEntered,
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

pub mod guard {
    use rocket::Request;
    use rocket::http::Status;
    use rocket::request::Outcome;

    use super::error::Error;

    pub fn failed<T>(_: &Request<'_>, error: Error) -> Outcome<T, Error> {
        Outcome::Error((Status::InternalServerError, error))
    }
}

pub mod hooks {
    use std::future::Future;

    pub trait HookOutput {}

    #[derive(Default)]
    pub struct Hooks;

    impl Hooks {
        pub fn after_commit(&mut self, _: impl Future<Output: HookOutput> + Send + 'static) {}
        pub fn after_rollback(&mut self, _: impl Future<Output: HookOutput> + Send + 'static) {}
    }
}

pub mod live {
    use std::borrow::Cow;

    use super::context::RequestId;

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

    impl LiveEntry {
        pub fn flags(&self) -> LiveFlags {
            LiveFlags
        }
    }
}

pub mod observe {
    use std::time::Duration;

    use super::context::RequestId;

    pub trait Observer {
        fn began(&self, request: RequestId, database: &str, waited: Duration);
    }

    #[derive(Clone, Default)]
    pub struct Observers;

    impl Observers {
        pub fn tell(&self, _: impl Fn(&dyn Observer)) {}
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

pub mod problem {
    #[derive(Clone)]
    pub struct Problem;
}

pub mod resource {
    use std::any::Any;
    use std::borrow::Cow;
    use std::marker::PhantomData;

    use super::error::Error;
    use crate::db::Durability;

    pub enum Phase {
        Database,
        Release,
    }

    pub struct Settling<'a>(PhantomData<&'a ()>);

    #[rocket::async_trait]
    pub trait Resource: Any + Send {
        fn name(&self) -> Cow<'_, str>;

        fn phase(&self) -> Phase {
            Phase::Release
        }

        async fn prepare(&mut self, _: &mut Settling<'_>) -> Result<(), Error> {
            Ok(())
        }

        async fn commit(&mut self) -> Result<(), Error>;

        fn durability(&mut self) -> Durability {
            Durability::reached()
        }

        async fn rollback(&mut self, _: &mut Settling<'_>) -> Result<(), Error> {
            Ok(())
        }
    }
}

pub mod sentinel {
    use rocket::{Ignite, Rocket};

    pub fn is_missing(_: &Rocket<Ignite>) -> bool {
        false
    }
}

pub mod settlement {
    use super::live::Live;
    use super::observe::Observers;

    #[derive(Default)]
    pub struct Settings {
        pub live: Live,
        pub observers: Observers,
    }
}

pub mod verdict {
    #[derive(Clone, Copy)]
    pub enum Choice {}
}
