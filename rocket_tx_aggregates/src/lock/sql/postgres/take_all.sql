-- Takes the leases of several keys: $1 claims, as a JSON array of objects in the order of their keys,
-- and $2 the class of advisory locks. Each row that is returned is a lease that was taken.
--
-- Takes the keys before the first one that another holder has, or that another process is taking. In
-- a race it also takes keys after that one, and the caller then releases these.
--
-- As in take.sql, every process draws the fencing tokens of a key under its advisory lock. But this
-- statement does not wait for these locks: it could wait for one while it keeps the others from
-- another process. So no two such statements wait for each other.
--
-- It waits only for a row that was inserted after its snapshot and is being deleted by the
-- transaction of its holder. At that time it has locked no row of another holder. It locks expired
-- rows after all inserts, and skips those that a transaction is changing. So a transaction that
-- deletes the rows of its leases never waits for a statement that waits for it.
WITH claim AS MATERIALIZED (
    SELECT nth, key, owner, token, ttl, wanted, lock
    FROM json_to_recordset($1::text::json) AS claim (
        nth integer, key text, owner text, token text, ttl bigint, wanted boolean, lock integer)
), turn AS MATERIALIZED (
    SELECT claim.*, upto, pg_try_advisory_xact_lock($2, lock) AS is_ours
    FROM claim, aggregate_locks_fence_open AS open
    -- This condition must be the same as in open_fence.sql.
    WHERE started = pg_postmaster_start_time()
        AND place = pg_relation_filepath(open.tableoid)
        AND nth < (
            SELECT coalesce(min(nth), 2147483647)
            FROM claim JOIN aggregate_locks AS held ON lock_key = key
            WHERE held.token <> claim.token
                AND expires_at > (extract(epoch FROM clock_timestamp()) * 1000)::bigint
        )
), drawn AS MATERIALIZED (
    SELECT key, owner, token, ttl, wanted, upto, nextval('aggregate_locks_fence') AS number
    FROM turn
    WHERE nth < (SELECT coalesce(min(nth), 2147483647) FROM turn WHERE NOT is_ours)
), inserted AS (
    INSERT INTO aggregate_locks
        (lock_key, owner_id, token, fencing_token, acquired_at, expires_at, wanted)
    SELECT key, owner, token, number,
           (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
           (extract(epoch FROM clock_timestamp()) * 1000)::bigint + ttl, wanted
    FROM drawn
    WHERE number < upto AND NOT EXISTS (SELECT FROM aggregate_locks WHERE lock_key = key)
    ON CONFLICT (lock_key) DO NOTHING
    RETURNING lock_key, fencing_token
), found AS MATERIALIZED (
    -- The rows that have expired, and our own rows from an earlier attempt whose reply was lost.
    SELECT drawn.*, held.token <> drawn.token AS taken_over
    FROM aggregate_locks AS held JOIN drawn ON lock_key = key
    -- This reads all rows of `inserted` before any row is locked.
    WHERE (SELECT count(*) FROM inserted) >= 0 AND number < upto
        AND (expires_at <= (extract(epoch FROM clock_timestamp()) * 1000)::bigint
            OR held.token = drawn.token)
    FOR NO KEY UPDATE OF held SKIP LOCKED
), updated AS (
    UPDATE aggregate_locks AS held
    SET owner_id = found.owner, token = found.token, fencing_token = number,
        acquired_at = (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
        expires_at = (extract(epoch FROM clock_timestamp()) * 1000)::bigint + ttl,
        wanted = held.wanted OR found.wanted
    FROM found WHERE lock_key = key
    RETURNING lock_key, fencing_token, taken_over
)
SELECT lock_key, fencing_token, FALSE AS taken_over FROM inserted
UNION ALL
SELECT lock_key, fencing_token, taken_over FROM updated
