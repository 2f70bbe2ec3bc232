-- Deletes at most $1 expired rows.
DELETE FROM idempotency_keys WHERE scope IN (
    SELECT scope FROM idempotency_keys
    WHERE expires_at <= CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)
    ORDER BY expires_at LIMIT $1
)
