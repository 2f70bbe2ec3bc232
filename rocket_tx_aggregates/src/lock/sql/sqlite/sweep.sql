-- Deletes leases that expired more than $1 milliseconds ago.
DELETE FROM aggregate_locks
WHERE expires_at < CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) - $1
RETURNING lock_key
