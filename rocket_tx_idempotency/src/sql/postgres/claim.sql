-- Claims a key: $1 scope, $2 fingerprint, $3 time to live in milliseconds, $4 the key's advisory
-- lock.
--
-- The lock is held until the transaction ends. `is_free` is false while another transaction holds
-- it: then a request with the same key is in flight, and the caller tries again later. Without the
-- lock, the INSERT would wait for that transaction for an unlimited time.
--
-- `is_claimed` is true if the key was free or its row had expired.
WITH turn AS MATERIALIZED (
    SELECT pg_try_advisory_xact_lock($4) AS is_free
), claimed AS (
    INSERT INTO idempotency_keys AS before (scope, fingerprint, expires_at)
    SELECT $1, $2, (extract(epoch FROM clock_timestamp()) * 1000)::bigint + $3
    FROM turn WHERE is_free
    ON CONFLICT (scope) DO UPDATE
    SET fingerprint = excluded.fingerprint, expires_at = excluded.expires_at,
        status = NULL, headers = NULL, body = NULL
    WHERE before.expires_at <= (extract(epoch FROM clock_timestamp()) * 1000)::bigint
    RETURNING TRUE AS is_claimed
)
SELECT is_free, EXISTS (SELECT FROM claimed) AS is_claimed FROM turn
