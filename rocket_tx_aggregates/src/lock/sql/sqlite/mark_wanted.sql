-- Marks the row of another holder as wanted by another process: $1 key, $2 our token.
UPDATE aggregate_locks SET wanted = TRUE
WHERE lock_key = $1 AND token <> $2 AND NOT wanted
RETURNING TRUE
