-- Reads the row of another holder, after a lease could not be taken or before the next attempt: $1
-- key, $2 our token, $3 whether to mark the row as wanted.
--
-- Does not wait for a row that a transaction is changing: such a row is not marked.
WITH held AS (
    SELECT wanted FROM aggregate_locks
    WHERE lock_key = $1 AND token <> $2
        AND expires_at > (extract(epoch FROM clock_timestamp()) * 1000)::bigint
), marked AS (
    UPDATE aggregate_locks SET wanted = TRUE
    WHERE lock_key IN (
        SELECT lock_key FROM aggregate_locks
        WHERE $3 AND lock_key = $1 AND token <> $2 AND NOT wanted
        FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING TRUE
)
SELECT EXISTS (SELECT FROM held) AS is_held,
       EXISTS (SELECT FROM held WHERE wanted) OR EXISTS (SELECT FROM marked) AS is_wanted,
       EXISTS (
           SELECT FROM aggregate_locks_fence, aggregate_locks_fence_open AS open
           WHERE last_value < upto
               -- This condition must be the same as in open_fence.sql.
               AND started = pg_postmaster_start_time()
               AND place = pg_relation_filepath(open.tableoid)
       ) AS is_open
