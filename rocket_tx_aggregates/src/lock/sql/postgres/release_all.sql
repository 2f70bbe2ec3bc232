-- Releases leases. The expiry is not checked: an expired lease is still ours until another holder takes
-- it over. ANY: each row is found by its key, whatever the statistics of the table say.
-- $1 leases, as a JSON array of arrays: key, token.
DELETE FROM aggregate_locks
WHERE lock_key = ANY (ARRAY(
        SELECT lease ->> 0 FROM json_array_elements($1::text::json) AS ours (lease)))
    AND (lock_key, token) IN (
        SELECT lease ->> 0, lease ->> 1 FROM json_array_elements($1::text::json) AS ours (lease))
RETURNING lock_key, wanted
