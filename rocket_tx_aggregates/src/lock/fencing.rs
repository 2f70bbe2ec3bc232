//! Fencing tokens on Postgres: a number for each lease, greater than all before it.
//!
//! They come from a sequence, which on a running server grows whatever clocks do. But the server
//! may forget what it has drawn: lease statements run with `synchronous_commit=off`, and a standby
//! may lack what the primary wrote last. So the sequence is used only while it is *open*, and
//! opening it makes it jump past all that can have been given before:
//!
//! | what happens | what makes the next token greater |
//! | --- | --- |
//! | release, takeover, sweep, a stopped process | the sequence; and takers of a key draw in turn |
//! | the server's clock is set back | the sequence does not look at it |
//! | crash or restart of the server, whatever its clock shows then | the mark: it was flushed before the first token below it was drawn |
//! | failover to a synchronous standby | the mark: its flush waited for the standby |
//! | failover to an asynchronous standby | the mark, unless the standby lacks even the last opening; then the clock |
//! | a restored backup, a copied database | the clock |
//!
//! What remains: a standby or a backup that lacks the last opening, on a host whose clock is behind
//! by more than the time since. The last opening is as old as the first lease after the server's
//! start, or ten million leases.
//!
//! It is open while the unlogged table `aggregate_locks_fence_open` has a row of this start of the
//! server: Postgres empties such tables whenever it recovers, be it after a crash, in a restored
//! backup, or on a standby that is promoted.

use sqlx::postgres::PgConnection;

use super::listener::hash;
use super::sql::statement;
use super::store::{Claim, millis};

const TAKE: &str = include_str!("sql/postgres/take.sql");
const OPEN_FENCE: &str = include_str!("sql/postgres/open_fence.sql");

/// One attempt to take a lease.
#[derive(sqlx::FromRow)]
pub(super) struct TakeRow {
    /// The lease is ours.
    pub(super) fencing_token: Option<i64>,
    /// Another holder has, or had, a lease: live, or expired.
    pub(super) lives: Option<bool>,
    pub(super) wanted: Option<bool>,
    /// If not, nothing was tried.
    pub(super) fence_is_open: bool,
}

pub(super) async fn take(db: &mut PgConnection, claim: &Claim) -> sqlx::Result<TakeRow> {
    let (class, number) = turn(&claim.key);
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

/// The advisory lock by which the takers of `key` have their turns. Keys that share one wait for
/// each other for no reason, no longer than for a row.
fn turn(key: &str) -> (i32, i32) {
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
    fn both_statements_agree_on_when_the_sequence_is_open() {
        let condition = |sql: &'static str| {
            let start = sql.find("SELECT FROM aggregate_locks_fence,").unwrap();
            let condition = sql[start..].split(')').next().unwrap();
            condition.split_whitespace().collect::<Vec<_>>()
        };
        assert_eq!(condition(TAKE), condition(OPEN_FENCE));
        assert!(condition(TAKE).contains(&"upto"));
    }
}
