-- Deletes at most $1 expired rows. Skips rows that a request is claiming again.
DELETE FROM idempotency_keys WHERE scope IN (
    SELECT scope FROM idempotency_keys
    WHERE expires_at <= (extract(epoch FROM clock_timestamp()) * 1000)::bigint
    ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
