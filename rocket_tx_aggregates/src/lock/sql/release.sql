-- Releases a lease: $1 key, $2 token. By token and not by expiry: an expired lease that nobody has
-- taken over is still ours.
DELETE FROM aggregate_locks WHERE lock_key = $1 AND token = $2 RETURNING wanted
