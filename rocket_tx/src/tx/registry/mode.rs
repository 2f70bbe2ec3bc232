//! Isolation and access, as part of a guard's type.

use crate::db::{Access, Isolation};

/// The isolation and access of a guard's transaction. The second type parameter of
/// [`Tx`](crate::tx::Tx) and [`Begin`](crate::tx::Begin).
///
/// ```
/// use rocket_tx::tx::{Mode, ReadOnly, Serializable};
/// use rocket_tx::db::{Access, Isolation};
///
/// assert_eq!(<ReadOnly<Serializable>>::ISOLATION, Isolation::Serializable);
/// assert_eq!(<ReadOnly<Serializable>>::ACCESS, Access::ReadOnly);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a mode of a transaction",
    note = "use `rocket_tx::Serializable`, `RepeatableRead` or `ReadOnly`, for example `Tx<Main, Serializable>`"
)]
pub trait Mode: Send + Sync + 'static {
    /// Isolation from other transactions.
    const ISOLATION: Isolation;
    /// Whether the transaction may write.
    const ACCESS: Access;
}

/// Reads and writes, with the isolation that is the database's default. The mode of `Tx<D>`.
#[derive(Debug)]
pub enum ReadWrite {}

/// Postgres's REPEATABLE READ. SQLite transactions are always serializable, which is stricter.
#[derive(Debug)]
pub enum RepeatableRead {}

/// SERIALIZABLE. On Postgres, a conflict leads to a 503, and the client may retry. SQLite
/// transactions are always serializable.
#[derive(Debug)]
pub enum Serializable {}

/// Reads only, with the isolation of `M`. Gives one consistent view across several queries.
#[derive(Debug)]
pub struct ReadOnly<M = ReadWrite>(std::marker::PhantomData<fn() -> M>);

impl Mode for ReadWrite {
    const ISOLATION: Isolation = Isolation::Configured;
    const ACCESS: Access = Access::ReadWrite;
}

impl Mode for RepeatableRead {
    const ISOLATION: Isolation = Isolation::RepeatableRead;
    const ACCESS: Access = Access::ReadWrite;
}

impl Mode for Serializable {
    const ISOLATION: Isolation = Isolation::Serializable;
    const ACCESS: Access = Access::ReadWrite;
}

impl<M: Mode> Mode for ReadOnly<M> {
    const ISOLATION: Isolation = M::ISOLATION;
    const ACCESS: Access = Access::ReadOnly;
}
