-- Returns all leases, sorted by key.
SELECT lock_key AS key, owner_id AS owner, token, fencing_token,
       (extract(epoch FROM clock_timestamp()) * 1000)::bigint - acquired_at AS age_ms,
       expires_at - (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS expires_in_ms,
       wanted
FROM aggregate_locks ORDER BY lock_key
