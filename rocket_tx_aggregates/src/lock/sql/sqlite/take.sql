-- Takes a lease that is free or has expired: $1 key, $2 owner, $3 token, $4 time to live in
-- milliseconds, $5 whether another process is known to wait, $6 whether to mark the row of another
-- holder as wanted. The statements run in one transaction, so no other process writes between them.
-- If another holder has a live lease, they write nothing but the mark.
--
-- The counter of fencing tokens remains when a row is deleted, so tokens increase across releases
-- and sweeps. Every take raises it at least to the clock, in microseconds since 1970, so tokens
-- also increase after a backup is restored.
SELECT TRUE AS has_row FROM aggregate_locks WHERE lock_key = $1 AND token <> $3;

UPDATE aggregate_locks_fence
SET value = max(value + 1, CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER))
WHERE NOT EXISTS (
    SELECT 1 FROM aggregate_locks
    WHERE lock_key = $1 AND token <> $3
        AND expires_at > CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER));

-- changes() is 0 if the counter was not raised.
INSERT INTO aggregate_locks AS held
    (lock_key, owner_id, token, fencing_token, acquired_at, expires_at, wanted)
SELECT $1, $2, $3, value,
       CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER),
       CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) + $4, $5
FROM aggregate_locks_fence WHERE changes() > 0
ON CONFLICT (lock_key) DO UPDATE
SET owner_id = excluded.owner_id, token = excluded.token,
    fencing_token = excluded.fencing_token,
    acquired_at = excluded.acquired_at, expires_at = excluded.expires_at,
    wanted = held.wanted OR excluded.wanted
WHERE held.expires_at <= CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)
    OR held.token = excluded.token
RETURNING fencing_token;

UPDATE aggregate_locks SET wanted = TRUE
WHERE $6 AND lock_key = $1 AND token <> $3 AND NOT wanted
