-- Renews a lease: $1 key, $2 token, $3 time to live in milliseconds.
UPDATE aggregate_locks SET expires_at = CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) + $3
WHERE lock_key = $1 AND token = $2
RETURNING TRUE
