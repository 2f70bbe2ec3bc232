-- Opens the sequence of fencing tokens, unless another process has just done so. The statements are
-- one implicit transaction.
--
-- Other sessions see the new row of aggregate_locks_fence_open only after the commit is flushed to
-- disk, and confirmed by a synchronous standby if there is one. The limit `upto` of the row is one
-- million below the mark, because a session that has just checked the limit may still draw a token
-- above it.
--
-- Tokens follow the clock, in microseconds since 1970, only at an opening. An opening reserves ten
-- million tokens, so each opening can put tokens at most ten million further ahead of the clock.
SELECT set_config('synchronous_commit', 'on', TRUE);

SELECT FROM aggregate_locks_fence_mark FOR UPDATE;

WITH moved AS (
    UPDATE aggregate_locks_fence_mark
    SET value = 10000000 + setval('aggregate_locks_fence', greatest(
        value,
        (SELECT last_value FROM aggregate_locks_fence),
        (extract(epoch FROM clock_timestamp()) * 1000000)::bigint))
    -- This condition must be the same as in take.sql.
    WHERE NOT EXISTS (
        SELECT FROM aggregate_locks_fence, aggregate_locks_fence_open AS open
        WHERE last_value < upto
            AND started = pg_postmaster_start_time()
            AND place = pg_relation_filepath(open.tableoid)
    )
    RETURNING value
), closed AS (
    DELETE FROM aggregate_locks_fence_open WHERE EXISTS (SELECT FROM moved)
)
INSERT INTO aggregate_locks_fence_open (started, place, upto)
SELECT pg_postmaster_start_time(),
       pg_relation_filepath('aggregate_locks_fence_open'),
       value - 1000000
FROM moved
