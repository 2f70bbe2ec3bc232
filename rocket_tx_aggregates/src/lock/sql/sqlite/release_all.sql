-- Releases leases. The expiry is not checked: an expired lease is still ours until another holder takes
-- it over.
-- $1 a JSON object. Its `leases` are an array of arrays: key, token.
DELETE FROM aggregate_locks
WHERE (lock_key, token) IN (SELECT value ->> 0, value ->> 1 FROM json_each($1, '$.leases'))
RETURNING lock_key, wanted
