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

use rocket::serde::json::serde_json::json;
use serde::Serialize;
use sqlx::postgres::PgConnection;

use super::listener::hash;
use super::sql::statement;
use super::store::{Attempt, Claim, ClaimRow, attempts_of, millis};

const TAKE: &str = include_str!("sql/postgres/take.sql");
const TAKE_ALL: &str = include_str!("sql/postgres/take_all.sql");
const LOOK: &str = include_str!("sql/postgres/look.sql");
const OPEN_FENCE: &str = include_str!("sql/postgres/open_fence.sql");

/// The row of a lease that was taken.
#[derive(sqlx::FromRow)]
pub(super) struct TakenRow {
    pub(super) fencing_token: i64,
    /// The lease of another holder had expired.
    pub(super) taken_over: bool,
}

/// What a look at the row of another holder has found.
#[derive(sqlx::FromRow)]
pub(super) struct LookRow {
    /// Another holder has a live lease.
    pub(super) is_held: bool,
    /// Its row is marked as wanted.
    pub(super) is_wanted: bool,
    /// `false` if the sequence is not open, so that no lease can be taken.
    is_open: bool,
}

/// Tries once to take a lease. Returns `None` if another holder has a live lease, or if the sequence
/// is not open.
pub(super) async fn take(db: &mut PgConnection, claim: &Claim) -> sqlx::Result<Option<TakenRow>> {
    let (class, number) = advisory_lock(&claim.key);
    sqlx::query_as(statement(TAKE))
        .bind(&*claim.key)
        .bind(&*claim.owner)
        .bind(claim.token.as_str())
        .bind(millis(claim.ttl))
        .bind(class)
        .bind(number)
        .bind(claim.wanted)
        .fetch_optional(db)
        .await
}

/// A claim of several, as its statement receives it.
#[derive(Serialize)]
struct NumberedClaim<'a> {
    nth: usize,
    /// The number of the key's advisory lock.
    lock: i32,
    #[serde(flatten)]
    claim: ClaimRow<'a>,
}

/// Tries once to take the leases of several keys. Takes none if the sequence is not open.
pub(super) async fn take_all(
    db: &mut PgConnection,
    claims: &[&Claim],
) -> sqlx::Result<Vec<Attempt>> {
    let numbered = claims.iter().enumerate().map(|(nth, claim)| {
        let (_, lock) = advisory_lock(&claim.key);
        let claim = ClaimRow::from(*claim);
        NumberedClaim { nth, lock, claim }
    });
    let numbered: Vec<_> = numbered.collect();
    let taken: Vec<(String, i64, bool)> = sqlx::query_as(statement(TAKE_ALL))
        .bind(json!(numbered).to_string())
        .bind(ADVISORY_LOCKS)
        .fetch_all(db)
        .await?;
    let attempt = |(key, fencing_token, taken_over)| {
        let taken = Attempt::Taken {
            fencing_token,
            taken_over,
        };
        (key, taken)
    };
    Ok(attempts_of(
        claims,
        taken.into_iter().map(attempt).collect(),
    ))
}

/// Looks at the row of another holder; `marks` it as wanted. Opens the sequence if it is not open,
/// and returns whether that was necessary.
pub(super) async fn look(
    db: &mut PgConnection,
    claim: &Claim,
    marks: bool,
) -> sqlx::Result<(LookRow, bool)> {
    let found: LookRow = sqlx::query_as(statement(LOOK))
        .bind(&*claim.key)
        .bind(claim.token.as_str())
        .bind(marks)
        .fetch_one(&mut *db)
        .await?;
    let opens = !found.is_open;
    if opens {
        open_fence(db).await?;
    }
    Ok((found, opens))
}

/// Opens the sequence, unless another process has just done so.
async fn open_fence(db: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql(statement(OPEN_FENCE))
        .execute(db)
        .await
        .map(drop)
}

/// The class of the advisory locks of keys: `rtxl`.
const ADVISORY_LOCKS: i32 = i32::from_be_bytes(*b"rtxl");

/// Returns the advisory lock that serializes attempts to take `key`. Keys with the same hash share
/// one lock, so attempts to take them wait for each other needlessly. `lock_timeout` limits this
/// wait like the wait for a row.
fn advisory_lock(key: &str) -> (i32, i32) {
    let [.., a, b, c, d] = hash(key).to_be_bytes();
    (ADVISORY_LOCKS, i32::from_be_bytes([a, b, c, d]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_statements_have_the_same_condition_for_an_open_sequence() {
        let condition = |sql: &'static str| {
            let start = sql.find("started = ").unwrap();
            let condition = sql[start..].split_whitespace().take(7);
            condition.collect::<Vec<_>>().join(" ")
        };
        let expected = "started = pg_postmaster_start_time() AND place = \
                        pg_relation_filepath(open.tableoid)";
        for sql in [TAKE, TAKE_ALL, LOOK, OPEN_FENCE] {
            assert_eq!(condition(sql), expected);
            assert!(sql.contains("upto"));
        }
    }
}
