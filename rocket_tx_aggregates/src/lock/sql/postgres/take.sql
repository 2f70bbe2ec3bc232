-- Takes a lease that is free or has expired: $1 key, $2 owner, $3 token, $4 time to live in
-- milliseconds, $5 and $6 the key's advisory lock.
--
-- The statement reads the row first. It writes only if no other holder has a live lease. It then
-- inserts a row, takes an expired row over, or finds its own row from an earlier attempt whose
-- reply was lost.
--
-- The insert draws a fencing token, and may then wait for a row that is being deleted. If another
-- process could draw a greater token during this wait and insert it first, the later lease would
-- have the smaller token. So every process draws under the key's advisory lock, and holds this lock
-- until its statement has committed.
--
-- Every expression reads the clock again, because the statement may have waited before it.
WITH held AS (
    SELECT expires_at > (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS lives, wanted
    FROM aggregate_locks WHERE lock_key = $1 AND token <> $3
), open AS (
    -- This condition must be the same as in open_fence.sql.
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
