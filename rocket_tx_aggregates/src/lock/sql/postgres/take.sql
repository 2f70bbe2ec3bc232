-- Takes a lease that is free or has expired: $1 key, $2 owner, $3 token, $4 milliseconds, $5 and $6
-- the key's advisory lock.
--
-- It looks first, and writes only where there is no lease or an expired one; then it inserts, takes
-- over, or finds its own row after an attempt whose response was lost.
--
-- An insert may wait for a row that is being deleted, and then uses the fencing token that it drew
-- before. No other process may draw one for this key meanwhile and come first. So each draws under
-- the key's advisory lock, which it has until the statement has committed.
--
-- The clock is read anew wherever it stands: the statement may have waited.
WITH held AS (
    SELECT expires_at > (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS lives, wanted
    FROM aggregate_locks WHERE lock_key = $1 AND token <> $3
), open AS (
    -- The same condition as in open_fence.sql.
    SELECT EXISTS (
        SELECT FROM aggregate_locks_fence, aggregate_locks_fence_open AS open
        WHERE last_value < upto
            AND started = pg_postmaster_start_time()
            AND place = pg_relation_filepath(open.tableoid)
    ) AS is_open
), turn AS MATERIALIZED (
    SELECT pg_advisory_xact_lock($5, $6) FROM open
    WHERE is_open AND NOT EXISTS (SELECT FROM held WHERE lives)
), taken AS (
    INSERT INTO aggregate_locks AS before
        (lock_key, owner_id, token, fencing_token, acquired_at, expires_at, wanted)
    SELECT $1, $2, $3, nextval('aggregate_locks_fence'),
           (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
           (extract(epoch FROM clock_timestamp()) * 1000)::bigint + $4, FALSE
    FROM turn
    ON CONFLICT (lock_key) DO UPDATE
    SET owner_id = excluded.owner_id, token = excluded.token,
        fencing_token = excluded.fencing_token,
        acquired_at = (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
        expires_at = (extract(epoch FROM clock_timestamp()) * 1000)::bigint + $4
    WHERE before.expires_at <= (extract(epoch FROM clock_timestamp()) * 1000)::bigint
        OR before.token = excluded.token
    RETURNING fencing_token
)
SELECT fencing_token, lives, wanted, is_open AS fence_is_open
FROM open LEFT JOIN held ON TRUE LEFT JOIN taken ON TRUE
