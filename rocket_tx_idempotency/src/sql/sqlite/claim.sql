-- Claims a key: $1 scope, $2 fingerprint, $3 time to live in milliseconds. Returns a row if the key
-- was free or its row has expired. No other request can write meanwhile.
INSERT INTO idempotency_keys (scope, fingerprint, expires_at)
VALUES ($1, $2, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) + $3)
ON CONFLICT (scope) DO UPDATE
SET fingerprint = excluded.fingerprint, expires_at = excluded.expires_at,
    status = NULL, headers = NULL, body = NULL
WHERE idempotency_keys.expires_at <= CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)
RETURNING TRUE AS is_free, TRUE AS is_claimed
