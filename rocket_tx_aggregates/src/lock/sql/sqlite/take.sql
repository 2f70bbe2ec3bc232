-- Takes a lease that is free or has expired: $1 key, $2 owner, $3 token, $4 time to live in
-- milliseconds. The statements run in one transaction, so no other process writes between them.
--
-- The counter of fencing tokens remains when a row is deleted, so tokens increase across releases
-- and sweeps. Every take raises it at least to the clock, in microseconds since 1970, so tokens
-- also increase after a backup is restored.
UPDATE aggregate_locks_fence
SET value = max(value + 1, CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER));

INSERT INTO aggregate_locks AS held
    (lock_key, owner_id, token, fencing_token, acquired_at, expires_at, wanted)
SELECT $1, $2, $3, value,
       CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER),
       CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) + $4, FALSE
FROM aggregate_locks_fence WHERE TRUE
ON CONFLICT (lock_key) DO UPDATE
SET owner_id = excluded.owner_id, token = excluded.token,
    fencing_token = excluded.fencing_token,
    acquired_at = excluded.acquired_at, expires_at = excluded.expires_at
WHERE held.expires_at <= CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)
    OR held.token = excluded.token
RETURNING fencing_token
