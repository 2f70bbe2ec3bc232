-- Wakes the waiters in other processes: $1 payloads, one for each key. A payload has a fixed size. A
-- payload of 8,000 bytes or more would be an error.
SELECT pg_notify('aggregate_locks', payload) FROM unnest($1::text[]) AS payload
