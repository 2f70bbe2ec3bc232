-- Renews a lease: $1 key, $2 token, $3 time to live in milliseconds.
UPDATE aggregate_locks SET expires_at = (extract(epoch FROM clock_timestamp()) * 1000)::bigint + $3
WHERE lock_key = $1 AND token = $2
RETURNING TRUE
