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
//! | crash or restart of the server, whatever its clock says then | the mark: it was flushed before the first token below it was drawn |
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

use super::listener::hash;

/// Holds while the sequence is open. For the table under its own name.
macro_rules! is_open {
    () => {
        "SELECT FROM aggregate_locks_fence, aggregate_locks_fence_open AS open \
         WHERE last_value < upto \
             AND started = pg_postmaster_start_time() \
             AND place = pg_relation_filepath(open.tableoid)"
    };
}
pub(super) use is_open;

/// Opens the sequence, unless another has just done so; one implicit transaction.
///
/// Nobody sees the row before the commit is flushed, and confirmed by a synchronous standby. It
/// leaves room for those who have just seen that there is room.
///
/// Tokens follow the clock, in microseconds, at this moment only. So they never run ahead of it by
/// more than the ten million that each opening reserves.
pub(super) const OPEN: &str = concat!(
    "SELECT set_config('synchronous_commit', 'on', TRUE); \
     SELECT FROM aggregate_locks_fence_mark FOR UPDATE; \
     WITH moved AS ( \
         UPDATE aggregate_locks_fence_mark \
         SET value = 10000000 + setval('aggregate_locks_fence', greatest( \
             value, \
             (SELECT last_value FROM aggregate_locks_fence), \
             (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)) \
         WHERE NOT EXISTS (",
    is_open!(),
    ") RETURNING value \
     ), closed AS ( \
         DELETE FROM aggregate_locks_fence_open WHERE EXISTS (SELECT FROM moved) \
     ) \
     INSERT INTO aggregate_locks_fence_open (started, place, upto) \
     SELECT pg_postmaster_start_time(), \
            pg_relation_filepath('aggregate_locks_fence_open'), \
            value - 1000000 \
     FROM moved"
);

/// The advisory lock by which the takers of `key` have their turns. Keys that share one wait for
/// each other for no reason, no longer than for a row.
pub(super) fn turn(key: &str) -> (i32, i32) {
    let [.., a, b, c, d] = hash(key).to_be_bytes();
    (
        i32::from_be_bytes(*b"rtxl"),
        i32::from_be_bytes([a, b, c, d]),
    )
}
