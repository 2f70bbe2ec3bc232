-- Marks a lease as wanted by another process: $1 key.
UPDATE aggregate_locks SET wanted = TRUE WHERE lock_key = $1 AND NOT wanted RETURNING TRUE
