-- Returns all leases, sorted by key.
SELECT lock_key AS key, owner_id AS owner, token, fencing_token,
       CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) - acquired_at AS age_ms,
       expires_at - CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) AS expires_in_ms,
       wanted
FROM aggregate_locks ORDER BY lock_key
