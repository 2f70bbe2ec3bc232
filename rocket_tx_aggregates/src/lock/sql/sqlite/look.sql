-- Reads the row of another holder: $1 key, $2 our token. Returns whether the row is live, and
-- whether it is marked as wanted.
SELECT expires_at > CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER), wanted
FROM aggregate_locks WHERE lock_key = $1 AND token <> $2
