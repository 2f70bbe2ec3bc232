-- Releases a lease: $1 key, $2 token. The expiry is not checked: an expired lease is still ours
-- until another holder takes it over.
DELETE FROM aggregate_locks WHERE lock_key = $1 AND token = $2 RETURNING wanted
