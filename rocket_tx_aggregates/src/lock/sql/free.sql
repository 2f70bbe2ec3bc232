-- Frees a lease for an operator: $1 token.
DELETE FROM aggregate_locks WHERE token = $1 RETURNING lock_key
