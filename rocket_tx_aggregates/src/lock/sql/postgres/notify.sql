-- Wakes the waiters of other processes: $1 hashes of keys. They have a fixed size: a payload of more
-- than 8,000 bytes would fail the commit that it belongs to.
SELECT pg_notify('aggregate_locks', bell) FROM unnest($1::text[]) AS bell
