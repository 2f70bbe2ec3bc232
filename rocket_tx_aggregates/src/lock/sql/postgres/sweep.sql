-- Deletes leases that expired more than $1 milliseconds ago. Locked rows remain for the next sweep.
DELETE FROM aggregate_locks WHERE lock_key IN (
    SELECT lock_key FROM aggregate_locks
    WHERE expires_at < (extract(epoch FROM clock_timestamp()) * 1000)::bigint - $1
    FOR UPDATE SKIP LOCKED)
RETURNING lock_key
