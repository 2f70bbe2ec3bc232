//! Fencing tokens on Postgres. Each lease of a key has a number that is greater than those of all
//! earlier leases of this key.
//!
//! The numbers come from a sequence. While the server runs, the sequence increases independently of
//! all clocks. But the server may forget its last numbers: lease statements run with
//! `synchronous_commit=off`, and a standby may lack the last writes of the primary. Therefore
//! numbers are drawn only while the sequence is *open*. Opening the sequence moves it past all
//! numbers that may have been drawn before. The *mark* is a durable upper limit of the numbers
//! drawn (the table `aggregate_locks_fence_mark`); every opening raises it.
//!
//! | event | why the next token is greater |
//! | --- | --- |
//! | release, takeover, sweep, a stopped process | the sequence, and an advisory lock: processes that take the same key draw one after the other |
//! | the server's clock is set back | the sequence does not depend on the clock |
//! | crash or restart of the server, whatever its clock shows afterwards | the mark: it is flushed to disk before any token below it is drawn |
//! | failover to a synchronous standby | the mark: its flush waited for the standby |
//! | failover to an asynchronous standby | the mark, unless the standby lacks even the last opening; then the clock |
//! | a restored backup, a copied database | the clock |
//!
//! In one case a token may be smaller than an earlier one: a standby or a backup lacks the last
//! opening, and the clock of its host is behind by more than the time since that opening. The
//! sequence is opened by the first lease after a start of the server, and again after about nine
//! million tokens.
//!
//! The sequence is open while the unlogged table `aggregate_locks_fence_open` has a row of the
//! current start of the server. Postgres empties unlogged tables whenever it recovers: after a
//! crash, in a restored backup, and on a promoted standby.

use sqlx::postgres::PgConnection;

use super::listener::hash;
use super::sql::statement;
use super::store::{Claim, millis};

const TAKE: &str = include_str!("sql/postgres/take.sql");
const OPEN_FENCE: &str = include_str!("sql/postgres/open_fence.sql");

/// The result of one attempt to take a lease.
#[derive(sqlx::FromRow)]
pub(super) struct TakeRow {
    /// `Some` if this statement took the lease.
    pub(super) fencing_token: Option<i64>,
    /// `Some(true)` if another holder has a live lease, `Some(false)` if its lease has expired, and
    /// `None` if no other holder has a row.
    pub(super) lives: Option<bool>,
    /// Whether the lease of another holder is marked as wanted.
    pub(super) wanted: Option<bool>,
    /// `false` if the sequence is not open; then the statement did not try to take the lease.
    pub(super) fence_is_open: bool,
}

/// Tries once to take a lease.
pub(super) async fn take(db: &mut PgConnection, claim: &Claim) -> sqlx::Result<TakeRow> {
    let (class, number) = advisory_lock(&claim.key);
    sqlx::query_as(statement(TAKE))
        .bind(&*claim.key)
        .bind(&*claim.owner)
        .bind(claim.token.as_str())
        .bind(millis(claim.ttl))
        .bind(class)
        .bind(number)
        .fetch_one(db)
        .await
}

/// Opens the sequence, unless another process has just done so.
pub(super) async fn open_fence(db: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql(statement(OPEN_FENCE))
        .execute(db)
        .await
        .map(drop)
}

/// Returns the advisory lock that serializes attempts to take `key`. Keys with the same hash share
/// one lock, so attempts to take them wait for each other needlessly. `lock_timeout` limits this
/// wait like the wait for a row.
fn advisory_lock(key: &str) -> (i32, i32) {
    let [.., a, b, c, d] = hash(key).to_be_bytes();
    (
        i32::from_be_bytes(*b"rtxl"),
        i32::from_be_bytes([a, b, c, d]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_statements_have_the_same_condition_for_an_open_sequence() {
        let condition = |sql: &'static str| {
            let start = sql.find("SELECT FROM aggregate_locks_fence,").unwrap();
            let condition = sql[start..].split(')').next().unwrap();
            condition.split_whitespace().collect::<Vec<_>>()
        };
        assert_eq!(condition(TAKE), condition(OPEN_FENCE));
        assert!(condition(TAKE).contains(&"upto"));
    }
}
