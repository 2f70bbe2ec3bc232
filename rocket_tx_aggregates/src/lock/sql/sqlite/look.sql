-- What another holder has of a key: $1 key, $2 our token.
SELECT expires_at > CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER), wanted
FROM aggregate_locks WHERE lock_key = $1 AND token <> $2
