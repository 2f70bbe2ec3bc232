-- Takes the leases of several keys: $1 claims, as a JSON array of objects in the order of their keys.
-- Takes the keys before the first one that another holder has. The statements run in one transaction,
-- so no other process writes between them. They write nothing if another holder has the first key.
--
-- The counter of fencing tokens is raised once, as in take.sql, and the leases get the last numbers
-- up to its new value.
SELECT lock_key AS has_row
FROM json_each($1) AS claim JOIN aggregate_locks AS held ON lock_key = claim.value ->> 'key'
WHERE held.token <> claim.value ->> 'token';

UPDATE aggregate_locks_fence
SET value = json_array_length($1)
    + max(value, CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER))
WHERE NOT EXISTS (
    SELECT 1 FROM aggregate_locks
    WHERE lock_key = $1 ->> '$[0].key' AND token <> $1 ->> '$[0].token'
        AND expires_at > CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER));

-- changes() is 0 if the counter was not raised.
INSERT INTO aggregate_locks AS held
    (lock_key, owner_id, token, fencing_token, acquired_at, expires_at, wanted)
SELECT claim.value ->> 'key', claim.value ->> 'owner', claim.value ->> 'token',
       fence.value - json_array_length($1) + 1 + claim.key,
       CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER),
       CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) + (claim.value ->> 'ttl'),
       claim.value ->> 'wanted'
FROM json_each($1) AS claim, aggregate_locks_fence AS fence
WHERE changes() > 0
    AND claim.key < (
        SELECT coalesce(min(other.key), 9223372036854775807)
        FROM json_each($1) AS other JOIN aggregate_locks AS taken ON lock_key = other.value ->> 'key'
        WHERE taken.token <> other.value ->> 'token'
            AND expires_at > CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER))
ON CONFLICT (lock_key) DO UPDATE
SET owner_id = excluded.owner_id, token = excluded.token,
    fencing_token = excluded.fencing_token,
    acquired_at = excluded.acquired_at, expires_at = excluded.expires_at,
    wanted = held.wanted OR excluded.wanted
RETURNING lock_key, fencing_token
