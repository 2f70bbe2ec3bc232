-- Stores the response of the request that has claimed the scope $1.
UPDATE idempotency_keys SET status = $2, headers = $3, body = $4 WHERE scope = $1
