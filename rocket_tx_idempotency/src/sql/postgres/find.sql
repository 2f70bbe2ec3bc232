-- Returns the row of the scope $1, unless it has expired.
SELECT fingerprint, status, headers, body FROM idempotency_keys
WHERE scope = $1 AND expires_at > (extract(epoch FROM clock_timestamp()) * 1000)::bigint
