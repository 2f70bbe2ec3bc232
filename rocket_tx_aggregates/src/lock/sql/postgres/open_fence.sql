-- Opens the sequence of fencing tokens, unless another process has just done so. One implicit
-- transaction.
--
-- The row is seen once the commit is flushed, and confirmed by a synchronous standby. It leaves room
-- for those who have just seen that there is room.
--
-- Tokens follow the clock, in microseconds, at this moment only. So they run ahead of it by no more
-- than the ten million that each opening reserves.
SELECT set_config('synchronous_commit', 'on', TRUE);

SELECT FROM aggregate_locks_fence_mark FOR UPDATE;

WITH moved AS (
    UPDATE aggregate_locks_fence_mark
    SET value = 10000000 + setval('aggregate_locks_fence', greatest(
        value,
        (SELECT last_value FROM aggregate_locks_fence),
        (extract(epoch FROM clock_timestamp()) * 1000000)::bigint))
    -- The same condition as in take.sql.
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
