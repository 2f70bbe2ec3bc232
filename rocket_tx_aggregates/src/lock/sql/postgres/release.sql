-- Releases a lease: $1 key, $2 token, $3 the payload of the notification for its waiters, or NULL if
-- none is to be woken. The expiry is not checked: an expired lease is still ours until another
-- holder takes it over.
--
-- Notifies only if the row was wanted: a transaction with a notification takes a cluster-wide lock
-- at its commit.
DELETE FROM aggregate_locks WHERE lock_key = $1 AND token = $2
RETURNING wanted,
          CASE WHEN wanted AND $3 IS NOT NULL THEN pg_notify('aggregate_locks', $3)::text END
