-- Takes a lease that is free or has expired: $1 key, $2 owner, $3 token, $4 time to live in
-- milliseconds, $5 and $6 the key's advisory lock, $7 whether another process is known to wait.
-- Returns no row if another holder has a live lease, or if the sequence is not open.
--
-- The statement reads the row first, and writes only if no other holder has a live lease. So it
-- does not wait for a transaction that is about to delete the row of such a holder. It then inserts
-- a row, takes an expired row over, or finds its own row from an earlier attempt whose reply was
-- lost.
--
-- The insert needs a fencing token, and may then wait for a row that is being deleted. If another
-- process could draw a greater token during this wait and insert it first, the later lease would
-- have the smaller token. So every process draws under the key's advisory lock, and holds this lock
-- until its statement has committed.
--
-- A number from the limit of the sequence on is not used: see open_fence.sql. The number was drawn
-- under the condition before it, and not the other way round, because reading the last number of a
-- sequence costs more than drawing the next one.
--
-- Every expression reads the clock again, because the statement may have waited before it.
WITH turn AS MATERIALIZED (
    SELECT upto, pg_advisory_xact_lock($5, $6)
    FROM aggregate_locks_fence_open AS open
    -- This condition must be the same as in open_fence.sql.
    WHERE started = pg_postmaster_start_time()
        AND place = pg_relation_filepath(open.tableoid)
        AND NOT EXISTS (
            SELECT FROM aggregate_locks
            WHERE lock_key = $1 AND token <> $3
                AND expires_at > (extract(epoch FROM clock_timestamp()) * 1000)::bigint
        )
), drawn AS MATERIALIZED (
    SELECT nextval('aggregate_locks_fence') AS number, upto FROM turn
)
INSERT INTO aggregate_locks AS before
    (lock_key, owner_id, token, fencing_token, acquired_at, expires_at, wanted)
SELECT $1, $2, $3, number,
       (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
       (extract(epoch FROM clock_timestamp()) * 1000)::bigint + $4, $7
FROM drawn WHERE number < upto
ON CONFLICT (lock_key) DO UPDATE
SET owner_id = excluded.owner_id, token = excluded.token,
    fencing_token = excluded.fencing_token,
    acquired_at = (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
    expires_at = (extract(epoch FROM clock_timestamp()) * 1000)::bigint + $4,
    wanted = before.wanted OR excluded.wanted
WHERE before.expires_at <= (extract(epoch FROM clock_timestamp()) * 1000)::bigint
    OR before.token = excluded.token
-- Only a row that was already there has an xmax: the statement has locked it.
RETURNING fencing_token, xmax <> 0 AS taken_over
